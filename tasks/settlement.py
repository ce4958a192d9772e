"""What follows a step, carried out: its outcome written into the ledger, the hints of the next steps sent.

Owns how each `Next` is written. Whether it may be written is judged by the ledger, what it is was decided by next_step.py
and retry.py. Does not know how a step is done.
"""

from __future__ import annotations

import asyncio
from typing import assert_never

import structlog

from agent_exec import routing
from agent_exec.contract.event import CompletedData, EventName, FailedData, ProgressData
from agent_exec.contract.execution import FinalResponse
from agent_exec.errors import Cancelled, ExecutionError
from agent_exec.hint import Hint
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Event
from agent_exec.script import Call
from tasks import response
from tasks.journal import RETRIEVAL_STEP, Journal, completion_step, tool_call_step
from tasks.leases import CANCELLED
from tasks.next_step import AskModel, CallTools, Fail, Finish, Join, Retrieve, WaitUntil
from tasks.step import Done, Step
from tasks.structured import parse_structured

log = structlog.get_logger(__name__)


async def settle(step: Step, done: Done) -> None:
    """Carry out what follows a step, through an outage of Redis however long."""
    match done.next:
        case WaitUntil() as follows:
            await _wait(step, done, follows)
        case Join() as follows:
            await _join(step, done, follows)
        case Retrieve() | AskModel() | CallTools() as follows:
            await _continue(step, done, follows)
        case Finish(answer):
            try:
                structured = parse_structured(answer.text, step.journal.fixed.config.response_format)
            except ExecutionError as error:
                await _finish(step, done, await _failure(step, Fail(error, answer=answer)))
            else:
                final = response.completed(step.journal, answer, structured=structured, at_ms=step.now_ms())
                await _finish(step, done, final)
        case Fail() as failure:
            await _finish(step, done, await _failure(step, failure))
        case other:
            assert_never(other)


async def _wait(step: Step, done: Done, follows: WaitUntil) -> None:
    progress = ProgressData(
        stage="waiting",
        step=step.ref.step,
        detail={"code": follows.error.code, "due_in_s": round(follows.due_in_s, 3)},
    )
    event = Event(EventName.PROGRESS, progress.model_dump_json())
    await _write(step, ledger.wait(step.claim.hold, due_in_s=follows.due_in_s, events=[*done.events, event]))


async def _join(step: Step, done: Done, follows: Join) -> None:
    target = completion_step(follows.turn + 1)
    verdict = await _write(
        step,
        ledger.join(step.claim.hold, result=done.result, events=done.events, target=target, parent_id=step.task_id),
    )
    if verdict == "joined":
        await step.resources.store.insist(_hint(step, target, _priority(step, done)).push())


async def _continue(step: Step, done: Done, follows: Retrieve | AskModel | CallTools) -> None:
    """Write the outcome and send the hints in one round trip: they run in this order.

    A hint of a write that was refused does no harm: whoever takes it asks the ledger.
    """
    names, join = _next_steps(follows)
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
    )
    hints = [_hint(step, name, priority).push() for name in names]
    await asyncio.gather(_write(step, written), *[step.resources.store.insist(hint) for hint in hints])


def _next_steps(follows: Retrieve | AskModel | CallTools) -> tuple[list[str], str]:
    """Return the names of the steps that follow, and the one that waits for them all."""
    match follows:
        case Retrieve():
            return [RETRIEVAL_STEP], ""
        case AskModel(turn):
            return [completion_step(turn)], ""
        case CallTools(turn, count):
            return [tool_call_step(turn, index) for index in range(count)], completion_step(turn + 1)
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
            events=[*done.events, terminal],
            retention_s=step.resources.settings.retention_s,
            cancelled=code == Cancelled.code,
        ),
    )
    if verdict == "finished":
        log.info("execution ended", status=final.status, code=code)
    elif verdict == "cancelled":  # in the very moment of another end: what was said and paid stays
        end = done.next
        answer = end.answer if isinstance(end, Finish | Fail) else None
        partial = end.partial if isinstance(end, Fail) else ""
        await _finish(step, done, await _failure(step, Fail(Cancelled(CANCELLED), answer=answer, partial=partial)))


async def _write(step: Step, call: Call[str]) -> str:
    """Write what the step came to; what the ledger refuses is another attempt's to say, or nobody's any more."""
    verdict = await step.resources.store.insist(call)
    if verdict in ledger.REFUSALS:
        log.warning("write refused", verdict=verdict, script=call.script.name)
    return verdict


async def _failure(step: Step, failure: Fail) -> FinalResponse:
    """Return the response, with all that was journaled: a tool call's claim brought little, and others ran beside it."""
    record = await step.resources.store.insist(ledger.look(step.ref.tenant_id, step.ref.execution_id))
    return response.failed(
        Journal(record), failure.error, answer=failure.answer, partial=failure.partial, at_ms=step.now_ms()
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
