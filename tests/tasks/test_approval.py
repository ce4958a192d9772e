"""The approval of a tool call: asked for once, awaited by nobody's slot, heard, and what the model reads instead."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent_exec import approval
from agent_exec.contract.approval import Approval
from agent_exec.errors import AlreadyResolved, NotAwaitingApproval, NotFound
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed
from tasks.journal import JournaledCall
from tasks.neighbours.http import Neighbour
from tasks.neighbours.registry import ToolRegistry
from tasks.neighbours.tools import Tools
from tasks.tool_call import call_tool
from tests.tasks.conftest import Bench, Played, drops, saying
from tests.tasks.test_tool_call import STEP, ask

YES, NO = Approval(approved=True), Approval(approved=False, reason="Lima is out of bounds.")


@pytest.fixture
async def desk(bench: Bench, neighbour: Neighbour) -> Bench:
    """The execution, whose tools are behind a played registry."""
    bench.others["tools"] = Tools(ToolRegistry(neighbour, ttl_s=60), {})
    return bench


async def asked(desk: Bench, **tool: Any) -> None:
    """Bring a call to where it waits for approval."""
    await ask(desk, requires_approval=True, **tool)
    await desk.run(STEP, call_tool)
    assert await is_parked(desk)


async def is_parked(desk: Bench) -> bool:
    record = await desk.record()
    return record.view(desk.execution_id).awaiting_approval == ["call_1"] and record.result(STEP) is None


async def resolve(desk: Bench, decision: Approval, *, tenant_id: str = "acme") -> approval.Resolved:
    resolved: approval.Resolved = await desk.store.run(
        approval.resolve(tenant_id, desk.execution_id, "call_1", decision)
    )
    return resolved


async def outcome(desk: Bench) -> JournaledCall:
    """Return what the call came to, for the model to read."""
    stored = (await desk.record()).result(STEP)
    assert stored is not None, await desk.logged()
    return JournaledCall.model_validate_json(stored)


async def test_a_call_waits_for_its_approval_and_then_runs_once(desk: Bench, played: Played) -> None:
    """S33."""
    played.answers = [saying({"result": "grey"})]
    before = datetime.now(UTC)
    await asked(desk, effect="effect")
    event = (await desk.events())[-1]
    told = json.loads(event.json)
    expires_at = datetime.fromisoformat(told.pop("expires_at"))
    assert timedelta(0) < expires_at - before <= timedelta(seconds=901), "the deadline comes before the hour"
    assert (event.name, told) == (
        "tool_approval_requested",
        {"tool_call_id": "call_1", "name": "weather", "arguments": {"city": "Lima"}, "turn": 1},
    )
    assert played.requests == []
    await desk.run(STEP, call_tool)
    assert await is_parked(desk), "a hint too many changes nothing"
    resolved = await resolve(desk, YES)
    assert resolved.hint is not None
    assert resolved.hint.step == STEP
    await desk.run(STEP, call_tool)
    assert (await outcome(desk)).result == "grey"
    [request] = played.requests
    assert request.headers["Idempotency-Key"] == f"{desk.execution_id}.{STEP}"
    assert (await desk.logged()).count("tool_approval_requested") == 1


async def test_a_rejection_is_what_the_model_reads(desk: Bench, played: Played) -> None:
    await asked(desk)
    await resolve(desk, NO)
    await desk.run(STEP, call_tool)
    error = (await outcome(desk)).error
    assert error is not None
    assert (error.code, error.message) == (
        "approval_rejected",
        "A person has rejected the call of 'weather': Lima is out of bounds.",
    )
    assert played.requests == []
    assert (await desk.logged())[-1] == "tool_call_completed"


async def test_an_approval_that_nobody_gives_expires_and_none_is_taken_then(desk: Bench, played: Played) -> None:
    desk.settings = desk.settings.model_copy(update={"approval_timeout_s": 0.05})
    await asked(desk)
    await desk.become_due()
    with pytest.raises(NotAwaitingApproval):
        await resolve(desk, YES)
    await desk.run(STEP, call_tool)
    error = (await outcome(desk)).error
    assert error is not None
    assert error.code == "approval_expired"
    assert played.requests == []
    assert (await desk.logged()).count("tool_approval_requested") == 1


async def test_arguments_are_checked_before_anybody_is_asked(desk: Bench) -> None:
    await ask(desk, "{}", requires_approval=True)
    await desk.run(STEP, call_tool)
    error = (await outcome(desk)).error
    assert error is not None
    assert error.code == "invalid_arguments"
    assert "tool_approval_requested" not in await desk.logged()


async def test_the_first_decision_stands_and_said_again_it_is_the_same(desk: Bench) -> None:
    with pytest.raises(NotAwaitingApproval):
        await resolve(desk, YES)
    await asked(desk)
    with pytest.raises(NotFound):
        await resolve(desk, YES, tenant_id="globex")
    assert [(await resolve(desk, decision)).approval for decision in (NO, NO, Approval(approved=False))] == [NO] * 3
    with pytest.raises(AlreadyResolved):
        await resolve(desk, YES)
    await desk.run(STEP, call_tool)
    assert (await resolve(desk, NO)).approval == NO, "even when the call is over"


async def test_an_approval_is_no_word_for_whatever_else_a_step_may_await(desk: Bench) -> None:
    claim = await desk.store.run(ledger.claim(desk.ref("prompt"), lease_s=5, worker="w"))
    assert isinstance(claim, Claimed)
    await desk.store.run(ledger.wait(claim.hold, due_in_s=60, events=[], awaits="call_1"))
    with pytest.raises(NotAwaitingApproval):
        await resolve(desk, YES)


@pytest.mark.parametrize(("effect", "runs_again"), [("idempotent", True), ("effect", False)])
async def test_a_worker_that_dies_after_the_approval_repeats_what_its_class_allows(
    desk: Bench, played: Played, effect: str, runs_again: bool
) -> None:
    played.answers = [saying({"result": "grey"})]
    await asked(desk, effect=effect)
    await resolve(desk, YES)
    died = await desk.store.run(ledger.claim(desk.ref(STEP), lease_s=0, worker="dead"))
    assert isinstance(died, Claimed)
    if not runs_again:
        assert await desk.store.run(ledger.mark(died.hold, note="sent")) == "marked"
    await desk.run(STEP, call_tool)
    done = await outcome(desk)
    assert (done.result, done.error and done.error.code) == (("grey", None) if runs_again else (None, "in_doubt"))
    assert len(played.requests) == runs_again


async def test_an_effect_that_was_approved_and_never_begun_is_not_in_doubt(desk: Bench, played: Played) -> None:
    played.answers = [saying({"result": "grey"})]
    await asked(desk, effect="effect")
    await resolve(desk, YES)
    assert isinstance(await desk.store.run(ledger.claim(desk.ref(STEP), lease_s=0, worker="dead")), Claimed)
    await desk.run(STEP, call_tool)
    assert (await outcome(desk)).result == "grey"


async def test_a_registry_that_fails_after_the_approval_is_asked_again_and_nobody_else(
    desk: Bench, played: Played
) -> None:
    played.answers = [drops, saying({"result": "grey"})]
    await asked(desk, effect="idempotent")
    await resolve(desk, YES)
    await desk.run(STEP, call_tool)
    assert (await desk.record()).view(desk.execution_id).awaiting_approval == []
    await desk.become_due()
    await desk.run(STEP, call_tool)
    assert (await outcome(desk)).result == "grey"
    assert (await desk.logged()).count("tool_approval_requested") == 1


@pytest.mark.parametrize("end", ["cancelled", "timed_out"])
async def test_a_parked_execution_ends_at_once_when_it_has_to(desk: Bench, end: str) -> None:
    await asked(desk)
    if end == "cancelled":
        await desk.store.run(ledger.cancel("acme", desk.execution_id))
    else:
        key = f"ax:execution:acme:{desk.execution_id}"
        await desk.store.redis.hset(key, "deadline_ms", 1)
    with pytest.raises(NotAwaitingApproval):
        await resolve(desk, YES)
    await desk.run(STEP, call_tool)
    final = await desk.response()
    assert final.error is not None
    assert final.error.code == end
    with pytest.raises(NotAwaitingApproval):
        await resolve(desk, YES)
