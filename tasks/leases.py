"""The leases of the steps that run in this process: renewed together, and the word that one of them must stop.

Owns the heartbeat and the cancellation of a step's coroutine. Does not know what a step does, nor what follows its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, assert_never

from agent_exec.errors import Cancelled, StorageError
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Hold
from agent_exec.store import Store

#: What the error of a cancelled execution says.
CANCELLED = "The execution was cancelled on request."
#: How many leases one script renews, so that none holds Redis long.
AT_ONCE = 100


class LeaseLost(Exception):
    """Another attempt holds the step now, or the execution has ended: write nothing more."""


class HandBack(Exception):
    """The worker stops and has waited long enough: give the step to another one."""


@dataclass(slots=True, eq=False)
class _Running:
    hold: Hold
    task: asyncio.Task[object]
    stopped_for: Literal["cancelled", "lost", "handed back"] | None = None

    def stop(self, why: Literal["cancelled", "lost", "handed back"]) -> None:
        """Cancel the step's coroutine, once."""
        if self.stopped_for is None:
            self.stopped_for = why
            self.task.cancel()


class Leases:
    """The leases of one process."""

    def __init__(self, store: Store, *, lease_s: float, heartbeat_s: float) -> None:
        """Take the store, how long a lease lasts, and how often all are renewed."""
        self._store = store
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._running: set[_Running] = set()
        self._is_handing_back = False

    @contextlib.asynccontextmanager
    async def keep(self, hold: Hold) -> AsyncIterator[None]:
        """Keep the lease of `hold` while the block runs.

        Raises:
            Cancelled: somebody asked for the execution's end; the block was cancelled.
            LeaseLost: the step is no longer ours; the block was cancelled.
            HandBack: the worker stops; the block was cancelled.
        """
        task = asyncio.current_task()
        assert task is not None, "steps run in tasks"
        running = _Running(hold, task)
        self._running.add(running)
        before = task.cancelling()
        if self._is_handing_back:
            running.stop("handed back")
        try:
            yield
        except asyncio.CancelledError:
            if running.stopped_for is None or task.uncancel() > before:
                raise
            match running.stopped_for:
                case "cancelled":
                    raise Cancelled(CANCELLED) from None
                case "handed back":
                    raise HandBack from None
                case "lost":
                    raise LeaseLost from None
                case other:
                    assert_never(other)
        finally:
            self._running.discard(running)

    def hand_back(self) -> None:
        """Stop every step that still runs, and each that is about to, for another worker to begin anew."""
        self._is_handing_back = True
        for one in self._running:
            one.stop("handed back")

    async def beat(self) -> None:
        """Renew all leases, again and again; never returns."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            running = list(self._running)
            for start in range(0, len(running), AT_ONCE):
                await self._renew(running[start : start + AT_ONCE])

    async def _renew(self, running: list[_Running]) -> None:
        try:
            verdicts = await self._store.run(ledger.renew([one.hold for one in running], lease_s=self._lease_s))
        except StorageError:  # the store tells of it; the next beat renews them
            return
        for one, verdict in zip(running, verdicts, strict=True):
            if verdict != "held" and one in self._running:
                one.stop(verdict)
