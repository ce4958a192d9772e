"""The notifier: everything that happens is told to the orchestrator, in order, at least once.

Owns the life of the process: become the active one, connect, serve, back off. Of several notifiers one is active, by a
lease; the others stand by, and one of them takes over from it when it is stopped or dies. With each renewal of the lease it
says how it stands.

Does not know what is done on a connection: `session.py`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import structlog

from agent_exec.errors import StorageError
from agent_exec.service_token import ServiceToken
from agent_exec.settings import Settings
from agent_exec.store import Store
from notifier import outbox
from notifier.connection import Backoff, ConnectionLost, CredentialRefused, connect, refused_pause_s
from notifier.session import LeaseLost, Session
from notifier.tally import Tally
from notifier.waiting import first_of, set_within

#: Redis has come back: heard of within this long (faults, promise of 5 s).
STORAGE_PAUSE_S = 0.5
#: The lease is renewed this often within its time.
RENEWALS = 4
#: While a token is refused, another one is looked for this often.
LOOK_FOR_TOKEN_S = 1.0

log = structlog.get_logger(__name__)


class Notifier:
    """One notifier, active or standing by."""

    def __init__(self, settings: Settings, *, store: Store, holder: str) -> None:
        """Take the store, and a name that no other notifier has."""
        self._settings = settings
        self._store = store
        self._token = ServiceToken(settings)
        self._backoff = Backoff(settings.notifier_backoff_cap_s)
        self._stopping = asyncio.Event()
        self.tally = Tally(holder)

    def stop(self) -> None:
        """Let what is on its way arrive, then make `run` return."""
        log.info("stopping")
        self._stopping.set()

    async def run(self) -> None:
        """Notify until stopped, whatever fails meanwhile."""
        trouble: str | None = None
        try:
            while not self._stopping.is_set():
                try:
                    if await self._hold():
                        trouble = _told_once(trouble, None)
                        await self._be_active()
                    else:
                        trouble = _told_once(trouble, "standing by: another notifier is active")
                        await set_within(self._stopping, seconds=self._settings.notifier_lease_s / RENEWALS)
                except LeaseLost:
                    log.warning("another notifier has taken over")
                except StorageError as error:
                    trouble = _told_once(trouble, str(error))
                    await set_within(self._stopping, seconds=STORAGE_PAUSE_S)
        finally:
            with suppress(StorageError):
                await self._store.run(outbox.let_go(self.tally.holder))

    async def _hold(self) -> bool:
        return await self._store.run(outbox.hold(self.tally.report(), lease_s=self._settings.notifier_lease_s))

    async def _be_active(self) -> None:
        """Connect again and again, for as long as the lease is ours."""
        log.info("active")
        self.tally.active_since_ms = _now_ms()
        try:
            await first_of(self._keep_lease(), self._stay_connected(), self._lose_patience())
        finally:
            self.tally.active_since_ms = None
            if self.tally.ignored:
                log.warning("messages ignored since the start", **self.tally.ignored)

    async def _lose_patience(self) -> None:
        """Return when it is time to go, drained or not."""
        await self._stopping.wait()
        await asyncio.sleep(self._settings.notifier_drain_s)

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(self._settings.notifier_lease_s / RENEWALS)
            if not await self._hold():
                raise LeaseLost

    async def _stay_connected(self) -> None:
        while not self._stopping.is_set():
            opened_at_s, session, refused = time.monotonic(), None, False
            token = self._token.current()
            try:
                async with connect(self._settings.orchestrator_ws_url, token=token) as connection:
                    opened_at_s = time.monotonic()
                    log.info("connected")
                    session = Session(
                        connection,
                        settings=self._settings,
                        store=self._store,
                        stopping=self._stopping,
                        tally=self.tally,
                    )
                    self.tally.connected(at_ms=_now_ms())
                    await session.serve()
            except CredentialRefused as error:
                refused = True
                self.tally.trouble = str(error)
                log.error(
                    "the orchestrator refuses our token: nothing is delivered until AGENT_EXEC_SERVICE_TOKEN (or its file) "
                    "has one that it accepts; the backlog is kept",
                    why=str(error),
                )
            except ConnectionLost as error:
                self.tally.trouble = str(error)
                log.warning("not connected", why=str(error))
            finally:
                self.tally.connected_since_ms = None
            self._backoff.ended(
                lived_s=time.monotonic() - opened_at_s if session is not None else 0.0,
                was_acked=session is not None and session.was_acked,
            )
            if refused and token == self._token.current():
                await first_of(set_within(self._stopping, seconds=refused_pause_s()), self._another_token(token))
            else:
                await set_within(self._stopping, seconds=self._backoff.pause_s())

    async def _another_token(self, token: str) -> None:
        while True:
            await asyncio.sleep(LOOK_FOR_TOKEN_S)
            if token != self._token.current():
                return


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _told_once(before: str | None, now: str | None) -> str | None:
    """Log trouble when it begins, changes or ends, however often it is met."""
    if now != before:
        if now is None:
            log.info("working again")
        else:
            log.warning("waiting", why=now)
    return now
