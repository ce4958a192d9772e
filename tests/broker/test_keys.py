"""keys.py and `_keys.lua` spell the same keys, and a working queue has no others."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from agent_exec import keys
from agent_exec.broker import fair_queue

LUA = Path(fair_queue.__file__).parent / "lua"


def test_lua_and_python_spell_the_same_keys() -> None:
    spelled = set(re.findall(r"ROOT \.\. '(:\w+:?)'", (LUA / "_keys.lua").read_text()))
    functions = {
        name: function for name, function in vars(keys).items() if name.startswith("fair_") and callable(function)
    }
    listed = set()
    for name, function in functions.items():
        if name in ("fair_queue", "fair_plain"):
            continue
        takes_a_node = next(iter(inspect.signature(function).parameters)) != "prefix"
        listed.add((function("") if takes_a_node else function()).removeprefix(keys.fair_queue()))
    assert spelled == listed


def test_only_keys_lua_spells_keys() -> None:
    for path in LUA.glob("*.lua"):
        if path.name != "_keys.lua":
            assert "ax:queue" not in path.read_text(), path.name
