"""Who calls out: the modules that open HTTP or WebSocket connections, by name, so that none is added unnoticed (S18)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGES = ("agent_exec", "tasks", "providers", "notifier", "api_shim")
CLIENTS = {"aiohttp", "groq", "httpcore", "httpx", "httpx2", "mcp", "openai", "requests", "urllib3", "websockets"}
CLIENTS |= {"http.client", "urllib.request"}
#: To addresses that an operator has set: the neighbours, servers of tools, providers and the orchestrator. To one that a
#: caller has named, `notifier/egress.py` alone, which checks it.
CALLING = {
    "notifier/connection.py",
    "notifier/egress.py",
    "providers/connection.py",
    "providers/failure.py",  # names exceptions, and calls nobody
    "providers/groq.py",
    "providers/openai.py",
    "tasks/neighbours/http.py",
    "tasks/neighbours/mcp.py",
}


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, with those that they are in."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names]
    return {".".join(of[: count + 1]) for of in parts for count in range(len(of))}


def test_nobody_else_calls_out(root: Path) -> None:
    files = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    assert {path.relative_to(root).as_posix() for path in files if imported(path) & CLIENTS} == CALLING


@pytest.mark.parametrize(
    "line", ["import httpx", "from urllib import request", "def f():\n    from mcp.types import Tool"]
)
def test_whatever_way_it_is_imported_it_is_seen(line: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(line)
    assert imported(tmp_path / "module.py") & CLIENTS
