"""Each invariant finds what breaks it: good evidence passes, and each way of spoiling it is found, by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agent_exec import keys
from chaos.evidence import (
    Callback,
    Cancel,
    Death,
    Evidence,
    Execution,
    Logged,
    Notice,
    Outage,
    ProviderCall,
    Refusal,
    StoredKey,
    Submission,
    ToolCall,
)
from chaos.invariants import check

MARK, ID, TENANT, OWN = "mark-000001", "e1", "amber", "canary-amber"
TOOLS = [{"id": "c1", "name": "calculator", "error": None}, {"id": "c2", "name": "send_note", "error": None}]
RESPONSE: dict[str, Any] = {"status": "completed", "output": {"text": "7 is 7."}, "error": None, "tool_calls": TOOLS}
CANCELLED: dict[str, Any] = {
    "status": "failed",
    "output": {"text": ""},
    "error": {"code": "cancelled"},
    "tool_calls": [],
}
#: When, in ms, each event of the good execution came to be.
LOG = [
    ("agent_execution_started", 100, {}),
    ("tool_call_requested", 1_000, {"tool_call_id": "c1", "turn": 1}),
    ("tool_call_requested", 1_000, {"tool_call_id": "c2", "turn": 1}),
    ("tool_call_completed", 1_200, {"tool_call_id": "c1"}),
    ("tool_call_completed", 1_300, {"tool_call_id": "c2"}),
    ("agent_response_token", 1_800, {"token": "7 is"}),
    ("agent_response_token", 1_900, {"token": " 7."}),
    ("agent_execution_completed", 2_000, {"response": RESPONSE}),
]


def logged(events: list[tuple[str, int, Any]]) -> tuple[Logged, ...]:
    return tuple(
        Logged(sequence=number, event=event, at_ms=at_ms, data=told, digest=f"d{number}", canaries=(OWN,))
        for number, (event, at_ms, told) in enumerate(events, start=1)
    )


def noticed(log: tuple[Logged, ...], execution_id: str = ID) -> tuple[Notice, ...]:
    return tuple(
        Notice(
            execution_id=execution_id,
            tenant_id=TENANT,
            event_id=f"{execution_id}:{event.sequence}",
            sequence=event.sequence,
            event=event.event,
            at_ms=event.at_ms,
            digest=event.digest,
            canaries=event.canaries,
        )
        for event in log
    )


def called(turn: int, at_ms: int, *, worker: str = "worker-0.1", **changes: Any) -> ProviderCall:
    whole = {"ended_at_ms": at_ms + 500, "outcome": "finished", "canaries": (OWN,), **changes}
    return ProviderCall(mark=MARK, turn=turn, worker=worker, at_ms=at_ms, **whole)


def tool(name: str, tool_call_id: str, at_ms: int, *, key: str | None = None) -> ToolCall:
    return ToolCall(
        tenant_id=TENANT,
        execution_id=ID,
        tool=name,
        tool_call_id=tool_call_id,
        key=key or f"{ID}.{name}",
        at_ms=at_ms,
        canaries=(OWN,),
    )


EXECUTION = Execution(
    execution_id=ID,
    tenant_id=TENANT,
    mark=MARK,
    status="completed",
    log=logged(LOG),
    response=RESPONSE,
    answers=(RESPONSE,),
    celery=("SUCCESS", RESPONSE),
)
GOOD = Evidence(
    submissions=(
        Submission(mark=MARK, tenant_id=TENANT, execution_id=ID, accepted_at_ms=150),
        Submission(mark="mark-000002", tenant_id=TENANT),  # never answered, never stored
    ),
    calls=(called(1, 400), called(2, 1_400)),
    tool_calls=(tool("calculator", "c1", 1_100), tool("send_note", "c2", 1_100)),
    effects={f"{ID}.send_note": 1, f"{ID}.calculator": 1},
    notices=noticed(EXECUTION.log),
    executions=(EXECUTION,),
    deaths=(Death(name="notifier.1", at_ms=5_000, cause="asked"),),
    keys=(
        StoredKey(name=keys.execution(TENANT, ID), expires=True, size=9),
        StoredKey(name=keys.fair_virtual(), expires=False, size=2),
    ),
)
CALLED = Callback(tenant_id=TENANT, execution_id=ID, at_ms=2_050, digest="b1", canaries=(OWN,))
#: The good execution, whose caller asked to be called back, and was, twice.
CALLED_BACK = replace(GOOD, executions=(replace(EXECUTION, called_back=True),), callbacks=(CALLED, CALLED))
TWIN = replace(EXECUTION, execution_id="e2")
ENDED = replace(
    EXECUTION,
    status="failed",
    log=logged([LOG[0], ("agent_execution_failed", 2_000, {"response": CANCELLED})]),
    response=CANCELLED,
    answers=(CANCELLED,),
    celery=("FAILURE", {}),
)
#: Cancelled at 1,000, its call closed 200 ms later, its end at 2,000.
STOPPED = Evidence(
    submissions=(Submission(mark=MARK, tenant_id=TENANT, execution_id=ID, accepted_at_ms=150),),
    cancels=(Cancel(execution_id=ID, answered_at_ms=1_000, requested=True),),
    calls=(called(1, 400, ended_at_ms=1_200, outcome="disconnected"),),
    notices=noticed(ENDED.log),
    executions=(ENDED,),
)
KILL = Death(name="worker-0.1", at_ms=700, cause="killed", exit_code=-9)
#: The first call was cut by a kill, and repeated.
REPEATED = replace(
    GOOD,
    calls=(
        called(1, 400, ended_at_ms=701, outcome="disconnected"),
        called(1, 800, worker="worker-1.1"),
        called(2, 1_400, worker="worker-1.1"),
    ),
    deaths=(KILL,),
)


def of(execution: Execution, evidence: Evidence = GOOD) -> Evidence:
    """Put another execution in the place of the good one, its notices with it."""
    return replace(evidence, executions=(execution,), notices=noticed(execution.log))


def with_log(*events: tuple[str, int, Any]) -> Evidence:
    return of(replace(EXECUTION, log=logged(list(events))))


@pytest.mark.parametrize(
    "evidence",
    [GOOD, STOPPED, REPEATED, CALLED_BACK],
    ids=["good", "cancelled", "repeated by a kill", "called back twice"],
)
def test_evidence_of_a_promise_that_holds_breaks_nothing(evidence: Evidence) -> None:
    assert check(evidence) == []


SPOILT: dict[str, tuple[str, Evidence]] = {
    # I1
    "an accepted execution is gone": ("I1", replace(GOOD, executions=(), notices=(), calls=(), tool_calls=())),
    "an execution never ended": ("I1", with_log(*LOG[:-1])),
    "an execution failed though nobody cancelled it": ("I1", replace(STOPPED, cancels=())),
    "a client was refused": ("I1", replace(GOOD, refusals=(Refusal(mark=MARK, answer="500"),))),
    # I2
    "a key stands for two executions": (
        "I2",
        replace(GOOD, executions=(EXECUTION, TWIN), notices=GOOD.notices + noticed(TWIN.log, "e2")),
    ),
    "an execution that nobody submitted": ("I2", replace(GOOD, submissions=())),
    "the answer named another execution": (
        "I2",
        replace(GOOD, submissions=(replace(GOOD.submissions[0], execution_id="e9"),)),
    ),
    "two terminal events": ("I2", with_log(*LOG, LOG[-1])),
    "an event behind the terminal one": ("I2", with_log(*LOG, ("agent_execution_progress", 2_100, {}))),
    "the record has another status": ("I2", of(replace(EXECUTION, status="failed"))),
    "the record has another response": ("I2", of(replace(EXECUTION, response={**RESPONSE, "usage": 1}))),
    "two responses": ("I2", of(replace(EXECUTION, answers=(RESPONSE, RESPONSE)))),
    "no Celery result": ("I2", of(replace(EXECUTION, celery=None))),
    "another Celery result": ("I2", of(replace(EXECUTION, celery=("FAILURE", {})))),
    # I3
    "a sequence is missing": ("I3", of(replace(EXECUTION, log=EXECUTION.log[:3] + EXECUTION.log[4:]))),
    "a token was told twice": ("I3", with_log(*LOG[:7], LOG[6], LOG[7])),
    "a dead attempt's tokens are not void": (
        "I3",
        with_log(*LOG[:6], ("step_restarted", 1_850, {"step": "completion.2"}), *LOG[6:]),
    ),
    # I4
    "a call was repeated without a kill": ("I4", replace(REPEATED, deaths=())),
    "a call was repeated though its step was journaled before the kill": (
        "I4",
        replace(REPEATED, calls=(called(1, 400), called(1, 900), GOOD.calls[1]), deaths=(replace(KILL, at_ms=1_500),)),
    ),
    "a call that its worker had given up before the kill was repeated": (
        "I4",
        replace(REPEATED, calls=(called(1, 400, ended_at_ms=600, outcome="disconnected"), *REPEATED.calls[1:])),
    ),
    "a call began behind the journaling of its step": (
        "I4",
        replace(REPEATED, calls=(REPEATED.calls[0], called(1, 1_001), GOOD.calls[1])),
    ),
    "a call began behind the end": ("I4", replace(GOOD, calls=(GOOD.calls[0], called(2, 2_001)))),
    "a call for nobody": ("I4", replace(GOOD, calls=(*GOOD.calls, replace(GOOD.calls[0], mark="mark-000009")))),
    "a tool's result was told twice": ("I4", with_log(*LOG[:4], LOG[3], *LOG[4:])),
    "a tool was called that the response does not know": (
        "I4",
        with_log(*LOG[:5], ("tool_call_completed", 1_400, {"tool_call_id": "c3"}), *LOG[5:]),
    ),
    "a tool was called behind its step's end": (
        "I4",
        replace(GOOD, tool_calls=(*GOOD.tool_calls, tool("calculator", "c1", 1_250))),
    ),
    "a tool was called under two keys": (
        "I4",
        replace(GOOD, tool_calls=(*GOOD.tool_calls, tool("calculator", "c1", 1_150, key="another"))),
    ),
    "a tool with an effect was asked twice": (
        "I4",
        replace(GOOD, tool_calls=(*GOOD.tool_calls, tool("send_note", "c2", 1_150))),
    ),
    "a tool took effect twice": ("I4", replace(GOOD, effects={f"{ID}.send_note": 2})),
    "a tool call for nobody": (
        "I4",
        replace(GOOD, tool_calls=(*GOOD.tool_calls, replace(GOOD.tool_calls[0], execution_id="e9"))),
    ),
    # I5
    "a notice is missing": ("I5", replace(GOOD, notices=GOOD.notices[:-1])),
    "notices in another order": (
        "I5",
        replace(GOOD, notices=(GOOD.notices[1], GOOD.notices[0], *GOOD.notices[2:])),
    ),
    "a notice unlike the log's": (
        "I5",
        replace(GOOD, notices=(replace(GOOD.notices[0], digest="x"), *GOOD.notices[1:])),
    ),
    "a notice repeated unlike itself": (
        "I5",
        replace(GOOD, notices=(*GOOD.notices, replace(GOOD.notices[0], digest="x"))),
    ),
    "a notice of an event that the log lost": (
        "I5",
        replace(GOOD, executions=(replace(EXECUTION, log=EXECUTION.log[:-1]),)),
    ),
    "a notice of an execution that is not stored": (
        "I5",
        replace(GOOD, notices=(*GOOD.notices, replace(GOOD.notices[0], execution_id="e9"))),
    ),
    "a frame that breaks the contract": (
        "I5",
        replace(GOOD, notices=(*GOOD.notices, replace(GOOD.notices[0], fault="no such event"))),
    ),
    "who asked for it was not called back": ("I5", replace(CALLED_BACK, callbacks=())),
    "a callback that nobody asked for": ("I5", replace(GOOD, callbacks=(CALLED,))),
    "a callback of an execution that is not stored": (
        "I5",
        replace(GOOD, callbacks=(replace(CALLED, execution_id="e9"),)),
    ),
    "a callback before the end": ("I5", replace(CALLED_BACK, callbacks=(replace(CALLED, at_ms=1_999),))),
    "a callback whose signature does not hold": (
        "I5",
        replace(CALLED_BACK, callbacks=(CALLED, replace(CALLED, fault="No matching signature found"))),
    ),
    "callbacks of two bodies": ("I5", replace(CALLED_BACK, callbacks=(CALLED, replace(CALLED, digest="b2")))),
    # I6
    "a step is left in the due-time set": (
        "I6",
        replace(GOOD, keys=(StoredKey(name=keys.pending(), expires=False, size=1),)),
    ),
    "a lease is left": ("I6", replace(GOOD, keys=(StoredKey(name=keys.fair_lease(), expires=False, size=1),))),
    "a message is left": ("I6", replace(GOOD, keys=(StoredKey(name=keys.fair_message(), expires=False, size=1),))),
    "events are left in the outbox": (
        "I6",
        replace(GOOD, keys=(StoredKey(name=keys.outbox(), expires=False, size=1),)),
    ),
    "a callback was given up": (
        "I6",
        replace(GOOD, keys=(StoredKey(name=keys.callbacks_dead(TENANT), expires=True, size=1),)),
    ),
    "a dead letter": ("I6", replace(GOOD, keys=(StoredKey(name=keys.fair_dead(), expires=True, size=1),))),
    "an immortal key": ("I6", replace(GOOD, keys=(StoredKey(name=keys.execution(TENANT, ID), expires=False, size=9),))),
    "a key that nobody knows": ("I6", replace(GOOD, keys=(StoredKey(name="mine", expires=True, size=1),))),
    "a process is left": ("I6", replace(GOOD, stragglers=("worker-0.1",))),
    "a process ended by itself": ("I6", replace(GOOD, deaths=(replace(KILL, cause="itself", exit_code=1),))),
    "a process ended badly": ("I6", replace(GOOD, deaths=(replace(KILL, cause="asked", exit_code=1),))),
    # I7
    "an event holds another tenant's text": (
        "I7",
        of(replace(EXECUTION, log=(replace(EXECUTION.log[0], canaries=("canary-birch",)), *EXECUTION.log[1:]))),
    ),
    "a prompt holds another tenant's text": (
        "I7",
        replace(GOOD, calls=(called(1, 400, canaries=(OWN, "canary-birch")), GOOD.calls[1])),
    ),
    "a tool call holds another tenant's text": (
        "I7",
        replace(GOOD, tool_calls=(replace(GOOD.tool_calls[0], canaries=("canary-birch",)), GOOD.tool_calls[1])),
    ),
    "a frame holds another tenant's text": (
        "I7",
        replace(GOOD, notices=(replace(GOOD.notices[0], canaries=("canary-birch",)), *GOOD.notices[1:])),
    ),
    "an execution belongs to another tenant": ("I7", of(replace(EXECUTION, tenant_id="birch"))),
    "a frame names another tenant": (
        "I7",
        replace(GOOD, notices=(replace(GOOD.notices[0], tenant_id="birch"), *GOOD.notices[1:])),
    ),
    "a tool call names another tenant": (
        "I7",
        replace(GOOD, tool_calls=(replace(GOOD.tool_calls[0], tenant_id="birch"), GOOD.tool_calls[1])),
    ),
    "a callback holds another tenant's text": (
        "I7",
        replace(CALLED_BACK, callbacks=(replace(CALLED, canaries=("canary-birch",)),)),
    ),
    "a callback went to another tenant": ("I7", replace(CALLED_BACK, callbacks=(replace(CALLED, tenant_id="birch"),))),
    # I8
    "a cancelled execution completed": ("I8", replace(GOOD, cancels=STOPPED.cancels)),
    "a cancel came too late, it was said, and the end came later": (
        "I8",
        replace(STOPPED, cancels=(replace(STOPPED.cancels[0], requested=False),)),
    ),
    "a cancelled call stayed open": (
        "I8",
        replace(STOPPED, calls=(called(1, 400, ended_at_ms=2_001, outcome="disconnected"),)),
    ),
    "a cancelled call was never closed": (
        "I8",
        replace(STOPPED, calls=(called(1, 400, ended_at_ms=None, outcome="open"),)),
    ),
    "a call began long behind the cancel": (
        "I8",
        replace(STOPPED, cancels=(replace(STOPPED.cancels[0], answered_at_ms=-3_000),)),
    ),
    "a call began long behind the cancelled end": (
        "I8",
        replace(STOPPED, calls=(called(1, 3_001, ended_at_ms=3_002, outcome="disconnected"),)),
    ),
}


@pytest.mark.parametrize(("invariant", "evidence"), SPOILT.values(), ids=SPOILT.keys())
def test_each_way_of_breaking_the_promise_is_found(invariant: str, evidence: Evidence) -> None:
    violations = check(evidence)

    assert invariant in {violation.invariant for violation in violations}
    for violation in violations:
        assert violation.subject
        assert violation.expected
        assert violation.seen


EXCUSED: dict[str, Callable[[], Evidence]] = {
    "the notices came twice, in order": lambda: replace(GOOD, notices=GOOD.notices[:4] + GOOD.notices),
    "an unanswered submission was stored": lambda: replace(
        GOOD, submissions=(Submission(mark=MARK, tenant_id=TENANT),)
    ),
    "the socket was closed late, Redis being away": lambda: replace(
        STOPPED,
        calls=(called(1, 400, ended_at_ms=1_990, outcome="disconnected"),),
        outages=(Outage(from_ms=1_100, until_ms=1_600), Outage(from_ms=1_300, until_ms=1_700)),
    ),
    "a request that was on its way was read behind the cancelled end": lambda: replace(
        STOPPED, calls=(called(1, 2_250, ended_at_ms=2_251, outcome="disconnected"),)
    ),
    "a worker died behind its last journaling": lambda: replace(GOOD, deaths=(replace(KILL, at_ms=3_000),)),
    "a cancel came when all was over": lambda: replace(
        GOOD, cancels=(Cancel(execution_id=ID, answered_at_ms=2_000, requested=False),)
    ),
}


@pytest.mark.parametrize("evidence", EXCUSED.values(), ids=EXCUSED.keys())
def test_what_the_promise_allows_is_no_violation(evidence: Callable[[], Evidence]) -> None:
    assert check(evidence()) == []


def test_a_slow_machine_is_given_more_time() -> None:
    _, slow = SPOILT["a cancelled call stayed open"]

    assert check(slow, patience=2) == []
