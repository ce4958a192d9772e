"""Executions with a callback, brought to their end by the ledger's own calls."""

from __future__ import annotations

import json
from typing import Any, Literal

from agent_exec import keys, submission
from agent_exec.callbacks.callbacks import CallbackRef
from agent_exec.callbacks.destination import Rules
from agent_exec.callbacks.door import Door
from agent_exec.contract.event import EventName
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.message import Message
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, Event, Finished, Hold, StepRef
from agent_exec.script import Call
from agent_exec.store import BlockingStore, Store

URL = "https://hooks.example/ended?token=s3cret"
FINISHED_AT = "2026-01-02T03:04:05.678000Z"


def asked(url: str = URL, *, tenant_id: str = "acme") -> Message:
    request = ExecutionRequest(agent_id="desk", query="?", callback_url=url)
    return submission.message_of(request, tenant_id=tenant_id)


def storing(message: Message, rules: Rules | None = None) -> Call[Any]:
    door = Door(rules or Rules())
    return submission.store(message, open_retention_s=86_400, max_queued=10_000, callback_door=door)


def claiming(message: Message) -> Call[Any]:
    return ledger.claim(StepRef(message.tenant_id, message.execution_id, "prompt"), lease_s=600, worker="w")


def response_of(ref: CallbackRef, *, status: str = "completed", text: str = "") -> dict[str, Any]:
    at = {"created_at": FINISHED_AT, "finished_at": FINISHED_AT}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    names = {"execution_id": ref.callback_id, "tenant_id": ref.tenant_id, "agent_id": "desk"}
    return {**names, "status": status, "output": {"text": text}, "usage": usage, **at}


def finishing(
    hold: Hold, *, status: Literal["completed", "failed"] = "completed", text: str = ""
) -> Call[Finished | str]:
    response = response_of(CallbackRef(hold.ref.tenant_id, hold.ref.execution_id), status=status, text=text)
    return ledger.finish(
        hold,
        result="{}",
        status=status,
        response=json.dumps(response, separators=(",", ":"), ensure_ascii=False),
        celery_result="{}",
        events=[Event(EventName.COMPLETED if status == "completed" else EventName.FAILED, "{}")],
        retention_s=3_600,
        cancelled=status == "failed",
    )


def ended(
    store: BlockingStore, message: Message | None = None, *, rules: Rules | None = None, **how: Any
) -> CallbackRef:
    """Bring an execution with a callback to its end."""
    message = message or asked()
    store.run(storing(message, rules))
    claimed = store.run(claiming(message))
    assert isinstance(claimed, Claimed)
    assert isinstance(store.run(finishing(claimed.hold, **how)), Finished)
    return CallbackRef(message.tenant_id, message.execution_id)


async def ended_soon(store: Store, url: str, *, rules: Rules, tenant_id: str = "acme", **how: Any) -> CallbackRef:
    """Bring an execution with a callback to its end."""
    message = asked(url, tenant_id=tenant_id)
    await store.run(storing(message, rules))
    claimed = await store.run(claiming(message))
    assert isinstance(claimed, Claimed)
    assert isinstance(await store.run(finishing(claimed.hold, **how)), Finished)
    return CallbackRef(message.tenant_id, message.execution_id)


def time_passes(store: BlockingStore, tenant_id: str, *, seconds: float) -> None:
    """Have the callbacks of a tenant be due, and their leases lapse, that much earlier."""
    for zset in (keys.callbacks_waiting(tenant_id), keys.callbacks_sending(tenant_id)):
        for member in store.redis.zrange(zset, 0, -1):
            store.redis.zincrby(zset, -seconds * 1000, member)
    if store.redis.zscore(keys.callbacks(), tenant_id) is not None:
        store.redis.zincrby(keys.callbacks(), -seconds * 1000, tenant_id)
        store.redis.lpush(keys.callbacks_wake(), "1")
