"""Guards on the house: each Lua script says what it is, and has a Python twin of its name."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from agent_exec.store import BlockingStore

ROOT = Path(__file__).parent.parent
FILES = sorted(path for top in ("agent_exec", "notifier", "providers") for path in (ROOT / top).rglob("*.lua"))
SCRIPTS = [path for path in FILES if not path.name.startswith("_")]
SHARED = [path for path in FILES if path.name.startswith("_")]
#: Scripts whose twin bears another name: `list` would hide Python's own.
RENAMED = {"list": "list_executions"}


def named(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def header(path: Path) -> str:
    lines = path.read_text().removeprefix("#!lua\n").splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("--") or line.startswith("-- include"))
    return "\n".join(lines[:end])


def included(path: Path) -> set[Path]:
    return {
        (path.parent / name).resolve() for name in re.findall(r"^-- include: (\S+)$", path.read_text(), re.MULTILINE)
    }


def functions(module: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(module.read_text()).body if isinstance(node, ast.FunctionDef)}


def loaders(path: Path) -> dict[Path, str]:
    """The modules beside a script's folder, and above them, that load it; and the constant that each keeps it in."""
    home = path.parent.parent
    beside = [*home.glob("*.py"), *(home.parent.glob("*.py") if home.parent != ROOT else [])]
    found = {module: re.search(rf'(\w+) = Script\.load\(.*"{path.name}"\)', module.read_text()) for module in beside}
    return {module: match[1] for module, match in found.items() if match is not None}


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) > 30, "else this file guards nothing"


@pytest.mark.parametrize("path", named(SCRIPTS))
def test_a_script_says_what_it_takes_and_returns(path: Path) -> None:
    said = header(path)
    assert re.match(r"-- [A-Z].*[.:]", said), "its first line says what it does"
    assert re.search(r"^-- KEYS", said, re.MULTILINE)
    assert re.search(r"^-- Returns ", said, re.MULTILINE)
    if "ARGV" in path.read_text().removeprefix(said):
        assert "ARGV" in said


@pytest.mark.parametrize("path", named(SHARED))
def test_a_shared_file_says_what_it_is_and_is_included(path: Path) -> None:
    assert header(path)
    users = [other for other in FILES if path.resolve() in included(other)]
    assert len(users) > 1, "else it belongs into its one user"


@pytest.mark.parametrize("path", named(SCRIPTS))
def test_a_script_has_one_twin_of_its_name(path: Path) -> None:
    [(module, constant)] = loaders(path).items()
    assert constant.removeprefix("_").lower() == path.stem
    twin = functions(module)[RENAMED.get(path.stem, path.stem)]
    assert constant in {node.id for node in ast.walk(twin) if isinstance(node, ast.Name)}, "and the twin runs it"
    assert ast.get_docstring(twin)
    assert len(twin.args.posonlyargs + twin.args.args) <= 2


def test_no_script_asks_more_of_a_server_than_redis_7(store: BlockingStore) -> None:
    """By the server's own word on when each command came. Before 7.0 an error inside a script lost its code besides."""
    called = {name for path in FILES for name in re.findall(r"redis\.call\('(\w+)'", path.read_text())}
    assert len(called) > 20, "else this guards nothing"
    since = {name: store.redis.execute_command("COMMAND DOCS", name) for name in called}
    newer = {name: told for name, told in since.items() if _since(told) > (7, 0, 0)}
    assert not newer


def _since(told: Any) -> tuple[int, ...]:
    [(_, about)] = told.items() if isinstance(told, dict) else [told]
    fields = about if isinstance(about, dict) else dict(zip(about[::2], about[1::2], strict=True))
    return tuple(int(part) for part in fields[b"since"].decode().split("."))
