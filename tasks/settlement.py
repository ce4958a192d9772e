"""What follows a step, carried out: its outcome written into the ledger, the hints of the next steps sent.

Owns how each `Next` is written. Whether it may be written is judged by the ledger, what it is was decided by next_step.py
and retry.py. Does not know how a step is done.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar, assert_never

import structlog

from agent_exec import routing
from agent_exec.contract.agent import Plan
from agent_exec.contract.event import CompletedData, EventName, FailedData, ProgressData
from agent_exec.contract.execution import FinalResponse
from agent_exec.contract.model import JsonObject
from agent_exec.errors import Cancelled
from agent_exec.hint import Hint
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Event, Finished
from agent_exec.script import Call
from tasks import next_step, response
from tasks.image_links import image_hosts
from tasks.journal import RANKING_STEP, RETRIEVAL_STEP, Journal, completion_step, summary_step, tool_call_step
from tasks.leases import CANCELLED
from tasks.next_step import (
    Ask,
    AskModel,
    CallTools,
    Defer,
    Fail,
    Finish,
    Join,
    Park,
    Rank,
    Retrieve,
    Summarise,
    WaitUntil,
)
from tasks.pace import MAX_EVENTS
from tasks.step import Done, Step

T = TypeVar("T")
log = structlog.get_logger(__name__)


async def settle(step: Step, done: Done) -> None:
    """Carry out what follows a step, through an outage of Redis however long."""
    match done.next:
        case WaitUntil(due_in_s, error, note):
            events = [*done.events, *_waiting(step, due_in_s, code=error.code)]
            await _write(step, ledger.wait(step.claim.hold, due_in_s=due_in_s, events=events, note=note))
            if due_in_s == 0:  # at once: the due-time set is looked at every now and then
                await step.resources.store.insist(_hint(step, step.ref.step, _priority(step, done)).push())
        case Defer(due_in_s, code, note):
            events = [*done.events, *_waiting(step, due_in_s, code=code)]
            await _write(step, ledger.wait(step.claim.hold, due_in_s=due_in_s, events=events, note=note, counted=False))
        case Park(due_in_s, awaits, note):
            parked = ledger.wait(
                step.claim.hold, due_in_s=due_in_s, events=done.events, note=note, counted=False, awaits=awaits
            )
            await _write(step, parked)
        case Join() as follows:
            await _join(step, done, follows)
        case Retrieve() | Rank() | Summarise() | AskModel() | CallTools() as follows:
            await _continue(step, done, follows)
        case Finish(answer, structured):
            final = response.completed(step.journal, answer, structured=structured, at_ms=step.now_ms())
            await _finish(step, done, final)
        case Fail() as failure:
            await _finish(step, done, await _failure(step, failure))
        case other:
            assert_never(other)


def _waiting(step: Step, due_in_s: float, *, code: str) -> list[Event]:
    """Tell of a wait, unless the execution has its fill of events: a step may be put off every few seconds for a day."""
    if int(step.claim.execution.fields.get("sequence", 0)) >= MAX_EVENTS:
        return []
    detail: JsonObject = {"code": code, "due_in_s": round(due_in_s, 3)}
    progress = ProgressData(stage="waiting", step=step.ref.step, detail=detail)
    return [Event(EventName.PROGRESS, progress.model_dump_json())]


async def _join(step: Step, done: Done, follows: Join) -> None:
    target = _name(next_step.ask(step.journal.fixed.config, turn=follows.turn + 1))
    answer = await _write(
        step,
        ledger.join(step.claim.hold, result=done.result, events=done.events, target=target, parent_id=step.task_id),
    )
    verdict, _, opened = answer.partition(" ")
    created = target if verdict == "joined" else opened
    if created:
        await step.resources.store.insist(_hint(step, created, _priority(step, done)).push())


async def _continue(step: Step, done: Done, follows: Retrieve | Rank | Ask | CallTools) -> None:
    """Write the outcome and send the hints in one round trip: they run in this order.

    A hint of a write that was refused does no harm: whoever takes it asks the ledger.
    """
    names, join = _next_steps(follows, step)
    at_once = _tools_at_once(step) if isinstance(follows, CallTools) else len(names)
    names, later = names[:at_once], names[at_once:]
    priority = _priority(step, done)
    written = ledger.record(
        step.claim.hold,
        result=done.result,
        events=done.events,
        next_steps=names,
        parent_id=step.task_id,
        priority=priority,
        deadline_s=done.snapshot.config.limits.deadline_s if done.snapshot is not None else None,
        join=join,
        later=later,
    )
    hints = [_hint(step, name, priority).push() for name in names]
    await asyncio.gather(_write(step, written), *[step.resources.store.insist(hint) for hint in hints])


def _tools_at_once(step: Step) -> int:
    """Return how many tool calls of one turn run at once; the others begin as these end, and hold no slot until then."""
    parallel = step.journal.fixed.config.parallel_tool_calls
    return step.resources.settings.max_parallel_tools if parallel else 1


def _next_steps(follows: Retrieve | Rank | Ask | CallTools, step: Step) -> tuple[list[str], str]:
    """Return the names of the steps that follow, and the one that waits for them all."""
    if isinstance(follows, CallTools):
        then = next_step.ask(step.journal.fixed.config, turn=follows.turn + 1)
        return [tool_call_step(follows.turn, index) for index in range(follows.count)], _name(then)
    return [_name(follows)], ""


def _name(follows: Retrieve | Rank | Ask) -> str:
    match follows:
        case Retrieve():
            return RETRIEVAL_STEP
        case Rank():
            return RANKING_STEP
        case Summarise(turn):
            return summary_step(turn)
        case AskModel(turn):
            return completion_step(turn)
        case other:
            assert_never(other)


async def _finish(step: Step, done: Done, final: FinalResponse) -> None:
    code = final.error.code if final.error is not None else None
    if final.error is None:
        terminal = Event(EventName.COMPLETED, CompletedData(response=final).model_dump_json())
    else:
        terminal = Event(EventName.FAILED, FailedData(error=final.error, response=final).model_dump_json())
    verdict = await _write(
        step,
        ledger.finish(
            step.claim.hold,
            result=done.result,
            status=final.status,
            response=final.model_dump_json(),
            celery_result=response.celery_result(final),
            events=[*done.events, *_flagged(step, final.output.text), terminal],
            retention_s=step.resources.settings.retention_of_s(_plan(step, done)),
            cancelled=code == Cancelled.code,
        ),
    )
    if isinstance(verdict, Finished):
        log.info("execution ended", status=final.status, code=code)
        if verdict.hint is not None:
            await step.resources.store.insist(verdict.hint.push())
        if step.claim.execution.batched:
            step.resources.batches.stir()
        if step.claim.execution.linked:
            await step.resources.links.send(step.ref.tenant_id, step.ref.execution_id)
    elif verdict == "cancelled":  # in the very moment of another end: what was said and paid stays
        end = done.next
        answer = end.answer if isinstance(end, Finish | Fail) else None
        partial = end.partial if isinstance(end, Fail) else ""
        await _finish(step, done, await _failure(step, Fail(Cancelled(CANCELLED), answer=answer, partial=partial)))


def _plan(step: Step, done: Done) -> Plan | None:
    snapshot = done.snapshot or step.journal.snapshot
    return None if snapshot is None else snapshot.tenant.plan


def _flagged(step: Step, text: str) -> list[Event]:
    """A warning to those who show the answer: its images would be fetched from elsewhere, and may carry something there."""
    hosts = image_hosts(text)
    if not hosts:
        return []
    log.warning("answer with images", hosts=hosts)
    progress = ProgressData(stage="flagged", step=step.ref.step, detail={"image_hosts": [*hosts]})
    return [Event(EventName.PROGRESS, progress.model_dump_json())]


async def _write(step: Step, call: Call[T]) -> T:
    """Write what the step came to; what the ledger refuses is another attempt's to say, or nobody's any more."""
    verdict = await step.resources.store.insist(call)
    if verdict in ledger.REFUSALS:
        log.warning("write refused", verdict=verdict, script=call.script.name)
    return verdict


async def _failure(step: Step, failure: Fail) -> FinalResponse:
    """Return the response, with all that was journaled: a tool call's claim brought little, and others ran beside it."""
    record = await step.resources.store.insist(ledger.look(step.ref.tenant_id, step.ref.execution_id))
    return response.failed(
        Journal(record),
        failure.error,
        answer=failure.answer,
        partial=failure.partial,
        cut_off=step.cut_off,
        at_ms=step.now_ms(),
    )


def _priority(step: Step, done: Done) -> int:
    snapshot = done.snapshot or step.journal.fixed
    return routing.priority(
        step.claim.execution.wish,
        plan=snapshot.tenant.plan,
        agent_type=snapshot.config.agent_type,
        started=True,
    )


def _hint(step: Step, name: str, priority: int) -> Hint:
    return Hint(
        tenant_id=step.ref.tenant_id,
        agent_id=step.claim.execution.agent_id,
        execution_id=step.ref.execution_id,
        step=name,
        priority=priority,
        parent_id=step.task_id,
    )
