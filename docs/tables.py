"""The tables in these pages that are made from the code: settings, errors, keys, the life of steps and executions.

`python docs/tables.py` writes them between their markers; tests/test_docs.py compares.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from agent_exec import errors, keys
from agent_exec.ledger import life
from agent_exec.settings import Settings, variable
from api_shim import problem

DOCS = Path(__file__).parent
PAGES = {
    "settings": DOCS / "operations.md",
    "errors": DOCS / "contract.md",
    "keys": DOCS / "architecture.md",
    "steps": DOCS / "ledger.md",
    "executions": DOCS / "ledger.md",
}


def settings() -> str:
    """Return a row for each setting."""
    rows = [
        f"| `{variable(name)}` | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | what it is |", "| --- | --- | --- |", *rows])


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, SecretStr) or value in (None, PydanticUndefined, frozenset()):
        return ""
    return f"`{value}`"


def error_codes() -> str:
    """Return a row for each error of the tree, and for each that HTTP alone knows."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.AgentExecError)]
    rows = {
        kind.code: _error(
            kind.code,
            str(problem.KINDS[kind].status) if kind in problem.KINDS else "",
            kind.retryable,
            inspect.getdoc(kind).splitlines()[0],  # type: ignore[union-attr]  # each has one
        )
        for kind in kinds
        if not kind.__subclasses__()
    }
    rows |= {
        code: _error(code, str(refusal.status), refusal.retryable, f"{refusal.title}.")
        for code, refusal in problem.REFUSALS.items()
    }
    head = ["| code | HTTP | a retry may help | what it says |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *(rows[code] for code in sorted(rows))])


def _error(code: str, status: str, is_retryable: bool, says: str) -> str:
    return f"| `{code}` | {status} | {'yes' if is_retryable else 'no'} | {says} |"


#: How a key's docstring says what it is: its type, what it holds, when it goes.
_KEY_SAID = re.compile(r"(?:^|\n\n)(HASH|LIST|SET|STREAM|STRING|ZSET)\b(.*)", re.DOTALL)


def redis_keys() -> str:
    """Return a row for each key, in the order of keys.py."""
    rows = []
    for function in vars(keys).values():
        said = inspect.isfunction(function) and _KEY_SAID.search(inspect.getdoc(function) or "")
        if said:
            names = [name for name in inspect.signature(function).parameters if name != "prefix"]
            spelt = function(*[f"{{{name.removesuffix('_id')}}}" for name in names])
            holds = re.sub(r"\s+", " ", said[2].removeprefix(":").strip())
            rows.append(f"| `{spelt}` | {said[1].lower()} | {holds} |")
    return "\n".join(["| key | type | holds, and when it goes |", "| --- | --- | --- |", *rows])


def steps() -> str:
    """Return a row for each event in a step's life."""
    return _life(life.STEP, life.StepState)


def executions() -> str:
    """Return a row for each event in an execution's life."""
    return _life(life.EXECUTION, life.ExecutionState)


def _life(table: life.Table[life.State], states: type[life.State]) -> str:
    head = ["", *states]
    rows = [[event, *[_cell(outcomes[state], state) for state in states]] for event, outcomes in table.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def _cell(outcome: life.Outcome[life.State], state: life.State) -> str:
    said = "" if outcome.verdict == "-" else outcome.verdict
    return said if outcome.then == state else f"{said} → {outcome.then}".strip()


def page_with_table(name: str) -> str:
    """Return a page with its table as the code has it now."""
    makers = {"settings": settings, "errors": error_codes, "keys": redis_keys, "steps": steps, "executions": executions}
    table = makers[name]()
    page = PAGES[name].read_text()
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert marked.search(page), f"{PAGES[name]} has no place for the table '{name}'"
    return marked.sub(lambda found: f"{found[1]}{table}\n{found[2]}", page)


if __name__ == "__main__":
    for name, page in PAGES.items():
        page.write_text(page_with_table(name))
