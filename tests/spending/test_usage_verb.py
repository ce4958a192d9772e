"""`agent-exec usage`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from agent_exec.cli import main
from agent_exec.contract.completion import Usage
from agent_exec.spending.reservation import Attempt, reserve, settle
from agent_exec.store import BlockingStore


@pytest.fixture(autouse=True)
def environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_EXEC_REDIS_URL", redis_url)


def said(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["usage", "--tenant", "acme", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def spend(store: BlockingStore, name: str, cost: float | None, *, waste: bool = False) -> None:
    store.run(reserve(Attempt("acme", name, 1), usd=cost, tokens=100, limit_usd_per_day=5.0, holds_s=60))
    came_to = Usage(prompt_tokens=30, completion_tokens=12, total_tokens=42, cost_usd=cost)
    assert store.run(settle(Attempt("acme", name, 1), came_to, waste=waste))


def test_a_table_of_days_and_their_total(store: BlockingStore) -> None:
    spend(store, "a", 0.25)
    assert said().splitlines()[1].split()[1:] == ["1", "30", "12", "$0.250000", "0", "0", "$0.000000", "$5"]
    spend(store, "b", 0.1, waste=True)
    spend(store, "c", None)
    store.run(reserve(Attempt("acme", "d", 2), usd=0.5, tokens=100, limit_usd_per_day=5.0, holds_s=60))
    store.run(reserve(Attempt("acme", "d", 3), usd=0.5, tokens=100, limit_usd_per_day=5.0, holds_s=60))
    header, day, total = said().splitlines()
    assert header.split()[:2] == ["DAY", "CALLS"]
    assert day.split()[1:9] == ["3", "90", "36", "$0.350000", "1", "42", "$0.100000", "$5"]
    for remark in ("price unknown: 1 call", "under way: 1 call of at most $0.5", "lost with their worker: 1 call of"):
        assert remark in day
        assert remark in total
    assert total.split()[:3] == ["total", "3", "90"]


def test_the_same_as_json(store: BlockingStore) -> None:
    spend(store, "a", 0.25)
    read = json.loads(said("--json", "--days", "1"))
    assert (read["tenant_id"], len(read["days"]), read["first_day"]) == ("acme", 1, read["last_day"])
    assert read["total"]["used"]["cost_usd"] == 0.25


def test_a_tenant_that_has_spent_nothing() -> None:
    assert said().startswith("Tenant 'acme': nothing from 20")


def test_days_that_are_not_kept_cannot_be_asked_for() -> None:
    assert CliRunner().invoke(main, ["usage", "--tenant", "acme", "--days", "36"]).exit_code == 2
