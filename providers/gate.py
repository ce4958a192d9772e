"""What every call to a provider goes through: asked for before, told of after, on every way out.

Owns when the scripts of limits.py run round a call, and which error is what to them. Does not know their rules, nor what is
done with a call that has to wait.

    match await gate.admit(lane, asker=Asker(tenant_id, f"{execution_id} {step}"), tokens=prompt + max_output):
        case Deferred(wait_s) | Broken(wait_s):
            ...                                            # put off without counting a retry, or ask another model
        case Admitted() as admitted:
            async with gate.passed(admitted, provider.stream(request)) as deltas:
                async for delta in deltas:
                    ...

A call that the provider refuses as one too many raises `ProviderRateLimited` with `retry_after_s` no shorter than the wait
for its place in the lane, so whoever waits as told comes back to that place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

from agent_exec.errors import (
    ProviderError,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnreachable,
    StorageError,
)
from agent_exec.store import Store
from providers import limits
from providers.limits import Admitted, Asker, Broken, Deferred, Lane, Outcome
from providers.provider import Call, Delta


class Gate:
    """The gate of one process to all providers."""

    def __init__(self, store: Store, *, probe_lease_s: float) -> None:
        """Take the store, and how long the head of an answer may take: a probe that says nothing for so long has died."""
        self._store = store
        self._probe_lease_s = probe_lease_s

    async def admit(self, lane: Lane, *, asker: Asker, tokens: int) -> Admitted | Deferred | Broken:
        """Ask to make one call that may use `tokens`, prompt and answer together. Whoever is admitted makes it at once.

        While Redis is away nobody knows, and nothing is asked: what came of it could not be recorded either.
        """
        return await self._store.insist(
            limits.admit(lane, asker=asker, tokens=tokens, probe_lease_s=self._probe_lease_s),
        )

    @asynccontextmanager
    async def passed(self, admitted: Admitted, call: Call) -> AsyncGenerator[AsyncIterator[Delta], None]:
        """Enter the call, and tell the fleet what came of it. Its socket is closed before anything is told.

        An outage of Redis costs nothing here: what could not be told is learnt from the next call, or lapses.

        Raises:
            ProviderError: as the call does.
        """
        outcome: Outcome = "abandoned"
        refusal: ProviderRateLimited | None = None
        try:
            await asyncio.sleep(admitted.after_s)
            async with call as deltas:
                if admitted.tell_head:
                    with suppress(StorageError):
                        await self._store.run(limits.answered(admitted, quota=call.quota))
                yield deltas
            outcome = "answered"
        except ProviderError as error:
            outcome = outcome_of(error)
            refusal = error if isinstance(error, ProviderRateLimited) else None
            raise
        finally:
            await self._settle(admitted, call, outcome, refusal)

    async def _settle(
        self, admitted: Admitted, call: Call, outcome: Outcome, refusal: ProviderRateLimited | None
    ) -> None:
        spent = call.spent
        settle = limits.settle(
            admitted,
            outcome=outcome,
            tokens=0 if spent is None else spent.usage.total_tokens,
            quota=call.quota,
            retry_after_s=None if refusal is None else refusal.retry_after_s,
        )
        with suppress(StorageError):
            place = await self._store.run(settle)
            if refusal is not None and place is not None:
                refusal.retry_after_s = max(place.wait_s, refusal.retry_after_s or 0.0)


def outcome_of(error: ProviderError) -> Outcome:
    """Return what a failed call is to limits and breakers.

    Only what speaks of the endpoint counts as broken: 5xx, silence, no connection. An answer that is not of the wire does
    not, for most of these are the model's own: a call or an object that the server could not read.
    """
    match error:
        case ProviderRateLimited():
            return "rate_limited"
        case ProviderOverloaded() | ProviderTimeout() | ProviderUnreachable():
            return "broken"
        case _:
            return "refused"
