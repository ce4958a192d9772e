"""The guards round every step: claim, do under a lease and a deadline, record, send what follows.

Owns the order of these, and how each `Next` is carried out. What a step does is in prompt.py, operation.py, completion.py
and tool_call.py; what follows is decided in next_step.py and retry.py; what may be written is judged by the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import structlog
from celery import Task

from agent_exec import routing
from agent_exec.contract.event import (
    CompletedData,
    EventName,
    FailedData,
    ProgressData,
)
from agent_exec.contract.execution import FinalResponse
from agent_exec.errors import Cancelled as CancelledOnRequest
from agent_exec.errors import (
    ExecutionError,
    InternalError,
    StepPoisoned,
    StorageError,
    TimedOut,
)
from agent_exec.hint import Hint
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, Event, NotClaimed, StepRef
from agent_exec.script import Call
from tasks import response, retry
from tasks.journal import RETRIEVAL_STEP, Journal, Snapshot, completion_step, tool_call_step
from tasks.leases import HandBack, LeaseLost
from tasks.next_step import AskModel, CallTools, Fail, Finish, Join, Next, Retrieve, WaitUntil
from tasks.resources import Resources
from tasks.structured import parse_structured
from tasks.token_stream import TokenStream, token_event

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Step:
    """One claimed step, in the hands of the function that does it."""

    resources: Resources
    claim: Claimed
    task_id: str
    claimed_at: float = field(default_factory=time.monotonic)
    #: What the model says in this attempt, once it may speak; kept when the attempt fails.
    tokens: TokenStream | None = None
    #: What the steps before it have journaled.
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        """Read the journal that came with the claim."""
        self.journal = Journal(self.claim.execution)

    @property
    def ref(self) -> StepRef:
        """The step's names."""
        return self.claim.hold.ref

    @property
    def number(self) -> int:
        """The turn in the step's name."""
        return int(self.ref.step.split(".")[1])

    def now_ms(self) -> float:
        """Return Redis's time: what the claim said, and what has passed since."""
        return self.claim.now_ms + (time.monotonic() - self.claimed_at) * 1000

    async def tell(self, name: EventName, json: str) -> None:
        """Append one event."""
        await self.resources.store.insist(ledger.tell(self.claim.hold, [Event(name, json)]))


@dataclass(frozen=True, slots=True)
class Done:
    """What a step came to: the JSON to journal, the events to append with it, and what follows."""

    result: str
    events: Sequence[Event]
    next: Next
    #: Set by the prompt step: what it has just fixed, for the ledger to know plan and deadline.
    snapshot: Snapshot | None = None


async def run_step(task: Task, ref: StepRef, do: Callable[[Step], Awaitable[Done]]) -> None:
    """Do the step that a hint names, if it is to be done now; `task` is the Celery task that the hint became."""
    resources: Resources = task.resources
    with structlog.contextvars.bound_contextvars(tenant_id=ref.tenant_id, execution_id=ref.execution_id, step=ref.step):
        claim = await resources.store.insist(
            ledger.claim(ref, lease_s=resources.settings.lease_s, worker=resources.worker)
        )
        match claim:
            case NotClaimed(reason):
                log.debug("hint left alone", reason=reason)
            case Claimed():
                await _hold(Step(resources, claim, task.request.id), do)
            case other:
                assert_never(other)


async def _hold(step: Step, do: Callable[[Step], Awaitable[Done]]) -> None:
    try:
        async with _handed_back_when_interrupted(step):
            await _settle(step, await _attempt(step, do))
    except LeaseLost:
        log.info("step left to another attempt")
    except HandBack:
        await step.resources.store.insist(ledger.release(step.claim.hold))
        log.info("step handed back")


async def _attempt(step: Step, do: Callable[[Step], Awaitable[Done]]) -> Done:
    """Do the step under its lease and its deadline; an error of the tree becomes what follows it."""
    refused = _refusal(step)
    if refused is not None:
        return Done("null", [], Fail(refused))
    try:
        async with step.resources.leases.keep(step.claim.hold), _deadline(step):
            return await do(step)
    except (LeaseLost, HandBack):
        raise
    except ExecutionError as error:
        log.warning("attempt failed", code=error.code, reason=str(error), retries=step.claim.retries)
        max_retries = step.resources.settings.max_retries
        follows = retry.after_failure(error, retries=step.claim.retries, max_retries=max_retries)
        return Done("null", [], follows) if isinstance(follows, WaitUntil) else await _failed(step, error)
    except Exception:
        log.exception("step broke")
        return await _failed(step, InternalError("The service failed in this step; its log says how."))


