"""One family's connection of a worker: asks for messages, and blocks for a wake-up while there is none.

Owns what is under way on the connection and what a reply means. Does not know prefetch limits nor Celery: the channel
says when to ask, and takes what arrives.

The wait is `BLMOVE family arriving`, not BRPOP: what wakes a worker (a token, or a plain message that a stock producer
pushed) rests in a list of Redis before and after, so a worker may be killed at any moment. The message itself is then
taken by the pop script, from the arriving list or any other, with its un-acked record. A wait ends after `WAIT_S` at the
latest and a pop follows it, so a token that a stopped worker swallowed, and a plain message in one of the priority
variants that no BLMOVE watches, wait for that long and no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from queue import Empty
from time import monotonic
from typing import Any, assert_never

import redis
from kombu.log import get_logger
from redis.exceptions import BusyLoadingError, NoScriptError, RedisError, ResponseError

from agent_exec import keys
from agent_exec.broker.fair_queue import Popped
from agent_exec.script import Call

#: The longest wait for a wake-up: an idle worker asks Redis this often.
WAIT_S = 1.0
#: A reply overdue by this much will not come: the connection is half open.
OVERDUE_S = 3.0
#: The pause after an error that Redis answered with: full, loading, a replica.
PAUSE_S = 1.0

#: What a reply that no longer comes raises.
LOST = (redis.ConnectionError, redis.TimeoutError, OSError)

logger = get_logger(__name__)


class UnderWay(Enum):
    """What was sent and not yet answered."""

    NOTHING = auto()
    POP = auto()
    WAIT = auto()
    PASS_ON = auto()


class Lane:
    """A family's connection. `ready`: there may be work, so ask before waiting. `woken`: somebody said that there is."""

    def __init__(
        self,
        family: str,
        *,
        prefix: str,
        client: redis.Redis,
        take: Callable[[Lane, Popped], None],
        unsaid: Callable[[Sequence[str]], None],
    ) -> None:
        """Take a `client` for a connection of this lane alone, who takes what is popped, and what a pop did not settle."""
        self.family = family
        self.client: Any = client
        self.ready = True
        self.woken = False
        self.under_way = UnderWay.NOTHING
        self.connected = False
        self.resume_at = 0.0
        self._take = take
        self._unsaid = unsaid
        self._done: Sequence[str] = ()
        self._plain = keys.fair_plain(family, prefix)
        self._arriving = keys.fair_arriving(family, prefix)
        self._call: Call[Any] | None = None
        self._sent_at = 0.0

    @property
    def type(self) -> str:
        """What kombu's poller knows it by."""
        return f"FAIR {self.family}"

    @property
    def idle(self) -> bool:
        """May something be sent?"""
        return self.under_way is UnderWay.NOTHING and monotonic() >= self.resume_at

    def pop(self, call: Call[Popped], *, done: Sequence[str] = ()) -> None:
        """Ask for a message; the call says as well that the deliveries `done` are."""
        self.woken = False
        self._done = done
        self._send_call(UnderWay.POP, call)

    def wait(self) -> None:
        """Block for a wake-up."""
        self._send(UnderWay.WAIT, "BLMOVE", self._plain, self._arriving, "RIGHT", "LEFT", WAIT_S)

    def pass_on(self, call: Call[bool]) -> None:
        """Hand a wake-up on that came when there was no room."""
        self.woken = False
        self._send_call(UnderWay.PASS_ON, call)

    def _send_call(self, what: UnderWay, call: Call[Any]) -> None:
        self._call = call
        self._send(what, "EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)

    def _send(self, what: UnderWay, *command: Any) -> None:
        self.under_way, self._sent_at = what, monotonic()
        try:
            self.client.connection.send_command(*command)
        except LOST:
            self.drop()

    def read(self) -> bool:
        """Take the reply that has arrived.

        Raises:
            Empty: it was no message.
        """
        answered = self.under_way
        if answered is UnderWay.NOTHING:  # readable with nothing asked: the server has closed the connection
            self.drop()
            raise Empty
        try:
            reply = self.client.parse_response(self.client.connection, answered.name)
        except NoScriptError:
            self._load()
            self.forget()
            self.woken = answered is UnderWay.PASS_ON
            raise Empty from None
        except (ResponseError, BusyLoadingError) as error:
            logger.warning("Family %s: Redis answered %s; asking again in %s s.", self.family, error, PAUSE_S)
            self.drop()
            self.resume_at = monotonic() + PAUSE_S
            raise Empty from None
        except LOST:
            # A connection that was cut is no lost broker: the next poll connects again, and only if that fails does
            # Celery hear of it and start its consumer anew.
            self.drop()
            raise Empty from None
        self.under_way, self._done = UnderWay.NOTHING, ()
        match answered:
            case UnderWay.POP:
                assert self._call is not None
                self._take(self, self._call.parse(reply))
                return True
            case UnderWay.WAIT:
                self.ready, self.woken = True, reply is not None
                raise Empty
            case UnderWay.PASS_ON:
                raise Empty
            case _:
                assert_never(answered)

    def _load(self) -> None:
        """Give the script to a server that does not have it: at first use, and after its restart."""
        assert self._call is not None
        self.client.connection.send_command("SCRIPT", "LOAD", self._call.script.source)
        self.client.parse_response(self.client.connection, "SCRIPT LOAD")

    def forget(self) -> None:
        """Whatever was asked will not be answered."""
        self.under_way = UnderWay.NOTHING
        done, self._done = self._done, ()
        self._unsaid(done)

    def drop(self) -> None:
        """Give the connection up; the next poll makes another."""
        self.forget()
        self.connected = False
        self.ready = True
        self.client.connection.disconnect()

    def drop_if_overdue(self, readable: Callable[[Any], bool]) -> None:
        """Give up a connection whose reply will not come. One that has arrived and was not read yet is not overdue."""
        if self.under_way is UnderWay.NOTHING or monotonic() - self._sent_at < WAIT_S + OVERDUE_S:
            return
        sock = self.client.connection._sock
        if sock is not None and not readable(sock):
            logger.warning("Family %s: no reply for %.0f s; connecting anew.", self.family, monotonic() - self._sent_at)
            self.drop()

    def close(self) -> Popped | None:
        """Disconnect. A pop that is under way is waited for: its message is returned, to be given back at once."""
        connection, popped = self.client.connection, None
        if connection is None:
            return None
        if self.under_way is UnderWay.POP and connection._sock is not None:
            assert self._call is not None
            try:
                if connection.can_read(timeout=WAIT_S):
                    popped = self._call.parse(self.client.parse_response(connection, "EVALSHA"))
                    self._done = ()
            # Then its lease lapses. (ValueError: of a socket that is closed, where hiredis reads.)
            except (RedisError, OSError, ValueError) as error:
                logger.debug("Family %s: the last pop was not read: %s", self.family, error)
        self.forget()
        connection.disconnect()
        self.client.connection = None
        self.client.connection_pool.release(connection)
        return popped
