"""The pages say what the code says: tables, schemas, links, names of files."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def tables(root: Path) -> ModuleType:
    """docs/tables.py."""
    spec = importlib.util.spec_from_file_location("docs_tables", root / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings", "errors", "keys", "steps", "executions"])
def test_a_table_made_from_the_code_is_current(tables: ModuleType, name: str) -> None:
    assert tables.PAGES[name].read_text() == tables.page_with_table(name), "run: .venv/bin/python docs/tables.py"


def pages(root: Path) -> list[Path]:
    return [*root.glob("*.md"), *root.glob("docs/*.md")]


def test_every_link_leads_somewhere(root: Path) -> None:
    for page in pages(root):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_file_that_is_named_is_there(root: Path) -> None:
    tops = "agent_exec|tasks|providers|notifier|api_shim|sandbox|tests|benchmarks|docs"
    for page in pages(root):
        for name in re.findall(rf"`((?:{tops})/[\w/]+\.(?:py|lua|md))`", page.read_text()):
            assert (root / name).exists(), f"{page.name}: {name}"