async def _failed(step: Step, error: ExecutionError) -> Done:
    """The end, with what the model had said: the text that is recorded is the text that was told."""
    if step.tokens is None:
        return Done("null", [], Fail(error))
    rest = await step.tokens.rest()
    return Done("null", [token_event(rest)] if rest else [], Fail(error, partial=step.tokens.text))


def _refusal(step: Step) -> ExecutionError | None:
    """Return why a claimed step is not even begun."""
    execution, settings = step.claim.execution, step.resources.settings
    if execution.cancel_requested:
        return CancelledOnRequest("The execution was cancelled on request.")
    if execution.deadline_ms is not None and step.claim.now_ms >= execution.deadline_ms:
        return _too_late()
    if step.claim.attempt > settings.max_attempts:
        return StepPoisoned(
            f"The step '{step.ref.step}' was claimed {settings.max_attempts} times and its worker died each time; see the "
            "workers' logs."
        )
    return None


@contextlib.asynccontextmanager
async def _deadline(step: Step) -> AsyncIterator[None]:
    """End the block at the execution's deadline, if it has one."""
    deadline_ms = step.claim.execution.deadline_ms
    left_s = None if deadline_ms is None else max(0.0, deadline_ms - step.now_ms()) / 1000
    try:
        async with asyncio.timeout(left_s) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise _too_late() from None
        raise


def _too_late() -> TimedOut:
    return TimedOut("The execution's deadline has passed; raise limits.deadline_s, or ask for less.")


@contextlib.asynccontextmanager
async def _handed_back_when_interrupted(step: Step) -> AsyncIterator[None]:
    """Give the step to another worker at once when this one stops in the middle of it."""
    try:
        yield
    except asyncio.CancelledError:
        with contextlib.suppress(StorageError):
            await asyncio.shield(step.resources.store.run(ledger.release(step.claim.hold)))
        raise


async def _settle(step: Step, done: Done) -> None:
    """Carry out what follows: write it into the ledger, then send the hints."""
    hold, store = step.claim.hold, step.resources.store
    match done.next:
        case WaitUntil(due_in_s, error):
            progress = ProgressData(
                stage="waiting", step=step.ref.step, detail={"code": error.code, "due_in_s": round(due_in_s, 3)}
            )
            event = Event(EventName.PROGRESS, progress.model_dump_json())
            await _write(step, ledger.wait(hold, due_in_s=due_in_s, events=[*done.events, event]))
        case Join(turn):
            target = completion_step(turn + 1)
            verdict = await _write(
                step,
                ledger.join(hold, result=done.result, events=done.events, target=target, parent_id=step.task_id),
            )
            if verdict == "joined":
                await store.insist(_hint(step, target, _priority(step, done)).push())
        case Retrieve() | AskModel() | CallTools() as follows:
            await _continue(step, done, follows)
        case Finish(answer):
            try:
                structured = parse_structured(answer.text, step.journal.fixed.config.response_format)
            except ExecutionError as error:
                await _finish(step, done, _failure(step, Fail(error, answer=answer)))
            else:
                final = response.completed(step.journal, answer, structured=structured, at_ms=step.now_ms())
                await _finish(step, done, final)
        case Fail() as failure:
            await _finish(step, done, _failure(step, failure))
        case other:
            assert_never(other)


async def _continue(step: Step, done: Done, follows: Retrieve | AskModel | CallTools) -> None:
    names, join = _next_steps(follows)
    priority = _priority(step, done)
    deadline_s = done.snapshot.config.limits.deadline_s if done.snapshot is not None else None
    verdict = await _write(
        step,
        ledger.record(
            step.claim.hold,
            result=done.result,
            events=done.events,
            next_steps=names,
            parent_id=step.task_id,
            priority=priority,
            deadline_s=deadline_s,
            join=join,
        ),
    )
    if verdict in ("recorded", "done"):
        store = step.resources.store
        await asyncio.gather(*[store.insist(_hint(step, name, priority).push()) for name in names])


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
        ),
    )
    if verdict == "finished":
        log.info("execution ended", status=final.status, code=final.error.code if final.error else None)


async def _write(step: Step, call: Call[str]) -> str:
    """Write what the step came to; what the ledger refuses is another attempt's to say, or nobody's any more."""
    verdict = await step.resources.store.insist(call)
    if verdict in ledger.REFUSALS:
        log.warning("write refused", verdict=verdict, script=call.script.name)
    return verdict


def _failure(step: Step, failure: Fail) -> FinalResponse:
    return response.failed(
        step.journal, failure.error, answer=failure.answer, partial=failure.partial, at_ms=step.now_ms()
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
