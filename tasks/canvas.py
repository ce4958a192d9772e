"""Celery's own answer to "what follows the end of this task?", given without sending or storing any of it.

Owns an application of Celery whose messages, results and chords are written into a `Transaction`. What follows a success
or a failure is decided by Celery's code, on behalf of the app that sent the message; what it comes to is a list of commands
of Redis, which can be carried out all at once, or not at all. Does not know executions, nor when a transaction is written.

Its one stand-in for code of Celery's is `on_chord_part_return`: that one's script takes a claim in Redis before it sends the
chord's body, and a crash between the two leaves the body unsent. Here both are one.

The app's own configuration is not known here. What this assumes of it: results and messages as JSON; Celery's names for
results and chords, without prefix; chords with results in order; and kombu's default `priority_steps`.
"""

# celery has no types, and kombu says that it is typed, and mostly is not:
# mypy: disable-error-code="no-untyped-call, misc"

from __future__ import annotations

import base64
import contextlib
import time
import uuid
from bisect import bisect
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

from celery import Celery, Task, group
from celery._state import _set_current_app, _task_stack, get_current_app
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult
from celery.states import PROPAGATE_STATES
from kombu.serialization import dumps as serialize
from kombu.transport.redis import Channel
from kombu.utils.json import dumps, loads

from agent_exec import keys
from agent_exec.broker import fair_queue
from agent_exec.contract.links import OURS, Links
from agent_exec.routing import EXECUTE_TASK, EXECUTION_FAMILY, FAMILIES
from agent_exec.transaction import Transaction

#: Where a link goes that names no queue: Celery's own default.
DEFAULT_QUEUE = "celery"
#: What is shown of a link's arguments.
SHOWN = "…"
#: Late copies of a chord's parts are known for so long; Celery's own figure.
CHORD_DONE_S = 300


class Canvas:
    """One application, which plans for one transaction at a time."""

    def __init__(self, *, result_expires_s: int) -> None:
        """Make it; `result_expires_s` is how long results are kept."""
        self._app = _App("canvas", set_as_current=False)
        self._app.conf.update(
            broker_url="memory://",
            result_expires=result_expires_s,
            result_cache_max=-1,
            task_default_queue=DEFAULT_QUEUE,
            task_publish_retry=False,
        )
        self._task: Task = self._app.task(_ended, name=f"{OURS}ended")

    def succeed(self, transaction: Transaction, links: str, value: Any, *, own_result: bool = True) -> None:
        """Plan what follows the task's success: its result, callbacks, the next of its chain, its part in a chord."""
        with self._planning(transaction, links, own_result=own_result) as request:
            told = {"args": (value,), "parent_id": request.id, "root_id": request.root_id or request.id}
            signatures = [maybe_signature(one, app=self._app) for one in request.callbacks or ()]
            groups = [one for one in signatures if isinstance(one, group)] if len(signatures) > 1 else []
            for one in groups:
                one.apply_async(**told)
            match [one for one in signatures if one not in groups]:
                case []:
                    pass
                case [one]:
                    one.apply_async(**told)
                case several:
                    group(several, app=self._app).apply_async(**told)
            if request.chain:
                maybe_signature(request.chain[-1], app=self._app).apply_async(chain=request.chain[:-1], **told)
            self._app.backend.mark_as_done(request.id, value, request, not request.ignore_result)

    def fail(self, transaction: Transaction, links: str, error: Exception, *, own_result: bool = True) -> None:
        """Plan what follows the task's failure: its result, that of its chain, errbacks, its part in a chord."""
        with self._planning(transaction, links, own_result=own_result) as request:
            self._app.backend.mark_as_failure(request.id, error, None, request, not request.ignore_result)

    def complaints(self, links: Links) -> list[str]:
        """Say what of these links could not be sent, by planning either end."""
        found: list[str] = []
        text = links.model_dump_json()
        try:
            for plan in (
                lambda nowhere: self.succeed(nowhere, text, None),
                lambda nowhere: self.fail(nowhere, text, ChordError("")),
                lambda nowhere: self._run_body(nowhere, text),
            ):
                plan(Transaction(_Nothing()))
                found += self._app.producer.complaints
        except Exception as error:  # whatever Celery says of a canvas that is none
            found.append(f"Celery cannot read them: {type(error).__name__}")
        return found

    def _run_body(self, transaction: Transaction, links: str) -> None:
        with self._planning(transaction, links) as request:
            if request.chord is not None:
                maybe_signature(request.chord, app=self._app).delay([])

    @contextlib.contextmanager
    def _planning(self, transaction: Transaction, links: str, *, own_result: bool = True) -> Iterator[Context]:
        """Have the application be Celery's current one, and the task its current task, while the block plans."""
        app, before = self._app, get_current_app()
        request = Context(
            loads(links), task=EXECUTE_TASK, args=(), kwargs={}, headers=None, delivery_info={}, called_directly=False
        )
        request.id = request.task_id
        app.backend.begin(transaction, unstored=None if own_result else request.id)
        app.producer.begin(transaction)
        _set_current_app(app)
        _task_stack.push(self._task)
        self._task.request_stack.push(request)
        try:
            yield request
        finally:
            self._task.request_stack.pop()
            _task_stack.pop()
            _set_current_app(before)
            for name in [name for name in app.amqp.queues if name != DEFAULT_QUEUE]:
                del app.amqp.queues[name]  # made for a message; else their number would grow


