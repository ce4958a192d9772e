"""A short run of the proof, as a person runs it: the whole service under fire, and nothing is lost or doubled."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

#: What the run asks of a machine: it is struck for half a minute, and afterwards everything has to come to its end.
RUN_S = 400


def chaos(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chaos", *options], cwd=root, capture_output=True, text=True, timeout=RUN_S, check=False
    )


@pytest.mark.timeout(RUN_S + 10)
def test_nothing_is_lost_or_doubled_under_fire(root: Path) -> None:
    seed = random.randrange(1_000_000)
    # The times of a cancel are promised of a machine that is not busy with everything else; here they are only looked at.
    options = ("--duration-s", "25", "--executions", "300", "--open", "12", "--cancels", "0.1", "--patience", "20")
    done = chaos(root, "--json", "--seed", str(seed), *options)
    told = f"seed {seed}\n{done.stderr}\n{done.stdout}"

    assert done.returncode == 0, told
    figures = json.loads(done.stdout)["figures"]
    assert figures["accepted"] >= 12, told
    assert figures["terminal"] == figures["stored"], told
    assert figures["worker kills"] >= 2, told
    assert figures["Redis kills"] >= 1, told
    assert figures["replies dropped"] >= 1, told
    assert figures["repeated calls"] <= figures["calls in flight at kills"], told


def test_a_wrong_kind_of_fault_is_told_with_those_there_are(root: Path) -> None:
    done = chaos(root, "--faults", "meteor")

    assert done.returncode == 2
    assert "kill-redis" in done.stderr
