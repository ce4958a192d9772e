"""The sender of callbacks: takes what is due, signs it, sends it, and notes what became of it.

Owns how many are on their way, and what each outcome means. Every notifier sends, the active one and those that stand by.
What it took is its own until a lease lapses: killed between a request and its note, the same callback is sent again under
the same id. The scripts (`agent_exec/callbacks`) bound each tenant's share of it, for slow receivers take long.

Does not know addresses and sockets (`egress.py`), nor when what failed is due again (`agent_exec/callbacks/schedule.py`).

Source: Standard Webhooks.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import urlsplit

import structlog
from standardwebhooks import Webhook

from agent_exec import keys
from agent_exec.callbacks import callbacks
from agent_exec.callbacks.callbacks import Sending
from agent_exec.callbacks.schedule import pause_s
from agent_exec.callbacks.secrets import CallbackSecrets
from agent_exec.ending import end
from agent_exec.errors import CallbacksNotConfigured, StorageError
from agent_exec.script import Call
from agent_exec.settings import Settings
from agent_exec.store import Store, redis_errors
from notifier.egress import TOTAL_TIMEOUT_S, Answered, Egress, Failed
from notifier.waiting import set_within

#: A try and its note are over by then; what is not is another's.
LEASE_S = TOTAL_TIMEOUT_S + 10.0
#: An idle sender looks for itself this often, should a wake-up be lost or a lease lapse.
LOOK_S = 1.0
STORAGE_PAUSE_S = 0.5
#: A line about what was sent, at most this often.
REPORT_S = 60.0
#: "Gone": the receiver wants no more of it, ever.
GONE = 410

log = structlog.get_logger(__name__)


class CallbackSender:
    """One process's share of all callbacks."""

    def __init__(self, settings: Settings, *, store: Store, secrets: CallbackSecrets, egress: Egress) -> None:
        """Take what it works with; whoever made them closes them."""
        self._settings = settings
        self._store = store
        self._secrets = secrets
        self._egress = egress
        self._is_stopping = False
        #: Something is due, or a try has ended: a tenant's share is free again.
        self._news = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        self._came_to: Counter[str] = Counter()
        self._reported_s = time.monotonic()

    def stop(self) -> None:
        """Let what is on its way arrive, then make `run` return."""
        self._is_stopping = True
        self._news.set()

    async def run(self) -> None:
        """Send until stopped, whatever fails meanwhile."""
        if self._settings.callback_allow_http or self._settings.callback_allowed_networks:
            log.warning(
                "callbacks may go beyond https to the public Internet",
                http=self._settings.callback_allow_http,
                networks=[str(network) for network in self._settings.callback_allowed_networks],
            )
        listening = asyncio.create_task(self._listen())
        try:
            while not self._is_stopping:
                self._news.clear()
                try:
                    look_in_s = await self._take()
                except StorageError:  # told of by the store, once for all that wait
                    look_in_s = STORAGE_PAUSE_S
                if look_in_s > 0:
                    await set_within(self._news, seconds=look_in_s)
                self._report_at_times()
        finally:
            await end([listening])
            await self._drain()
            self._report()

    async def _listen(self) -> None:
        """Hear of what has just become due."""
        while True:
            try:
                with redis_errors():
                    if await self._store.redis.blpop([keys.callbacks_wake()], timeout=LOOK_S):
                        self._news.set()
            except StorageError:
                await asyncio.sleep(STORAGE_PAUSE_S)

    async def _take(self) -> float:
        """Begin what is due, and return how long nothing more can be begun unless there is news."""
        room = self._settings.callbacks_at_once - len(self._under_way)
        if room <= 0:
            return LOOK_S
        taken = await self._store.run(
            callbacks.take(room=room, of_a_tenant=self._settings.callbacks_of_a_tenant, lease_s=LEASE_S)
        )
        for sending in taken.callbacks:
            task = asyncio.create_task(self._deliver(sending))
            self._under_way.add(task)
            task.add_done_callback(self._ended)
        return LOOK_S if taken.next_in_ms is None else min(LOOK_S, taken.next_in_ms / 1000)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._news.set()

    async def _deliver(self, sending: Sending) -> None:
        try:
            outcome = await self._try(sending)
        except asyncio.CancelledError:
            with suppress(StorageError):  # then its lease lapses
                await self._store.run(callbacks.release(sending))
            raise
        except Exception:  # one callback that nobody foresaw must not end what is told to everybody else
            log.exception("a callback's try broke", callback_id=sending.ref.callback_id)
            outcome = Failed("broken", "see the log")
        await self._store.insist(self._note(sending, outcome))

    async def _try(self, sending: Sending) -> Answered | Failed:
        try:
            signed = await asyncio.to_thread(self._secrets.of, sending.ref.tenant_id)
        except CallbacksNotConfigured as error:
            return Failed("unsigned", str(error))
        headers = signature(sending, signed, now=datetime.now(UTC))
        return await self._egress.post(sending.url, body=sending.body, headers=headers)

    def _note(self, sending: Sending, outcome: Answered | Failed) -> Call[str]:
        status = outcome.status if isinstance(outcome, Answered) else None
        if status is not None and 200 <= status < 300:
            self._came_to["delivered"] += 1
            return callbacks.delivered(sending, status=status, keep_s=self._settings.retention_s)
        fault = outcome.fault if isinstance(outcome, Failed) else "answered"
        retry_after_s = outcome.retry_after_s if isinstance(outcome, Answered) else None
        due_in_s = None if status == GONE else pause_s(sending.attempts + 1, retry_after_s=retry_after_s)
        told = log.bind(
            tenant_id=sending.ref.tenant_id,
            callback_id=sending.ref.callback_id,
            host=urlsplit(sending.url).hostname,  # the rest of it may be the receiver's secret
            fault=fault,
            status=status,
            why=outcome.why if isinstance(outcome, Failed) else None,
            attempt=sending.attempts + 1,
        )
        if due_in_s is None:
            self._came_to["dead"] += 1
            told.warning("callback given up: see agent-exec callbacks")
            return callbacks.bury(sending, fault=fault, status=status)
        self._came_to["put off"] += 1
        told.info("callback failed", due_in_s=round(due_in_s, 1))
        return callbacks.put_off(sending, fault=fault, status=status, due_in_s=due_in_s)

    async def _drain(self) -> None:
        """Give what is on its way some time to arrive, and hand back what has not."""
        left = list(self._under_way)
        if left:
            await asyncio.wait(left, timeout=self._settings.notifier_drain_s)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _report_at_times(self) -> None:
        if time.monotonic() - self._reported_s >= REPORT_S:
            self._report()

    def _report(self) -> None:
        """Say what came of the last while, if anything did."""
        self._reported_s = time.monotonic()
        if self._came_to:
            log.info("callbacks", under_way=len(self._under_way), **self._came_to)
            self._came_to.clear()


def signature(sending: Sending, secrets: tuple[str, ...], *, now: datetime) -> dict[str, str]:
    """Return the headers of one try: a signature by each of the secrets, over this id, time and body."""
    callback_id, body = sending.ref.callback_id, sending.body.decode()
    return {
        "Content-Type": "application/json",
        "User-Agent": "agent-execution-callbacks",
        "webhook-id": callback_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(callback_id, now, body) for secret in secrets),
    }
