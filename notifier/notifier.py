"""The notifier: everything that happens is told to the orchestrator, in order, at least once.

Owns the life of the process: become the active one, connect, serve, back off. Of several notifiers one is active, by a
lease; the others stand by. What it serves, on each connection, is five tasks that live and die together:

    pump      takes from the outbox, sends, notes what was sent
    probe     learns what has reached the other socket (ping, pong), which makes room in the window
    listen    hears acks and commands
    settle    notes in Redis what was acknowledged
    answer    carries out commands

What was sent and not acknowledged when a connection ends is sent again on the next one. Acknowledged means: by the
orchestrator's `{"ack": …}`, once it has ever sent one; else, that the frame reached its socket. Nothing is kept in memory
but positions: backlog waits in Redis. The order within an execution is the outbox's, which gives its events out in order.

Does not know the wire (`connection.py`), what is said on it (`protocol.py`), or the scripts (`outbox.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import nullcontext, suppress
from itertools import islice
from typing import Any, TypeVar, assert_never

import structlog

from agent_exec import keys
from agent_exec.errors import StorageError
from agent_exec.events import Page
from agent_exec.settings import Settings
from agent_exec.store import Store, redis_errors
from notifier import outbox
from notifier.commands import carry_out
from notifier.connection import PROBE_AFTER_S, Backoff, Connection, ConnectionLost, CredentialRefused, connect
from notifier.protocol import (
    Ack,
    BadCommand,
    CancelExecution,
    Command,
    Ignored,
    Position,
    ReplayFrom,
    ResolveApproval,
    Window,
    hear,
)

T = TypeVar("T")

#: Under a steady stream, events of this long travel in one round: two scripts instead of two an event.
COALESCE_S = 0.005
#: An idle notifier looks for itself this often, should a wake-up be lost.
LOOK_S = 1.0
#: Redis has come back: heard of within this long (faults, promise of 5 s).
STORAGE_PAUSE_S = 0.5
#: Arrival is asked for this often at most, while the window has room.
PROBE_PAUSE_S = 0.02
#: The lease is renewed this often within its time.
RENEWALS = 4
#: Acks and commands that wait; an orchestrator that floods us finds the rest ignored, and may say it again.
MAX_WAITING_ACKS = 10_000
MAX_WAITING_COMMANDS = 1_000
#: Acks and positions that one script settles.
SETTLE_AT_ONCE = 256

log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """Another notifier is active."""


class Notifier:
    """One notifier, active or standing by."""

    def __init__(self, settings: Settings, *, store: Store, holder: str) -> None:
        """Take the store, and a name that no other notifier has."""
        self._settings = settings
        self._store = store
        self._holder = holder
        self._backoff = Backoff(settings.notifier_backoff_cap_s)
        self._stopping = asyncio.Event()
        #: Messages that meant nothing to us or came to nothing, by reason.
        self.ignored: Counter[str] = Counter()

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
                    if await self._store.run(outbox.hold(self._holder, lease_s=self._settings.notifier_lease_s)):
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
                await self._store.run(outbox.let_go(self._holder))

    async def _be_active(self) -> None:
        """Connect again and again, for as long as the lease is ours."""
        log.info("active")
        await first_of(self._keep_lease(), self._stay_connected(), self._lose_patience())

    async def _lose_patience(self) -> None:
        """Return when it is time to go, drained or not."""
        await self._stopping.wait()
        await asyncio.sleep(self._settings.notifier_drain_s)

    async def _keep_lease(self) -> None:
        lease_s = self._settings.notifier_lease_s
        while True:
            await asyncio.sleep(lease_s / RENEWALS)
            if not await self._store.run(outbox.hold(self._holder, lease_s=lease_s)):
                raise LeaseLost

    async def _stay_connected(self) -> None:
        while not self._stopping.is_set():
            opened_at, session, refused = time.monotonic(), None, False
            try:
                async with connect(self._settings) as connection:
                    opened_at = time.monotonic()
                    log.info("connected")
                    session = Session(
                        connection,
                        settings=self._settings,
                        store=self._store,
                        holder=self._holder,
                        stopping=self._stopping,
                        ignored=self.ignored,
                    )
                    await session.serve()
            except CredentialRefused as error:
                refused = True
                log.error(
                    "the orchestrator refuses our token: nothing is delivered until AGENT_EXEC_SERVICE_TOKEN is one that "
                    "it accepts; the backlog is kept",
                    why=str(error),
                )
            except ConnectionLost as error:
                log.warning("not connected", why=str(error))
            self._backoff.ended(
                lived_s=time.monotonic() - opened_at if session is not None else 0.0,
                was_acked=session is not None and session.was_acked,
            )
            await set_within(self._stopping, seconds=self._backoff.pause_s(refused=refused))


class Session:
    """One connection's life, from the first frame to the last."""

    def __init__(
        self,
        connection: Connection,
        *,
        settings: Settings,
        store: Store,
        holder: str,
        stopping: asyncio.Event,
        ignored: Counter[str],
    ) -> None:
        """Take an open connection, and where to count what is ignored."""
        self.was_acked = False
        self._connection = connection
        self._settings = settings
        self._store = store
        self._holder = holder
        self._stopping = stopping
        self._ignored = ignored
        self._window = Window(settings.notifier_window)
        self._acks: dict[str, Ack] = {}
        self._received: dict[str, Position] = {}
        self._commands: asyncio.Queue[Command | BadCommand] = asyncio.Queue(MAX_WAITING_COMMANDS)
        # A round (take, send, note), a settlement and a command follow one another: an ack is settled after the note
        # of what it acknowledges, and a replay is not undone by the note of a round that had begun before it.
        self._turn = asyncio.Lock()
        self._has_sent = asyncio.Event()
        self._has_room = asyncio.Event()
        self._to_settle = asyncio.Event()
        self._settled = asyncio.Event()

    async def serve(self) -> None:
        """Do it all until stopped and drained.

        Raises:
            ConnectionLost: or StorageError, or LeaseLost: what the first of the tasks ended with.
        """
        try:
            await first_of(self._pump(), self._probe(), self._listen(), self._settle(), self._answer())
        finally:
            if self._ignored:
                log.warning("messages ignored since the start", **self._ignored)

    async def _pump(self) -> None:
        while await self._store.run(outbox.rewind()):
            pass
        while not self._stopping.is_set():
            if not self._window.room:
                self._has_room.clear()
                await self._has_room.wait()
            async with self._turn:
                taken = await self._store.run(outbox.take(events=self._window.room))
                if taken.pages:
                    await self._send(taken.pages)
            if taken.pages:
                await asyncio.sleep(0 if taken.more else COALESCE_S)
            elif not self._stopping.is_set():
                await first_of(self._woken(), self._stopping.wait())
        await self._drained()

    async def _send(self, pages: Sequence[Page]) -> None:
        for page in pages:
            for event in page.events:
                await self._connection.send(page.frame(event))
            self._window.sent(_end(page), frames=len(page.events))
            self._has_sent.set()
        # Both retentions after it was sent, no execution is left of which anybody could speak.
        forget_after_s = self._settings.open_retention_s + self._settings.retention_s
        if not await self._store.run(
            outbox.sent([_end(page) for page in pages], holder=self._holder, forget_after_s=forget_after_s)
        ):
            raise LeaseLost

    async def _woken(self) -> None:
        with redis_errors():
            await self._store.redis.blpop([keys.outbox_wake()], timeout=LOOK_S)

    async def _drained(self) -> None:
        """Return when all that was sent is acknowledged."""
        while True:
            self._settled.clear()
            if not (await self._store.run(outbox.left())).unacked:
                return
            await self._settled.wait()

    async def _probe(self) -> None:
        while True:
            await set_within(self._has_sent, seconds=PROBE_AFTER_S)
            self._has_sent.clear()
            probe = self._window.probe()
            await self._connection.arrival()
            self._window.arrived(probe)
            self._has_room.set()
            self._received.update((one.execution_id, one) for one in probe.positions)
            self._to_settle.set()
            await asyncio.sleep(PROBE_PAUSE_S if self._window.room > self._window.size // 2 else 0)

    async def _listen(self) -> None:
        async for message in self._connection.messages():
            match hear(message):
                case Ack() as ack:
                    self._note(ack)
                case CancelExecution() | ResolveApproval() | ReplayFrom() | BadCommand() as command:
                    try:
                        self._commands.put_nowait(command)
                    except asyncio.QueueFull:
                        self._ignore("too_many_commands")
                case Ignored(reason):
                    self._ignore(reason)
                case other:
                    assert_never(other)

    def _note(self, ack: Ack) -> None:
        earlier = self._acks.get(ack.execution_id)
        if earlier is None and len(self._acks) >= MAX_WAITING_ACKS:
            self._ignore("too_many_acks")
        elif earlier is None or earlier.sequence < ack.sequence:
            self._acks[ack.execution_id] = ack
            self._to_settle.set()

    async def _settle(self) -> None:
        while True:
            await self._to_settle.wait()
            async with self._turn:
                self._to_settle.clear()
                acks, self._acks = list(self._acks.values()), {}
                received, self._received = list(self._received.values()), {}
                for some in batches(acks):
                    verdicts = await self._store.run(outbox.acked(some, remember_s=self._settings.retention_s))
                    for verdict in verdicts:
                        if verdict == "acked":
                            self.was_acked = True
                        else:
                            self._ignore(f"ack_{verdict}")
                for arrived in batches(received):
                    await self._store.run(outbox.received(arrived))
                self._settled.set()
            await asyncio.sleep(COALESCE_S)

    async def _answer(self) -> None:
        while True:
            command = await self._commands.get()
            async with self._turn if isinstance(command, ReplayFrom) else nullcontext():
                result = await carry_out(command, store=self._store)
            log.info("command", command=result.command, execution_id=result.execution_id, code=result.code)
            await self._connection.send(result.frame())

    def _ignore(self, reason: str) -> None:
        self._ignored[reason] += 1
        if self._ignored[reason] == 1:
            log.warning("ignored a message of the orchestrator; more of the kind are only counted", reason=reason)


async def first_of(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Run them together until one ends; end the others; raise what the first one raised, if it did."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()


def _end(page: Page) -> Position:
    return Position(page.tenant_id, page.execution_id, page.events[-1].sequence)


async def set_within(event: asyncio.Event, *, seconds: float) -> None:
    """Return when the event is set, or so many seconds have passed."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def batches(items: Sequence[T]) -> Iterator[list[T]]:
    """Cut `items` into what one script settles."""
    rest = iter(items)
    while batch := list(islice(rest, SETTLE_AT_ONCE)):
        yield batch


def _told_once(before: str | None, now: str | None) -> str | None:
    """Log trouble when it begins, changes or ends, however often it is met."""
    if now != before:
        if now is None:
            log.info("working again")
        else:
            log.warning("waiting", why=now)
    return now
