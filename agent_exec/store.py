"""The one store, Redis: connections, and the running of script calls.

Owns pipelining, loading scripts the server has forgotten, turning Redis's errors into ours, and telling the log of an
outage. Does not know what any script does. `Store` is for coroutines, `BlockingStore` for the synchronous client; the
calls are the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from redis.exceptions import (
    AskError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from agent_exec import address
from agent_exec.errors import StorageError, StorageFull, StorageUnavailable
from agent_exec.pipeline import Pipeline, Word
from agent_exec.script import Call

T = TypeVar("T")
log = logging.getLogger(__name__)

#: A command that waited this long has lost its server (faults F19, F20): the caller hears within 3 s.
COMMAND_TIMEOUT_S = 2.5
CONNECT_TIMEOUT_S = 2.0
#: A connection that was cut is no outage: the call is sent once more, on another one.
RETRIES = 1
#: How often a call that must get through is tried.
INSIST_EVERY_S = 0.2
#: An outage is told of when it begins, this often while it lasts, and when nothing was refused for so long.
REMIND_S = 60.0
QUIET_S = 1.0
#: How many calls travel in one pipeline: bounds the reply that one connection buffers.
MAX_BATCH = 256
#: What every connection is opened with.
CONNECTION: dict[str, Any] = {
    "socket_timeout": COMMAND_TIMEOUT_S,
    "socket_connect_timeout": CONNECT_TIMEOUT_S,
    "socket_keepalive": True,
    "health_check_interval": 10,
}


class Outage:
    """What a log says of a Redis that is away or full: a line when it begins, one a minute, one when it is over."""

    def __init__(self) -> None:
        """Begin in peace."""
        self._since_s: float | None = None
        self._met_s = 0.0
        self._told_s = 0.0
        self._refused = 0

    def met(self, error: StorageError, *, now_s: float) -> None:
        """A call came to `error`."""
        self._met_s = now_s
        self._refused += 1
        if self._since_s is None:
            self._since_s = self._told_s = now_s
            log.warning("%s What is under way is kept and tried again.", error)
        elif now_s - self._told_s >= REMIND_S:
            self._told_s = now_s
            log.warning("%s So it has been for %.0f s, %d calls.", error, now_s - self._since_s, self._refused)

    def passed(self, *, now_s: float) -> None:
        """A call got through; one that only reads says little about a server that is full."""
        if self._since_s is not None and now_s - self._met_s >= QUIET_S:
            log.warning("Redis serves again, after %.1f s and %d calls.", now_s - self._since_s, self._refused)
            self._since_s, self._refused = None, 0


class Store:
    """Redis for coroutines: calls made in the same moment travel in one pipeline over one connection.

    A cancelled caller never leaves a half-read reply behind: the pipeline belongs to the store's own task. What it had
    asked for is not sent any more, if it was not under way yet.
    """

    def __init__(self, url: str) -> None:
        """Take the server's `url`; nothing connects before the first call."""
        self.redis = address.async_client(url, retries=RETRIES, **CONNECTION)
        once = {**CONNECTION, "socket_timeout": None, "health_check_interval": 0}  # an exchange has its own limit
        self._pipeline = Pipeline(url, timeout_s=CONNECTION["socket_timeout"], **once)
        self._waiting: list[tuple[Call[Any], asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None
        self._outage = Outage()

    async def run(self, call: Call[T]) -> T:
        """Run one call.

        Raises:
            StorageUnavailable: Redis did not answer; the call may or may not have taken effect.
            StorageFull: Redis refuses writes.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return await future

    async def run_many(self, calls: Sequence[Call[T]]) -> list[T]:
        """Run calls in order in as few round trips as they need; the first error is raised when all have run."""
        outcomes = await asyncio.gather(*[self.run(call) for call in calls], return_exceptions=True)
        return [_raised(outcome) for outcome in outcomes]

    async def insist(self, call: Call[T]) -> T:
        """Run one call, through an outage of Redis however long: what was done is not thrown away.

        The call must be safe to repeat after a lost reply, as the ledger's are.
        """
        while True:
            try:
                return await self.run(call)
            except StorageError:  # told of in `_send`, once for all that wait
                await asyncio.sleep(INSIST_EVERY_S)

    async def _send(self) -> None:
        while self._waiting:
            wanted = [one for one in self._waiting if not one[1].done()]  # else its caller was cancelled
            batch, self._waiting = wanted[:MAX_BATCH], wanted[MAX_BATCH:]
            try:
                replies = await self._replies([call for call, _ in batch])
            except Exception as error:  # each caller gets it
                # Also those who wait behind: else the last of a thousand would hear of it many time-outs later.
                batch, self._waiting = batch + self._waiting, []
                replies = [error] * len(batch)
            for (call, future), reply in zip(batch, replies, strict=True):
                outcome = _outcome(call, reply)
                self._note(outcome)
                if future.done():
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
        self._sender = None

    def _note(self, outcome: object) -> None:
        if isinstance(outcome, StorageError):
            self._outage.met(outcome, now_s=time.monotonic())
        else:
            self._outage.passed(now_s=time.monotonic())

    async def _replies(self, calls: list[Call[Any]]) -> list[Any]:
        replies = await self._pipeline.exchange([_command(call) for call in calls])
        forgotten = _forgotten(replies)
        if forgotten:
            again = await self._pipeline.exchange([_command(calls[index], whole=True) for index in forgotten])
            for index, reply in zip(forgotten, again, strict=True):
                replies[index] = reply
        return replies

    async def aclose(self) -> None:
        """Close the connections; calls still waiting are finished first."""
        if self._sender is not None:
            await self._sender
        await self._pipeline.aclose()
        await self.redis.aclose()


class BlockingStore:
    """Redis for synchronous callers: the client, the CLI, tests."""

    def __init__(self, url: str) -> None:
        """Take the server's `url`; nothing connects before the first call."""
        self.redis = address.blocking_client(url, retries=RETRIES, **CONNECTION)

    def run(self, call: Call[T]) -> T:
        """Run one call; the errors are those of `Store.run`."""
        return self.run_many([call])[0]

    def run_many(self, calls: Sequence[Call[T]]) -> list[T]:
        """Run calls in order in pipelines of `MAX_BATCH`; the first error is raised when all have run."""
        return [_raised(outcome) for outcome in self.run_each(calls)]

    def run_each(self, calls: Sequence[Call[T]]) -> list[T | Exception]:
        """Run calls in order in pipelines of `MAX_BATCH`; return what each came to."""
        outcomes: list[T | Exception] = []
        for start in range(0, len(calls), MAX_BATCH):
            batch = calls[start : start + MAX_BATCH]
            with redis_errors():
                replies = self._replies(batch)
            for call, reply in zip(batch, replies, strict=True):
                outcome = _outcome(call, reply)
                outcomes.append(outcome)
        return outcomes

    def _replies(self, calls: Sequence[Call[Any]]) -> list[Any]:
        replies: list[Any] = _batch(self.redis.pipeline(transaction=False), calls).execute(raise_on_error=False)
        forgotten = _forgotten(replies)
        if forgotten:
            again = _batch(self.redis.pipeline(transaction=False), [calls[index] for index in forgotten], whole=True)
            for index, reply in zip(forgotten, again.execute(raise_on_error=False), strict=True):
                replies[index] = reply
        return replies

    def close(self) -> None:
        """Close the connections."""
        self.redis.close()


def _batch(pipeline: Any, calls: Sequence[Call[Any]], *, whole: bool = False) -> Any:
    """Queue calls on a pipeline."""
    for call in calls:
        pipeline.execute_command(*_command(call, whole=whole))
    return pipeline


def _command(call: Call[Any], *, whole: bool = False) -> tuple[Word, ...]:
    """Return a call as a command: by the script's digest, or `whole` where the server has forgotten it."""
    how, script = ("EVAL", call.script.source) if whole else ("EVALSHA", call.script.sha)
    return how, script, len(call.keys), *call.keys, *call.args


def _forgotten(replies: list[Any]) -> list[int]:
    return [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]


def _outcome(call: Call[T], reply: Any) -> T | Exception:
    try:
        with redis_errors():
            if isinstance(reply, Exception):
                raise reply
            return call.parse(reply)
    except Exception as error:  # handed to the caller, who raises it
        return error


def _raised(outcome: T | BaseException) -> T:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn Redis's errors into ours."""
    try:
        yield
    except (OutOfMemoryError, ReadOnlyError, MasterDownError) as error:
        raise StorageFull(f"Redis refuses writes: {_said(error)}. Free memory, or point at the primary.") from error
    except (RedisConnectionError, RedisTimeoutError, InvalidResponse, OSError) as error:
        raise StorageUnavailable(
            f"Redis does not answer: {_said(error)}. Check AGENT_EXEC_REDIS_URL and that the server runs."
        ) from error
    except RuntimeError as error:
        if "handler is closed" not in str(error):  # uvloop's word for a connection that was lost
            raise
        raise StorageUnavailable(f"The connection to Redis was lost: {_said(error)}. It is tried again.") from error
    except ResponseError as error:
        said = str(error)
        if said.startswith(("UNBLOCKED ", "BUSY ")):  # a fail-over, or a script of somebody else's
            raise StorageUnavailable(f"Redis is busy: {_said(error)}. It is tried again.") from error
        if said.startswith(("MISCONF ", "NOREPLICAS ")):
            raise StorageFull(f"Redis refuses writes: {_said(error)}. See its log and its disk.") from error
        if isinstance(error, NoPermissionError):
            raise StorageUnavailable(
                f"Redis does not let this user do its work: {_said(error)}. Give it the rights of docs/redis-users.acl."
            ) from error
        if isinstance(error, AskError | ClusterDownError | ClusterCrossSlotError):
            raise StorageUnavailable(
                f"This is a node of a Redis Cluster: {_said(error)}. Point AGENT_EXEC_REDIS_URL at a single primary."
            ) from error
        raise


def _said(error: Exception) -> str:
    return str(error).rstrip(".")
