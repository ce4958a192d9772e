"""One connection's life: everything that is to be told goes out on it, in order, and what the orchestrator says is done.

Owns five tasks that live and die together:

    pump      takes from the outbox, sends, notes what was sent
    probe     learns what has reached the other socket (ping, pong), which makes room in the window
    listen    hears acks and commands
    settle    notes in Redis what was acknowledged
    answer    carries out commands

What was sent and not acknowledged when a connection ends is sent again on the next one. Acknowledged means: by the
orchestrator's `{"ack": …}`, once it has ever sent one; else, that the frame reached its socket. Nothing is kept in memory
but positions: backlog waits in Redis. The order within an execution is the outbox's, which gives its events out in order.

Does not know the wire (`connection.py`), what is said on it (`protocol.py`), the scripts (`outbox.py`), nor why there is a
connection (`notifier.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import TypeVar

import structlog

from agent_exec import keys
from agent_exec.events import Page
from agent_exec.settings import Settings
from agent_exec.store import Store, redis_errors
from notifier import outbox
from notifier.commands import carry_out
from notifier.connection import PROBE_AFTER_S, Connection
from notifier.protocol import BadCommand, Command, Conversation, Position, ReplayFrom
from notifier.tally import Tally
from notifier.waiting import first_of, set_within

T = TypeVar("T")

#: Under a steady stream, events of this long travel in one round: two scripts instead of two an event.
COALESCE_S = 0.003
#: What was acknowledged of so long is noted by one script; nobody waits for it but the end of the process.
SETTLE_PAUSE_S = 0.05
#: An idle notifier looks for itself this often, should a wake-up be lost.
LOOK_S = 1.0
#: Arrival is asked for this often at most, while half of the window is room.
PROBE_PAUSE_S = 0.1
#: Commands that wait; an orchestrator that floods us finds the rest ignored, and may say it again.
MAX_WAITING_COMMANDS = 1_000
#: Acks and positions that one script settles.
SETTLE_AT_ONCE = 256

log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """Another notifier is active."""


class Session:
    """One connection's life, from the first frame to the last."""

    def __init__(
        self,
        connection: Connection,
        *,
        settings: Settings,
        store: Store,
        stopping: asyncio.Event,
        tally: Tally,
    ) -> None:
        """Take an open connection, and where to count."""
        self.was_acked = False
        self._connection = connection
        self._settings = settings
        self._store = store
        self._stopping = stopping
        self._tally = tally
        self._conversation = Conversation(window=settings.notifier_window, ignore=self._ignore)
        self._commands: asyncio.Queue[Command | BadCommand] = asyncio.Queue(MAX_WAITING_COMMANDS)
        # A round (take, send, note), a settlement and a command follow one another: an ack is settled after the note
        # of what it acknowledges, and a replay is not undone by the note of a round that had begun before it.
        self._turn = asyncio.Lock()
        self._has_sent = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_filling = asyncio.Event()
        self._to_settle = asyncio.Event()
        self._settled = asyncio.Event()

    async def serve(self) -> None:
        """Do it all until stopped and drained.

        Raises:
            ConnectionLost: or StorageError, or LeaseLost: what the first of the tasks ended with.
        """
        await first_of(self._pump(), self._probe(), self._listen(), self._settle(), self._answer())

    async def _pump(self) -> None:
        while await self._store.run(outbox.rewind()):
            pass
        has_more = True
        while not self._stopping.is_set():
            if not self._conversation.room:
                self._has_room.clear()
                await self._has_room.wait()
            if not has_more:
                await first_of(self._woken(), self._stopping.wait())
            async with self._turn:
                taken = await self._store.run(outbox.take(events=self._conversation.room))
                has_more = await self._send(taken.pages) if taken.pages else taken.more
            await asyncio.sleep(0 if taken.more else COALESCE_S)
        await self._drained()

    async def _send(self, pages: Sequence[Page]) -> bool:
        """Send them and note it; return whether others wait by now."""
        for page in pages:
            for event in page.events:
                await self._connection.send(page.frame(event))
            self._tally.sent += len(page.events)
            self._conversation.sent(_end(page), frames=len(page.events))
            self._has_sent.set()
            if not self._conversation.is_half_empty:
                self._is_filling.set()
        # Both retentions after it was sent, no execution is left of which anybody could speak.
        forget_after_s = self._settings.open_retention_s + self._settings.longest_retention_s
        positions = [_end(page) for page in pages]
        waiting = await self._store.run(
            outbox.sent(positions, holder=self._tally.holder, forget_after_s=forget_after_s)
        )
        if waiting is None:
            raise LeaseLost
        return waiting > 0

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
            self._conversation.ping()
            await self._connection.arrival()
            self._conversation.pong()
            self._has_room.set()
            self._to_settle.set()
            if self._conversation.is_half_empty:
                self._is_filling.clear()
                await set_within(self._is_filling, seconds=PROBE_PAUSE_S)

    async def _listen(self) -> None:
        async for message in self._connection.messages():
            command = self._conversation.heard(message)
            if command is not None:
                try:
                    self._commands.put_nowait(command)
                except asyncio.QueueFull:
                    self._ignore("too_many_commands")
            elif not self._conversation.is_settled:
                self._to_settle.set()

    async def _settle(self) -> None:
        while True:
            await self._to_settle.wait()
            async with self._turn:
                self._to_settle.clear()
                unsettled = self._conversation.unsettled()
                for some in batches(unsettled.acks):
                    verdicts = await self._store.run(outbox.acked(some, remember_s=self._settings.retention_s))
                    for verdict in verdicts:
                        if verdict == "acked":
                            self.was_acked = True
                        else:
                            self._ignore(f"ack_{verdict}")
                for arrived in batches(unsettled.received):
                    await self._store.run(outbox.received(arrived))
                self._settled.set()
            await asyncio.sleep(SETTLE_PAUSE_S)

    async def _answer(self) -> None:
        while True:
            command = await self._commands.get()
            async with self._turn if isinstance(command, ReplayFrom) else nullcontext():
                result = await carry_out(command, store=self._store)
                if isinstance(command, ReplayFrom) and result.ok:
                    self._conversation.sends_again(command.execution_id)
            log.info("command", command=result.command, execution_id=result.execution_id, code=result.code)
            await self._connection.send(result.frame())

    def _ignore(self, reason: str) -> None:
        self._tally.ignored[reason] += 1
        if self._tally.ignored[reason] == 1:
            log.warning("ignored a message of the orchestrator; more of the kind are only counted", reason=reason)


def _end(page: Page) -> Position:
    return Position(page.tenant_id, page.execution_id, page.events[-1].sequence)


def batches(items: Sequence[T]) -> Iterator[list[T]]:
    """Cut `items` into what one script settles."""
    rest = iter(items)
    while batch := list(islice(rest, SETTLE_AT_ONCE)):
        yield batch
