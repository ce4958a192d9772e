"""The deliveries that this process holds: leased while it lives, settled even through an outage, given back at its end.

Owns a thread that renews the leases, so that neither a long task nor a busy event loop lets one lapse; and the rule that
a delivery lives as long as somebody could still settle it: when the last reference to its message is gone and it was
never settled, it goes back to its queue. It outlives the channel that took the deliveries: after a lost connection the
tasks run on, keep their leases, and acknowledge here. Does not know how messages arrive.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar

import redis
from kombu.log import get_logger
from redis.exceptions import NoScriptError, RedisError

from agent_exec.broker import fair_queue
from agent_exec.script import Call

T = TypeVar("T")

#: How often what cannot announce itself is looked for: settlements to repeat, messages that nobody can settle any more.
TICK_S = 1.0
#: Renewals in one lease: two may fail before it lapses.
RENEWALS_PER_LEASE = 3
#: A settlement waits this long for Redis where the transport options set no `socket_timeout`; it is repeated later.
SETTLE_TIMEOUT_S = 5.0
#: Leases renewed in one call: about a millisecond of Redis.
RENEW_BATCH = 500
#: Acknowledgements in one call: the same.
DONE_BATCH = 50

logger = get_logger(__name__)


def run(client: Any, call: Call[T]) -> T:
    """Run one call over kombu's connections, whose errors kombu and Celery know how to treat; `client` is a redis.Redis."""
    try:
        reply = client.execute_command("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
    except NoScriptError:
        reply = client.execute_command("EVAL", call.script.source, len(call.keys), *call.keys, *call.args)
    return call.parse(reply)


class Leases:
    """What one channel's deliveries are held by."""

    def __init__(
        self,
        connect: Callable[[], redis.Redis],
        *,
        prefix: str,
        lease_s: float,
        max_faults: int,
        on_abandoned: Callable[[str], None],
    ) -> None:
        """Take how to `connect`, once the first delivery is expected; `on_abandoned` hears what nobody can settle."""
        self._connect = connect
        self._prefix = prefix
        self._lease_s = lease_s
        self._max_faults = max_faults
        self._on_abandoned = on_abandoned
        self._client: redis.Redis | None = None
        self._pid = 0
        #: Each delivery, and its message while somebody has it. Written by the consumer's and the acknowledging threads;
        #: each write is one dictionary operation.
        self._held: dict[str, weakref.ref[Any] | None] = {}
        self._abandoned: deque[str] = deque()
        self._done: deque[str] = deque()
        self._unsettled: deque[Call[Any]] = deque()
        self._one_at_a_time = threading.Lock()
        #: Held from the taking of what is to be said to its saying, so that a process which ends waits for the keeper.
        self._saying = threading.Lock()
        self._closed = False
        self._nudge = threading.Event()
        self.keeper = threading.Thread(target=self._keep, name="fair-queue-leases", daemon=True)
        self._failing = False

    def start(self) -> None:
        """Connect and begin to renew; the second call does nothing."""
        if self._client is None:
            self._client = self._connect()
            self._pid = os.getpid()
            _open.add(self)
            self.keeper.start()

    def run(self, call: Call[T]) -> T:
        """Run one call; callers wait for each other, so that a burst of acknowledgements needs one connection."""
        assert self._client is not None, "start() comes first"
        with self._one_at_a_time:
            return run(self._client, call)

    def hold(self, delivery: str) -> None:
        """Renew this delivery from now on."""
        self.start()
        self._held[delivery] = None

    def watch(self, delivery: str, message: Any) -> None:
        """Give the delivery back should `message` vanish unsettled."""
        abandoned = self._abandoned
        # The callback may run anywhere, in the middle of a garbage collection: it must take no lock.
        self._held[delivery] = weakref.ref(message, lambda _: abandoned.append(delivery))

    def ack(self, delivery: str) -> None:
        """The message is done."""
        self._settle(delivery, fair_queue.ack([delivery], prefix=self._prefix))

    def ack_soon(self, delivery: str) -> None:
        """The message is done, which the next pop says on its way: see `take_done`."""
        self._held.pop(delivery, None)
        self._done.append(delivery)

    def take_done(self) -> list[str]:
        """Return some of what `ack_soon` has been told, for the caller to say; give back what could not be said."""
        done: list[str] = []
        with suppress(IndexError):  # another thread may take some too
            while len(done) < DONE_BATCH:
                done.append(self._done.popleft())
        return done

    def give_back_done(self, done: Iterable[str]) -> None:
        """What was taken was not said, or it is not known whether it was. It may be said twice."""
        self._done.extend(done)

    def say_done(self) -> None:
        """Say it now: there is no pop to say it. While Redis is away, nobody waits here: the keeper says it later."""
        while self._done and not self._unsettled:
            with self._saying:
                if done := self.take_done():
                    self._say(done[0], fair_queue.ack(done, prefix=self._prefix))

    def requeue(self, delivery: str) -> None:
        """The worker refused the message: another may try."""
        self._settle(delivery, fair_queue.requeue(delivery, max_faults=self._max_faults, prefix=self._prefix))

    def release(self, delivery: str) -> None:
        """The message was never begun."""
        self._settle(delivery, fair_queue.release([delivery], prefix=self._prefix))

    def dead_letter(self, delivery: str, *, reason: str) -> None:
        """Nobody will run the message."""
        self._settle(delivery, fair_queue.dead_letter(delivery, reason=reason, prefix=self._prefix))

    def _settle(self, delivery: str, call: Call[Any]) -> None:
        self._held.pop(delivery, None)
        self._say(delivery, call)

    def _say(self, delivery: str, call: Call[Any]) -> None:
        if self._unsettled:  # Redis is away; a task that ends now need not find that out for itself
            self._unsettled.append(call)
            return
        try:
            self.run(call)
        except (RedisError, OSError) as error:
            # The task is over; that its worker cannot say so now is no reason to run it again later.
            logger.warning("Delivery %s: not settled, Redis: %s. Trying again until it is.", delivery, error)
            self._unsettled.append(call)

    def close(self, *, give_back: bool) -> None:
        """No more deliveries come. `give_back`: nobody runs those still held; otherwise they stay leased till settled."""
        self._closed = True
        if give_back and self._client is not None:
            self._give_back()
        self._nudge.set()

    @property
    def outliving(self) -> int:
        """How many deliveries are held though the channel has closed."""
        return len(self._held) if self._closed else 0

    def _give_back(self) -> None:
        """Settle all that is over and release the rest, for this process may end with the call."""
        if os.getpid() != self._pid:  # a fork's: they are its parent's
            return
        try:
            self._retry_unsettled()
            self.say_done()
            held = list(self._held)
            if held:
                self.run(fair_queue.release(held, prefix=self._prefix))
                self._held.clear()
        except (RedisError, OSError) as error:
            logger.warning(
                "%d deliveries not given back, %d not settled, Redis: %s.",
                len(self._held),
                len(self._unsettled) + len(self._done),
                error,
            )

    def _keep(self) -> None:
        renew_every_s = self._lease_s / RENEWALS_PER_LEASE
        renewed_at = monotonic()
        while True:
            self._nudge.wait(min(TICK_S, renew_every_s))
            self._nudge.clear()
            try:
                self._retry_unsettled()
                self.say_done()
                self._return_abandoned()
                if monotonic() - renewed_at >= renew_every_s:
                    self._renew()
                    renewed_at = monotonic()
            except (RedisError, OSError) as error:
                if not self._failing:
                    logger.warning(
                        "Leases of %d deliveries not renewed, Redis: %s. Trying again.", len(self._held), error
                    )
                self._failing = True
            else:
                self._failing = False
                if self._closed and not (self._held or self._done or self._unsettled or self._abandoned):
                    break
        assert self._client is not None
        pool = self._client.connection_pool
        pool.disconnect()
        if (sentinels := getattr(pool, "sentinel_manager", None)) is not None:
            sentinels.close()
        _open.discard(self)

    def _retry_unsettled(self) -> None:
        with self._saying:
            while self._unsettled:
                self.run(self._unsettled[0])
                self._unsettled.popleft()

    def _return_abandoned(self) -> None:
        while self._abandoned:
            delivery = self._abandoned.popleft()
            if delivery in self._held:
                logger.warning("Delivery %s: its message is gone, unsettled. It goes back to its queue.", delivery)
                self.requeue(delivery)
                self._on_abandoned(delivery)

    def _renew(self) -> None:
        assert self._client is not None
        held = list(self._held)
        for start in range(0, len(held), RENEW_BATCH):
            batch = held[start : start + RENEW_BATCH]
            # Not through `run`: an acknowledgement need not wait for a renewal.
            lost = run(self._client, fair_queue.renew(batch, lease_s=self._lease_s, prefix=self._prefix))
            for delivery in lost:
                # One that was settled while the call was under way is not held any more, and not lost.
                if self._held.pop(delivery, self) is not self:
                    logger.warning("Delivery %s: its lease lapsed while it ran; it may run twice.", delivery)


_open: weakref.WeakSet[Leases] = weakref.WeakSet()


def outliving() -> int:
    """Return how many of this process's deliveries have outlived the channel that they came by."""
    return sum(leases.outliving for leases in list(_open))


@atexit.register
def _give_back_at_exit() -> None:
    for leases in list(_open):
        leases._give_back()
