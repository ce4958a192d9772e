"""Batches, kept moving: their items become executions a few at a time, and those of a cancelled one are cancelled.

Owns when it is looked at. Every worker does this; the scripts give each batch to one of them, and say which items are next.
Does not know how an execution runs.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NoReturn, assert_never

import structlog
from pydantic import ValidationError

from agent_exec import submission
from agent_exec.batches import feeding
from agent_exec.batches.feeding import CancelItems, Rest, Submit
from agent_exec.batches.item import BatchRef, Item
from agent_exec.contract.message import Message
from agent_exec.errors import AgentExecError, Conflict, InvalidMessage, NotFound, QueueFull, StorageError
from agent_exec.ledger import ledger
from agent_exec.settings import Settings
from agent_exec.store import Store

log = structlog.get_logger(__name__)

#: What becomes due where nobody is stirred (a new batch, a feeder that died) is found this much later at most.
LOOK_EVERY_S = 1.0
#: Ends that come together make room for several items, which are submitted together.
GATHER_S = 0.05


class Feeder:
    """One worker's part in it."""

    def __init__(self, store: Store, settings: Settings) -> None:
        """Take the store, and of the settings how much of a batch may be open, and how long things are kept."""
        self._store = store
        self._settings = settings
        self._stirred = asyncio.Event()

    def stir(self) -> None:
        """An item has ended: there may be room for the next."""
        self._stirred.set()

    async def keep_feeding(self) -> NoReturn:
        """Feed what is due, for ever."""
        while True:
            with suppress(StorageError):  # the store tells of it
                for ref in await self._store.run(feeding.due()):
                    await self._feed(ref)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._stirred.wait()
            await asyncio.sleep(GATHER_S)
            self._stirred.clear()

    async def _feed(self, ref: BatchRef) -> None:
        """Do what there is to do for a batch now.

        Raises:
            StorageError: Redis failed; the batch is due again soon.
        """
        try:
            while not await self._rests(ref):
                pass
        except StorageError:
            raise
        except Exception as error:  # the others go on, and this one is looked at again
            log.error("batch not fed", batch_id=ref.batch_id, tenant_id=ref.tenant_id, exc_info=error)

    async def _rests(self, ref: BatchRef) -> bool:
        """Do what is next for a batch; say whether that was all for now."""
        match await self._store.run(feeding.feed(ref, window=self._settings.batch_window)):
            case Submit() as submit:
                return not await self._submit(ref, submit)
            case CancelItems(indexes):
                await asyncio.gather(*[self._cancel(ref.item(index)) for index in indexes])
                return True
            case Rest():
                return True
            case other:
                assert_never(other)

    async def _submit(self, ref: BatchRef, submit: Submit) -> bool:
        """Submit items, and say so; False where the tenant's queue takes no more for now."""
        items = [ref.item(index) for index in range(submit.start, submit.start + len(submit.items))]
        outcomes = await asyncio.gather(*map(self._store_item, items, submit.items), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, QueueFull):
                raise outcome
        if any(isinstance(outcome, QueueFull) for outcome in outcomes):
            log.warning("batch waits for room in its tenant's queue", batch_id=ref.batch_id, tenant_id=ref.tenant_id)
            return False
        kept = {"open_keep_s": self._settings.open_retention_s, "keep_s": self._settings.retention_s}
        await self._store.run(feeding.fed(ref, submit, **kept))
        log.info("batch fed", batch_id=ref.batch_id, tenant_id=ref.tenant_id, items=len(items), start=submit.start)
        return True

    async def _store_item(self, item: Item, stored: str) -> None:
        """Make an execution of an item; one that can be none is told of among the results.

        Raises:
            QueueFull: the tenant has too many that wait.
        """
        try:
            message = item.message(stored)
        except ValidationError as error:  # a release with another contract took it
            return await self._refuse(
                item, InvalidMessage(f"The request breaks the contract: {submission.complaints(error)}.")
            )
        try:
            await self._accept(item, message)
        except Conflict as error:  # an execution of somebody's that only chance can have given this id
            await self._refuse(item, error)

    async def _accept(self, item: Item, message: Message) -> None:
        storing = submission.store(
            message,
            open_retention_s=self._settings.open_retention_s,
            max_queued=self._settings.max_queued,
            batch=item.mark,
            callback_door=None,
        )
        accepted = await self._store.run(storing)
        if accepted.begins:
            await self._store.run(submission.first_hint(message, accepted).push())

    async def _cancel(self, item: Item) -> None:
        try:
            await self._store.run(ledger.cancel(item.batch.tenant_id, item.execution_id))
        except NotFound as error:  # it was forgotten: no worker has run it for as long as that takes
            await self._refuse(item, error)

    async def _refuse(self, item: Item, error: AgentExecError) -> None:
        log.error("item of a batch refused", item=item.mark, tenant_id=item.batch.tenant_id, reason=str(error))
        await self._store.run(feeding.refuse(item, error, keep_s=self._settings.retention_s))
