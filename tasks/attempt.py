"""One attempt of a step: claimed, begun if nothing speaks against it, done under a lease and a deadline, settled.

Owns the guards and their order. What a step does is in prompt.py, operation.py, completion.py and tool_call.py; what follows
it is carried out by settlement.py; which attempt may write is judged by the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import assert_never

import structlog
from celery import Task

from agent_exec.errors import (
    Cancelled,
    ExecutionError,
    InternalError,
    StepPoisoned,
    StepTimedOut,
    StorageError,
    TimedOut,
)
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, NotClaimed, StepRef
from agent_exec.script import Call
from tasks import retry
from tasks.journal import read_by
from tasks.leases import CANCELLED, HandBack, LeaseLost
from tasks.next_step import Fail, WaitUntil
from tasks.resources import Resources
from tasks.settlement import settle
from tasks.step import Done, Step

log = structlog.get_logger(__name__)


async def run_step(task: Task, ref: StepRef, do: Callable[[Step], Awaitable[Done]], *, limit_s: float) -> None:
    """Do the step that a hint names, if it is to be done now, within `limit_s`.

    `task` is the Celery task that the hint became.
    """
    resources: Resources = task.resources
    with structlog.contextvars.bound_contextvars(tenant_id=ref.tenant_id, execution_id=ref.execution_id, step=ref.step):
        claim = await resources.store.insist(
            ledger.claim(ref, lease_s=resources.settings.lease_s, worker=resources.worker, fields=read_by(ref.step))
        )
        match claim:
            case NotClaimed("newer"):
                await resources.store.insist(ledger.put_off(ref))
                log.info("step left to a newer worker")
            case NotClaimed(reason):
                log.debug("hint left alone", reason=reason)
            case Claimed():
                await _hold(Step(resources, claim, task.request.id), do, limit_s=limit_s)
            case other:
                assert_never(other)


async def end_at(resources: Resources, ref: StepRef) -> None:
    """End an execution at a step that nobody is to do any more: somebody asked for it, or its deadline has passed.

    Needs no hint and no slot, so neither a queue nor a cap is in its way.
    """
    with structlog.contextvars.bound_contextvars(tenant_id=ref.tenant_id, execution_id=ref.execution_id, step=ref.step):
        claim = await resources.store.insist(
            ledger.claim(ref, lease_s=resources.settings.lease_s, worker=resources.worker)
        )
        if isinstance(claim, Claimed):
            await _hold(Step(resources, claim, f"{ref.execution_id}.{ref.step}"), _nothing, limit_s=0)


async def _nothing(step: Step) -> Done:
    raise AssertionError(f"the step '{step.ref.step}' was to be ended, and not to be done")


async def _hold(step: Step, do: Callable[[Step], Awaitable[Done]], *, limit_s: float) -> None:
    store, hold = step.resources.store, step.claim.hold
    try:
        async with _handed_back_when_interrupted(step):
            refused = _refusal(step)
            if refused is not None:
                await settle(step, Done("null", [], Fail(refused)))
                return
            with step.resources.quarantine.entered(suspect=_is_suspect(step)) as entered:
                if entered:
                    await settle(step, await _attempt(step, do, limit_s=limit_s))
                    return
            # Not claimed while it waits: it would die with the one that is tried.
            await asyncio.gather(store.insist(ledger.release(hold)), store.insist(ledger.put_off(step.ref)))
    except LeaseLost:
        log.info("step left to another attempt")
    except HandBack:
        await store.insist(_hand_back(step))
        log.info("step handed back")
    except MemoryError:  # as if the worker had died of it: claimed again once the lease has lapsed, and counted
        log.critical("out of memory; the step is left to its lease", exc_info=True)


def _refusal(step: Step) -> ExecutionError | None:
    """Return why a claimed step is not even begun."""
    execution, settings = step.claim.execution, step.resources.settings
    if execution.cancel_requested:
        return Cancelled(CANCELLED)
    if execution.deadline_ms is not None and step.claim.now_ms >= execution.deadline_ms:
        return _too_late()
    if step.claim.attempt > settings.max_attempts:
        return StepPoisoned(
            f"The step '{step.ref.step}' was claimed {settings.max_attempts} times and its worker died each time; see the "
            "workers' logs."
        )
    return None


def _is_suspect(step: Step) -> bool:
    """Say whether workers have died under this step so often that this attempt is its last."""
    return 1 < step.claim.attempt == step.resources.settings.max_attempts


async def _attempt(step: Step, do: Callable[[Step], Awaitable[Done]], *, limit_s: float) -> Done:
    """Do the step under its lease and its limits; an error of the tree becomes what follows it."""
    try:
        async with step.resources.leases.keep(step.claim.hold), _limits(step, limit_s):
            return await do(step)
    except (LeaseLost, HandBack, MemoryError):
        raise
    except ExecutionError as error:
        log.warning("attempt failed", code=error.code, reason=str(error), retries=step.claim.retries)
        max_retries = step.resources.settings.max_retries
        follows = retry.after_failure(error, retries=step.claim.retries, max_retries=max_retries)
        if isinstance(follows, WaitUntil):
            return Done("null", [], dataclasses.replace(follows, note=step.note))
        return await step.failed(error)
    except Exception:
        log.exception("step broke")
        return await step.failed(InternalError("The service failed in this step; its log says how."))


@contextlib.asynccontextmanager
async def _limits(step: Step, limit_s: float) -> AsyncIterator[None]:
    """End the block at the execution's deadline, if it has one, and after `limit_s` in any case."""
    deadline_ms = step.claim.execution.deadline_ms
    left_s = float("inf") if deadline_ms is None else max(0.0, deadline_ms - step.now_ms()) / 1000
    try:
        async with asyncio.timeout(min(left_s, limit_s)) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        if left_s <= limit_s:
            raise _too_late() from None
        raise StepTimedOut(
            f"The step '{step.ref.step}' had not ended after {limit_s:g} s, longer than all that it waits for may take."
        ) from None


def _too_late() -> TimedOut:
    return TimedOut("The execution's deadline has passed; raise limits.deadline_s, or ask for less.")


@contextlib.asynccontextmanager
async def _handed_back_when_interrupted(step: Step) -> AsyncIterator[None]:
    """Give the step to another worker at once when this one stops in the middle of it."""
    try:
        yield
    except asyncio.CancelledError:
        with contextlib.suppress(StorageError):
            await asyncio.shield(step.resources.store.run(_hand_back(step)))
        raise


def _hand_back(step: Step) -> Call[str]:
    """Return the call that gives the step to another worker at once, with what it has noted meanwhile."""
    if step.note == step.claim.note:
        return ledger.release(step.claim.hold)
    return ledger.wait(step.claim.hold, due_in_s=0, events=[], note=step.note, counted=False)
