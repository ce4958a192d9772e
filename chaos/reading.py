"""The evidence, gathered: the store read past the proxy, the journals read from the neighbours.

Owns how each piece is come by. Does not know what should be in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from agent_exec import events, keys
from agent_exec.ledger import ledger
from agent_exec.store import BlockingStore
from chaos.evidence import Evidence, Execution, Logged, StoredKey
from chaos.load import Load
from chaos.neighbours import MARK, Watcher, canaries_of, frame_digest
from chaos.service import Service

#: How many keys one SCAN looks at.
SCAN_AT_ONCE = 1_000
#: How a key's members are counted, by its type.
_SIZES = {"zset": "ZCARD", "hash": "HLEN", "list": "LLEN", "stream": "XLEN", "set": "SCARD", "string": "STRLEN"}


def read_store(url: str) -> tuple[tuple[Execution, ...], tuple[StoredKey, ...]]:
    """Return every execution, and every key."""
    store = BlockingStore(url)
    try:
        stored = tuple(_stored(store))
        prefix = keys.execution_prefix()
        names = [one.name.removeprefix(prefix) for one in stored if one.name.startswith(prefix)]
        return tuple(_execution(store, *name.split(":", 1)) for name in names), stored
    finally:
        store.close()


def is_idle(url: str) -> bool:
    """Say whether nothing is left to do: no step to look at, no event or callback to send, no message in a queue."""
    store = BlockingStore(url)
    try:
        redis: Any = store.redis
        work = [
            keys.pending(),
            keys.outbox(),
            keys.outbox_unacked(),
            keys.callbacks(),
            keys.fair_message(),
            keys.fair_lease(),
        ]
        return not redis.exists(*work)
    finally:
        store.close()


def gather(service: Service, load: Load, watcher: Watcher, *, stragglers: list[str]) -> Evidence:
    """Return all there is; the service has ended, its neighbours and Redis have not."""
    executions, stored = read_store(service.redis.url)
    tool_calls, effects = service.neighbours.tool_calls()
    return Evidence(
        submissions=tuple(load.submissions),
        refusals=tuple(load.refusals),
        cancels=tuple(load.cancels),
        calls=service.neighbours.calls(service.worker_of_key),
        tool_calls=tool_calls,
        effects=effects,
        notices=tuple(watcher.notices),
        callbacks=service.neighbours.callbacks(),
        executions=executions,
        deaths=tuple(service.deaths),
        outages=tuple(service.outages),
        shifts=tuple(service.shifts),
        keys=stored,
        stragglers=tuple(stragglers),
    )


def _stored(store: BlockingStore) -> Iterator[StoredKey]:
    redis: Any = store.redis
    for raw in redis.scan_iter(count=SCAN_AT_ONCE):
        kind = redis.type(raw).decode()
        size = redis.execute_command(_SIZES[kind], raw)
        yield StoredKey(name=raw.decode(), expires=redis.ttl(raw) != -1, size=size)


def _execution(store: BlockingStore, tenant_id: str, execution_id: str) -> Execution:
    record = store.run(ledger.look(tenant_id, execution_id))
    found = MARK.search(record.message.payload.query)
    redis: Any = store.redis
    answers = redis.xrange(keys.responses(tenant_id, execution_id))
    celery = redis.get(keys.celery_result(execution_id))
    meta = None if celery is None else json.loads(celery)
    response = record.fields.get("response")
    return Execution(
        execution_id=execution_id,
        tenant_id=record.tenant_id,
        mark=found[0] if found else record.message.payload.query,
        status=record.status,
        called_back=record.message.metadata.callback_url is not None,
        log=tuple(_log(store, tenant_id, execution_id)),
        response=None if response is None else json.loads(response),
        answers=tuple(json.loads(fields[b"response"]) for _, fields in answers),
        celery=None if meta is None else (meta["status"], meta["result"]),
    )


def _log(store: BlockingStore, tenant_id: str, execution_id: str) -> Iterator[Logged]:
    after = 0
    while True:
        page = store.run(events.read(tenant_id, execution_id, after=after))
        for event in page.events:
            text = page.frame(event)
            frame = json.loads(text)
            yield Logged(
                sequence=event.sequence,
                event=str(event.name),
                at_ms=event.at_ms,
                data=frame["data"],
                digest=frame_digest(frame),
                canaries=canaries_of(text),
            )
        if not page.events:
            return
        after = page.events[-1].sequence
