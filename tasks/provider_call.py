"""One call of a model: on a route, within limits, breaker and budget, and paid for however it ends.

Owns what is asked before a call, and that what a call has used is counted on every way out: answered, failed, cut off,
cancelled, handed back. Which model is asked is decided by route.py, how much of it by allowance.py. Does not know what a
model is asked for, nor what its answer means.

    match await passage(step, request_for):
        case Passage() as passed:
            try:
                async with paid(step, passed) as call, call as deltas:
                    ...
            except ProviderError as error:
                return after_failure(step, passed, error)
        case follows:                                      # nothing is reserved, and nothing was asked
            return Done("null", [], follows)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import assert_never

import structlog

from agent_exec.contract.agent import ModelChoice
from agent_exec.contract.completion import CompletionRequest, Usage
from agent_exec.contract.model import JsonObject
from agent_exec.errors import BudgetExceeded, ProviderError, ProviderOverloaded, ProviderRateLimited, StorageError
from agent_exec.script import Call
from agent_exec.spending import reservation
from agent_exec.spending.reservation import Attempt, OverBudget, Reserved
from providers import limits
from providers.limits import Admitted, Asker, Broken, Deferred, Lane
from providers.provider import Delta, Provider
from tasks.allowance import within_limits
from tasks.next_step import Defer, Fail, WaitUntil
from tasks.route import Ask, GiveUp, Pause, Route
from tasks.step import Step
from tasks.window import MAX_TIGHTENED

log = structlog.get_logger(__name__)

#: What a call may take beyond its total time, to be closed and told of.
BESIDES_S = 30.0
#: How soon to look again whether calls under way have left something of what was reserved for them.
BUDGET_AGAIN_S = 2.0

#: Makes what a model is asked, and what the event tells of it.
RequestFor = Callable[[Ask], tuple[CompletionRequest, JsonObject]]


@dataclass(frozen=True, slots=True)
class Passage:
    """Leave to make one call, now. `detail` is what its event tells: of another model than before, and of the request."""

    route: Route
    choice: ModelChoice
    provider: Provider
    request: CompletionRequest
    admitted: Admitted
    detail: JsonObject


async def passage(step: Step, request_for: RequestFor) -> Passage | Defer | Fail:
    """Find the model of the route that may be asked now; those that may not are passed over without a call.

    Raises:
        LimitExceeded: the execution's limits leave no room for a call.
    """
    resources, config = step.resources, step.journal.fixed.config
    route = Route.of(
        config,
        note=step.claim.note,
        max_retries=resources.settings.max_retries,
        max_tightened=0 if config.context.policy == "fail" else MAX_TIGHTENED,
    )
    died = step.claim.attempt - 1
    while True:
        match route.way(now_ms=step.now_ms()):
            case Ask(choice) as ask:
                pass
            case Pause(due_in_s, error):
                return Defer(due_in_s, error.code, note=route.note)
            case GiveUp(error):
                return Fail(error)
            case other:
                assert_never(other)
        try:
            provider = await resources.providers.named(choice.provider, tenant_id=step.ref.tenant_id)
        except ProviderError as error:
            route = route.failed(choice, error, now_ms=step.now_ms())
            continue
        request, detail = request_for(ask)
        prompt = request.model_copy(update={"max_output_tokens": 0})
        for _ in range(died):  # nobody knows what these have used, but that they may have asked
            route = route.wasting(provider.worst_case(prompt))
        died = 0
        used = step.journal.spent.plus(route.wasted)
        request, worst = within_limits(request, worst_case=provider.worst_case, used=used, limits=config.limits)
        match await _admission(step, provider, request, worst=worst):
            case Admitted() as admitted:
                return Passage(route.asked(choice), choice, provider, request, admitted, {**ask.change, **detail})
            case Deferred(wait_s):
                full = ProviderRateLimited(f"Provider '{choice.provider}' has no room yet.", provider=choice.provider)
                route = route.deferred(choice, full, due_in_s=wait_s, now_ms=step.now_ms())
            case Broken(wait_s):
                message = (
                    f"Provider '{choice.provider}' failed so often of late that nobody asks it for '{choice.model}'."
                )
                broken = ProviderOverloaded(message, provider=choice.provider, retry_after_s=wait_s)
                route = route.failed(choice, broken, now_ms=step.now_ms())
            case OverBudget() as over:
                if over.may_fit_later:
                    return Defer(BUDGET_AGAIN_S, BudgetExceeded.code, note=route.note)
                return Fail(over.error(step.ref.tenant_id))
            case never:
                assert_never(never)


@asynccontextmanager
async def paid(step: Step, passed: Passage) -> AsyncGenerator[AbstractAsyncContextManager[AsyncIterator[Delta]], None]:
    """Give the call, to be entered once; count what it has used when the block ends, as waste if that is by an error.

    A Redis that is away when a call is cut off is not waited for: the reservation lapses by itself.
    """
    call = passed.provider.stream(passed.request)
    attempt, store = Attempt.of_step(step.claim.hold), step.resources.store
    try:
        yield step.resources.gate.passed(passed.admitted, call)
    except BaseException:
        spent = call.spent
        if spent is not None:
            step.cut_off, step.note = spent.usage, passed.route.wasting(spent.usage).note
        with suppress(StorageError):
            await store.run(_counted(attempt, None if spent is None else spent.usage, waste=True))
        raise
    await store.insist(_counted(attempt, None if call.spent is None else call.spent.usage, waste=False))


def after_failure(step: Step, passed: Passage, error: ProviderError) -> WaitUntil | Fail:
    """Return what follows a call that failed with `error`."""
    log.warning("call failed", code=error.code, reason=str(error), provider=error.provider, model=passed.request.model)
    route = passed.route.failed(passed.choice, error, now_ms=step.now_ms())
    if step.cut_off is not None:
        route = route.wasting(step.cut_off)
    match route.way(now_ms=step.now_ms()):
        case Ask():
            return WaitUntil(0.0, error, note=route.note)
        case Pause(due_in_s):
            return WaitUntil(due_in_s, error, note=route.note)
        case GiveUp(last):
            return Fail(last)
        case never:
            assert_never(never)


async def _admission(
    step: Step, provider: Provider, request: CompletionRequest, *, worst: Usage
) -> Admitted | Deferred | Broken | OverBudget:
    """Ask to make a call that may come to `worst`; all are asked in one round trip, and none keeps what another refuses."""
    resources, hold = step.resources, step.claim.hold
    attempt = Attempt.of_step(hold)
    admitted, reserved = await asyncio.gather(
        resources.gate.admit(
            Lane(provider.name, provider.key_fingerprint, request.model),
            asker=Asker(hold.ref.tenant_id, attempt.name),
            tokens=worst.total_tokens,
        ),
        resources.store.insist(
            reservation.reserve(
                attempt,
                usd=worst.cost_usd,
                tokens=worst.total_tokens,
                limit_usd_per_day=step.journal.fixed.tenant.budget.usd_per_day,
                holds_s=resources.settings.provider_total_timeout_s + BESIDES_S,
            )
        ),
    )
    match admitted, reserved:
        case Admitted(), OverBudget():
            await resources.store.insist(limits.settle(admitted, outcome="abandoned", tokens=0))
        case Deferred() | Broken(), Reserved():
            await resources.store.insist(reservation.refund(attempt))
    return admitted if isinstance(reserved, Reserved) else reserved


def _counted(attempt: Attempt, used: Usage | None, *, waste: bool) -> Call[bool]:
    return reservation.refund(attempt) if used is None else reservation.settle(attempt, used, waste=waste)
