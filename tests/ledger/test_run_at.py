"""An execution that is to run later: it waits, its deadline counts from then, and it can be cancelled before."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from agent_exec import submission
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.message import Message
from agent_exec.errors import InvalidMessage
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Acceptance, Claimed, NotClaimed, StepRef
from tests.ledger.clocked import ClockedStore

HOUR_MS = 3_600_000
WEEK_S = 604_800


@pytest.fixture
def clocked(redis_url: str) -> Iterator[ClockedStore]:
    store = ClockedStore(redis_url)
    yield store
    store.close()


def accept(store: ClockedStore, *, in_ms: int, deadline_s: float | None = None) -> tuple[Message, Acceptance]:
    """Accept an execution that is to run so long after now, by the played clock."""
    at = datetime.fromtimestamp(store.now_ms / 1000, UTC) + timedelta(milliseconds=in_ms)
    request = ExecutionRequest(agent_id="desk", query="?", run_at=at, deadline_s=deadline_s)
    message = submission.message_of(request, tenant_id="acme")
    return message, store.run(submission.store(message, open_retention_s=WEEK_S, max_queued=9))


def claim(store: ClockedStore, message: Message) -> Claimed | NotClaimed:
    return store.run(ledger.claim(StepRef("acme", message.execution_id, "prompt"), lease_s=30, worker="w"))


def test_it_waits_until_then_and_is_due_at_that_very_moment(clocked: ClockedStore) -> None:
    message, accepted = accept(clocked, in_ms=HOUR_MS)
    assert not accepted.begins, "no hint is sent before"
    again = clocked.run(submission.store(message, open_retention_s=WEEK_S, max_queued=9))
    assert (again.replayed, again.begins) == (True, False)
    view = clocked.run(ledger.look("acme", message.execution_id)).view(message.execution_id)
    assert (view.status, view.runs_at) == ("pending", message.metadata.run_at)
    for pass_ms in (0, HOUR_MS - 1):
        clocked.advance(pass_ms)
        assert isinstance(claim(clocked, message), NotClaimed)
        assert clocked.run(ledger.due()).hints == ()
    clocked.advance(1)
    [hint] = clocked.run(ledger.due()).hints
    assert (hint.execution_id, hint.step) == (message.execution_id, "prompt")
    assert isinstance(claim(clocked, message), Claimed)


@pytest.mark.parametrize("in_ms", [0, -HOUR_MS])
def test_a_time_that_has_passed_is_now(clocked: ClockedStore, in_ms: int) -> None:
    message, accepted = accept(clocked, in_ms=in_ms)
    assert accepted.begins
    assert clocked.run(ledger.look("acme", message.execution_id)).runs_at is None
    assert isinstance(claim(clocked, message), Claimed)


def test_its_deadline_counts_from_then(clocked: ClockedStore) -> None:
    message, _ = accept(clocked, in_ms=HOUR_MS, deadline_s=60)
    assert clocked.run(ledger.look("acme", message.execution_id)).deadline_ms == clocked.now_ms + HOUR_MS + 60_000
    clocked.advance(HOUR_MS)
    claimed = claim(clocked, message)
    assert isinstance(claimed, Claimed)
    recorded = ledger.record(
        claimed.hold, result="{}", events=[], next_steps=["completion.1"], parent_id="p", priority=5, deadline_s=30
    )
    clocked.run(recorded)
    assert clocked.run(ledger.look("acme", message.execution_id)).deadline_ms == clocked.now_ms + 30_000


def test_a_cancel_before_it_ends_it_at_once(clocked: ClockedStore) -> None:
    message, _ = accept(clocked, in_ms=HOUR_MS)
    clocked.run(ledger.cancel("acme", message.execution_id))
    due = clocked.run(ledger.due())
    assert [ref.execution_id for ref in due.ends] == [message.execution_id]


def test_one_that_would_be_forgotten_before_is_refused() -> None:
    later = datetime.now(UTC) + timedelta(seconds=WEEK_S)
    message = submission.message_of(ExecutionRequest(agent_id="desk", query="?", run_at=later), tenant_id="acme")
    with pytest.raises(InvalidMessage, match="run_at"):
        submission.store(message, open_retention_s=WEEK_S, max_queued=9)


@pytest.mark.parametrize("written", ["0", '"0"', '"2026-01-01"', '"2026-01-01T00:00:00"', "true", '"tomorrow"'])
def test_a_moment_is_written_out_with_its_zone(written: str) -> None:
    with pytest.raises(ValueError, match="run_at"):
        ExecutionRequest.model_validate_json(f'{{"agent_id": "desk", "query": "?", "run_at": {written}}}')
