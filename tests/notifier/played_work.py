"""Work to tell of: executions and their events, made by the ledger's own calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent_exec import submission
from agent_exec.contract.event import EventName
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, Event, Finished, Hold, StepRef
from agent_exec.store import Store
from notifier import outbox
from notifier.outbox import Left


async def eventually(true: Callable[[], Awaitable[object]], *, within_s: float = 15) -> None:
    """Wait for a condition that has to be asked of Redis."""
    async with asyncio.timeout(within_s):
        while not await true():
            await asyncio.sleep(0.005)


async def all_done(store: Store) -> None:
    """Wait until nothing is left to send, or to be acknowledged."""

    async def done() -> bool:
        return await store.run(outbox.left()) == Left(0, 0)

    await eventually(done)


@dataclass
class Work:
    """What a worker would write."""

    store: Store

    async def begin(self, tenant_id: str = "acme", *, execution_id: str | None = None) -> Hold:
        """Accept and claim an execution: event 1."""
        request = ExecutionRequest(agent_id="desk", query="?")
        message = submission.message_of(request, tenant_id=tenant_id, execution_id=execution_id)
        await self.store.run(submission.store(message, open_retention_s=86_400, max_queued=10_000))
        ref = StepRef(tenant_id, message.execution_id, "prompt")
        claim = await self.store.run(ledger.claim(ref, lease_s=600, worker="w"))
        assert isinstance(claim, Claimed)
        return claim.hold

    async def tokens(self, hold: Hold, count: int, *, text: str = "x") -> None:
        """Add `count` events."""
        event = Event(EventName.TOKEN, json.dumps({"token": text, "is_final": False}))
        assert await self.store.run(ledger.tell(hold, [event] * count)) == "told"

    async def finish(self, hold: Hold) -> None:
        """Add the terminal event."""
        ended = ledger.finish(
            hold,
            result="{}",
            status="completed",
            response="{}",
            celery_result="{}",
            events=[Event(EventName.COMPLETED, "{}")],
            retention_s=3_600,
        )
        assert await self.store.run(ended) == Finished(None)