def _ended() -> None:
    """Stand for the task that has ended; never run."""


class _Nothing(Mapping[Any, Any]):
    """A Redis in which there is nothing."""

    def __getitem__(self, _: Any) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Producer:
    """Takes what Celery publishes, and writes it as kombu's Redis transport does."""

    def __init__(self) -> None:
        self.connection = self
        self.complaints: list[str] = []

    def begin(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self.complaints = []

    def _reraise_as_library_errors(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def publish(
        self,
        body: Any,
        *,
        exchange: str,
        routing_key: str,
        headers: dict[str, Any],
        serializer: str,
        delivery_mode: int | str,
        priority: int | None = None,
        expiration: float | None = None,
        compression: str | None = None,
        **options: Any,
    ) -> None:
        # An answer is not shown wherever a message is: in events, in logs, in Flower.
        headers["argsrepr"] = headers["kwargsrepr"] = SHOWN
        content_type, encoding, payload = serialize(body, serializer)
        if expiration is not None:
            options["expiration"] = str(int(expiration * 1000))
        properties = {name: value for name, value in options.items() if name not in _NO_PROPERTIES}
        message = {
            "body": base64.b64encode(payload.encode() if isinstance(payload, str) else payload).decode(),
            "content-encoding": encoding,
            "content-type": content_type,
            "headers": headers,
            "properties": {
                **properties,
                "delivery_mode": 2 if delivery_mode in (2, "persistent") else 1,
                "delivery_info": {"exchange": exchange, "routing_key": routing_key},
                "priority": priority or 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
        text = dumps(message)
        complaint = _complaint(headers["task"], content_type, exchange, routing_key, compression)
        if complaint is None:
            self._transaction.write("LPUSH", _list_of(routing_key, priority or 0), text)
        else:
            self.complaints.append(complaint)
            bury(self._transaction, complaint, queue=routing_key, tag=headers["id"], message=text)


#: What Celery says to a producer beside a message's properties.
_NO_PROPERTIES = {"retry", "retry_policy", "declare", "timeout", "confirm_timeout"}


def _complaint(task: str, content_type: str, exchange: str, queue: str, compression: str | None) -> str | None:
    """Say why a message is not sent."""
    if exchange:
        return f"the link to '{task}' names the exchange '{exchange}': links go to queues, by their names"
    if content_type != "application/json" or compression is not None:
        return f"the link to '{task}' is not to be sent as plain JSON"
    if task.startswith(OURS) and task != EXECUTE_TASK:
        return f"a link names '{task}', a task of this service"
    if fair_queue.family_of(queue) in FAMILIES:
        if task == EXECUTE_TASK and fair_queue.family_of(queue) == EXECUTION_FAMILY:
            return None
        return f"the link to '{task}' names the queue '{queue}', which is this service's"
    if any(fnmatch(queue, pattern) for pattern in keys.KNOWN):
        return f"the link to '{task}' names the queue '{queue}', under which something else is kept"
    return None


def _list_of(queue: str, priority: int) -> str:
    """Return the LIST where a message is queued."""
    if fair_queue.family_of(queue) == EXECUTION_FAMILY:  # a plain message; the tenant stands in it
        return keys.fair_plain(EXECUTION_FAMILY)
    steps = Channel.priority_steps
    step = steps[bisect(steps, max(0, min(9, priority))) - 1]
    return f"{queue}{Channel.sep}{step}" if step else queue


def bury(transaction: Transaction, reason: str, *, queue: str, tag: str, message: str) -> None:
    """Keep a message that cannot be sent among the dead letters."""
    letter = {
        "at_ms": int(time.time() * 1000),
        "reason": reason,
        "queue": queue,
        "tag": tag,
        "deliveries": 0,
        "bytes": len(message),
        "message": message[: fair_queue.DEAD_LETTER_MAX_BYTES],
    }
    transaction.write("LPUSH", keys.fair_dead(), dumps(letter))
    transaction.write("LTRIM", keys.fair_dead(), 0, fair_queue.DEAD_LETTERS_KEPT - 1)
    transaction.write("EXPIRE", keys.fair_dead(), fair_queue.DEAD_LETTERS_EXPIRE_S)


class _Nobody:
    """Whoever else Celery would have listen, or be told, at once."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def revoke(self, *_: Any, **__: Any) -> None:
        """Tell no worker of tasks that were never sent."""


class _Backend(RedisBackend):
    """Celery's results in Redis, read and written by a transaction."""

    ResultConsumer = _Nobody

    def begin(self, transaction: Transaction, *, unstored: str | None) -> None:
        """Begin a plan, in which the result of the task `unstored` is not written."""
        self._transaction = transaction
        self._parts: dict[str, list[tuple[float, bytes]]] = {}
        self._unstored = unstored

    # -- what the base class does to Redis

    @property
    def client(self) -> _Backend:
        return self

    def get(self, key: Any) -> bytes | None:
        return self._transaction.get(_text(key))

    def mget(self, names: Any) -> list[bytes | None]:
        return [self.get(key) for key in names]

    def set(self, key: Any, value: Any, ex: int | None = None, expires: int | None = None, **_: Any) -> None:
        lifetime_s = ex or expires or self.expires
        self._transaction.write("SET", _text(key), value, "EX", lifetime_s)
        if ex is None:
            self._transaction.write("PUBLISH", _text(key), value)

    def delete(self, *names: Any) -> None:
        for key in names:
            self._transaction.write("DEL", _text(key))

    def expire(self, key: Any, value: int) -> None:
        self._transaction.write("EXPIRE", _text(key), value)

    # -- nobody waits here for a result

    def on_task_call(self, producer: Any, task_id: str) -> None: ...

    def add_pending_result(self, result: Any, *_: Any, **__: Any) -> Any:
        return result

    def remove_pending_result(self, result: Any) -> Any:
        return result

    # -- results and chords

    def _store_result(self, task_id: str, result: Any, *args: Any, **kwargs: Any) -> Any:
        return result if task_id == self._unstored else super()._store_result(task_id, result, *args, **kwargs)

    def fail_from_current_stack(self, task_id: str, exc: Any = None) -> None:
        """Mark a task as failed; this stack is none of the app's."""
        self.mark_as_failure(task_id, exc)

    def on_chord_part_return(self, request: Context, state: str, result: Any, propagate: Any = None, **_: Any) -> None:
        """Add a part to a chord; the last of them has the body sent, or fail."""
        if not request.group or not request.id:
            return
        parts, late, size, done, seen = (
            _text(self.get_key_for_group(request.group, suffix)) for suffix in (".j", ".t", ".s", ".c", ".d")
        )
        index = "+inf" if request.group_index is None else str(request.group_index)
        member = f"{request.id}:{index}"
        claimed, expected, more, known, count = self._transaction.read(
            ("GET", done), ("GET", size), ("GET", late), ("SISMEMBER", seen, member), ("ZCARD", parts)
        )
        if claimed == b"done":
            return
        own = self._parts.setdefault(request.group, [])
        if not known:
            encoded = self.encode([1, request.id, state, self.encode_result(result, state)])
            own.append((float(index), encoded.encode()))
            self._transaction.write("ZADD", parts, index, encoded)
            self._transaction.write("SADD", seen, member)
            for key in (parts, late, size, seen):
                self.expire(key, self.chord_expires)
            self.expire(self.get_key_for_group(request.group), self._chord_result_expires)
        if expected is None or claimed is not None or int(count or 0) + len(own) != int(expected) + int(more or 0):
            return
        callback = maybe_signature(request.chord, app=self.app)
        try:
            results = self._joined(request.group, parts)
        except ChordError as error:
            self.chord_error_from_stack(callback, error)
            self.delete(size)
            return
        callback.delay(results)
        self.delete(parts, late, size, seen)
        self._transaction.write("SET", done, "done", "EX", CHORD_DONE_S)

    def _joined(self, group_id: str, parts: str) -> list[Any]:
        """Return the results of a chord whose parts are all there.

        Raises:
            ChordError: one of them failed.
        """
        nested = self.get(self.get_key_for_group(group_id))
        if nested is not None:  # there are groups in the chord, and their results are lists in its own
            return self._results(self.restore_group(group_id))
        [flat] = self._transaction.glance(("ZRANGE", parts, "0", "-1", "WITHSCORES"))
        found = [(float(score), text) for text, score in zip(flat[::2], flat[1::2], strict=True)]
        return [self._unpack_chord_result(text, self.decode) for _, text in sorted(found + self._parts[group_id])]

    def _results(self, results: GroupResult) -> list[Any]:
        found = []
        for one in results.results:
            if isinstance(one, GroupResult):
                found.append(self._results(one))
                continue
            meta = self.get_task_meta(one.id)
            if meta["status"] in PROPAGATE_STATES:
                raise ChordError(f"Dependency {one.id} raised {meta['result']!r}")
            found.append(meta["result"])
        return found


class _App(Celery):
    """Celery, which reaches no broker and no backend."""

    control_cls = _Nobody

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.producer = _Producer()

    def _get_backend(self) -> _Backend:
        return _Backend(app=self, url="redis://")

    def producer_or_acquire(self, producer: Any = None) -> contextlib.AbstractContextManager[_Producer]:
        return contextlib.nullcontext(self.producer)


def _text(key: bytes | str) -> str:
    return key.decode() if isinstance(key, bytes) else key
