"""The tree of errors: drawn as it is, with one code each."""

from __future__ import annotations

import inspect
import re

from agent_exec import errors


def all_errors() -> list[type[errors.AgentExecError]]:
    return [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.AgentExecError)]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"^([│ ├└─]*)([A-Z]\w+)(?:  .*)?$", line):
            depth = len(match[1]) // 4
            path = [*path[:depth], match[2]]
            drawn[match[2]] = path[-2] if depth else None
    real = {
        kind.__name__: None if kind is errors.AgentExecError else kind.__bases__[0].__name__ for kind in all_errors()
    }
    assert drawn == real


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in all_errors()]
    assert len(codes) == len(set(codes))


def test_an_error_says_what_it_is() -> None:
    assert all(kind.__doc__ for kind in all_errors())
    failed = errors.ExecutionFailed("cancelled", "somebody asked", {"status": "failed"})
    assert str(failed) == "cancelled: somebody asked"
    assert failed.response == {"status": "failed"}
