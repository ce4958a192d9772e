"""No dependency is pinned below a release that closed a hole we know of (S42). `make audit` asks for those we do not."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

#: The first release without it, and what it was.
SAFE_FROM = {
    "jinja2": ("3.1.6", "CVE-2024-56326, CVE-2025-27516: ways out of the sandbox of templates"),
    "pyjwt": ("2.4.0", "CVE-2022-29217: a public key taken for a shared secret"),
    "redis": ("6.4.0", "answers of one caller given to another after a cancellation"),
    "starlette": ("1.3.1", "CVE-2026-54282: a path that renames the host; CVE-2025-62727: a flood of ranges"),
}


@pytest.mark.parametrize("name", SAFE_FROM)
def test_a_known_hole_stays_closed(name: str, root: Path) -> None:
    first, hole = SAFE_FROM[name]
    locks = "\n".join((root / lock).read_text() for lock in ("requirements.lock", "requirements-dev.lock"))
    pinned = re.findall(rf"^{name}==([^\s;\\]+)", locks, re.MULTILINE)
    assert pinned, f"{name} is in neither lock"
    for one in [version(name), *pinned]:
        assert Version(one) >= Version(first), hole
