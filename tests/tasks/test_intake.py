"""Taking in a message: stored once, or a dead letter that says why and a Celery result that is the error."""

from __future__ import annotations

import json
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.concurrency.base import BasePool
from celery.worker.request import create_request_cls
from kombu.message import Message as Delivered

from agent_exec import events, keys, submission
from agent_exec.broker import fair_queue
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed
from agent_exec.settings import read_settings
from agent_exec.store import Store
from tasks.intake import SHOWN, DiscreetRequest, take_in
from tasks.links import Sender
from tests.contract.test_message import STANDARD

ID = STANDARD["execution_id"]


async def deliver(store: Store, raw: Any, *, max_queued: int = 100) -> str:
    """Queue a message, have a worker take it, take it in; return the Celery task's id: the execution's, where it has one."""
    tag = str(uuid.uuid4())
    await store.run(fair_queue.push("agent_execution:acme", tag=tag, priority=5, message="{}"))
    popped = await store.run(fair_queue.pop("agent_execution", lease_s=60))
    assert isinstance(popped, fair_queue.Delivery)
    settings = read_settings(max_queued=max_queued)
    resources = SimpleNamespace(
        store=store,
        settings=settings,
        callbacks=submission.STRICT,
        links=Sender(store, retention_s=settings.retention_s),
    )
    named = ID if isinstance(raw, dict) and raw.get("execution_id") == ID else tag
    request = Context(id=named, properties={"delivery_tag": popped.delivery})
    task: Any = SimpleNamespace(resources=resources, request=request)
    await take_in(task, raw)
    if (await store.run(fair_queue.depths()))["agent_execution"].in_flight:
        await store.run(fair_queue.ack([popped.delivery]))
    return named


async def dead(store: Store) -> list[str]:
    return [letter.reason for letter in await store.run(fair_queue.dead_letters())]


async def hints(store: Store) -> int:
    return (await store.run(fair_queue.depths()))["agent_execution"].waiting


async def celery_result(store: Store, execution_id: str = ID) -> dict[str, Any] | None:
    stored = await store.redis.get(keys.celery_result(execution_id))
    return None if stored is None else json.loads(stored)


async def test_a_message_is_stored_and_its_first_hint_sent(async_store: Store) -> None:
    await deliver(async_store, STANDARD)
    record = await async_store.run(ledger.look("acme", ID))
    assert record.message == submission.message_from(STANDARD)
    assert (await hints(async_store), await dead(async_store)) == (1, [])
    assert await celery_result(async_store) is None


async def test_a_message_that_comes_again_is_the_same_execution(async_store: Store) -> None:
    for _ in range(3):
        await deliver(async_store, STANDARD)
    page = await async_store.run(events.read("acme", ID))
    assert (len(page.events), await hints(async_store), await dead(async_store)) == (1, 1, [])


@pytest.mark.parametrize("change", [{"priority": 9}, {"tenant_id": "globex"}, {"priority": 77}])
async def test_a_message_under_the_id_of_another_is_a_dead_letter_and_touches_nothing(
    async_store: Store, change: dict[str, Any]
) -> None:
    await deliver(async_store, STANDARD)
    listener = async_store.redis.pubsub()
    await listener.subscribe(keys.celery_result(ID))
    assert await listener.get_message(timeout=1) is not None, "subscribed"
    await deliver(async_store, STANDARD | change)
    [reason] = await dead(async_store)
    assert reason.startswith("idempotency_mismatch: " if change != {"priority": 77} else "invalid_message: ")
    assert await celery_result(async_store) is None, "the execution's own is still to come"
    assert await listener.get_message(timeout=0.05) is None, "and nobody is told another"
    await listener.aclose()  # type: ignore[no-untyped-call]  # redis's own
    assert (await async_store.run(ledger.look("acme", ID))).message.priority == 0


async def test_an_invalid_message_with_a_usable_id_has_a_result(async_store: Store) -> None:
    listener = async_store.redis.pubsub()
    await listener.subscribe(keys.celery_result(ID))
    assert await listener.get_message(timeout=1) is not None, "subscribed"
    await deliver(async_store, STANDARD | {"api_key": "sk-CANARY"})
    [reason] = await dead(async_store)
    assert reason.startswith("invalid_message: The message breaks the contract: api_key")
    result = await celery_result(async_store)
    assert result is not None
    assert (result["status"], result["task_id"], result["result"]["exc_type"]) == ("FAILURE", ID, "ExecutionFailed")
    assert result["result"]["exc_message"][0] == "invalid_message"
    assert "CANARY" not in reason + json.dumps(result)
    published = await listener.get_message(timeout=1)
    assert published is not None
    assert json.loads(published["data"]) == result
    await listener.aclose()  # type: ignore[no-untyped-call]  # redis's own
    await deliver(async_store, STANDARD)
    assert (await async_store.run(ledger.look("acme", ID))).status == "pending", "mended, it is taken"


async def test_the_result_of_an_execution_that_ended_outlives_a_bad_message_of_its_id(async_store: Store) -> None:
    await deliver(async_store, STANDARD)
    claim = await async_store.run(ledger.claim(ledger.StepRef("acme", ID, "prompt"), lease_s=9, worker="w"))
    assert isinstance(claim, Claimed)
    finished = ledger.finish(
        claim.hold,
        result="null",
        status="completed",
        response="{}",
        celery_result='{"status":"SUCCESS"}',
        events=[],
        retention_s=3_600,
    )
    await async_store.run(finished)
    await deliver(async_store, STANDARD | {"tenant_id": "globex", "priority": 77})
    assert await celery_result(async_store) == {"status": "SUCCESS"}


@pytest.mark.parametrize(
    "raw",
    [
        None,
        7,
        "text",
        [STANDARD],
        {},
        STANDARD | {"execution_id": 7},
        STANDARD | {"execution_id": "*"},
        STANDARD | {"execution_id": f"{ID}\n"},
        {"\ud800": "a lone surrogate"},
    ],
)
async def test_what_names_no_usable_id_is_a_dead_letter_and_told_to_who_waits_for_the_task(
    async_store: Store, raw: Any
) -> None:
    task_id = await deliver(async_store, raw)
    [reason] = await dead(async_store)
    assert reason.startswith("invalid_message: ")
    assert [key.decode() async for key in async_store.redis.scan_iter("celery-task-meta-*")] == [
        keys.celery_result(task_id)
    ]


@pytest.mark.parametrize("query", ["\ud800", [[]]])
async def test_what_cannot_even_be_written_down_is_told_like_the_rest(async_store: Store, query: Any) -> None:
    for _ in range(900 if isinstance(query, list) else 0):
        query = [query]
    await deliver(async_store, STANDARD | {"payload": {"query": query}})
    [reason] = await dead(async_store)
    assert reason.startswith("invalid_message: ")
    assert await celery_result(async_store) is not None


async def test_a_tenant_with_too_much_waiting_is_told_so(async_store: Store) -> None:
    waiting = submission.message_of(ExecutionRequest(agent_id="desk", query="x"), tenant_id="acme")
    await async_store.run(submission.store(waiting, open_retention_s=3_600, max_queued=1))
    await deliver(async_store, STANDARD, max_queued=1)
    [reason] = await dead(async_store)
    assert reason.startswith("queue_full: ")
    result = await celery_result(async_store)
    assert result is not None
    assert result["result"]["exc_message"][0] == "queue_full"


def test_a_prompt_shows_nowhere_in_the_worker() -> None:
    """S28."""
    app = Celery(broker="memory://", set_as_current=False)

    @app.task(name="agent_exec.execute")  # type: ignore[untyped-decorator]  # celery has no types
    def task(message: Any) -> None:
        raise AssertionError("run")

    arguments = {"message": STANDARD | {"payload": {"query": "CANARY"}}}
    published = app.amqp.as_task_v2(ID, "agent_exec.execute", (), arguments, argsrepr="CANARY", kwargsrepr="CANARY")
    delivered = Delivered(  # type: ignore[no-untyped-call]  # kombu has no types
        body=json.dumps(published.body),
        headers=published.headers,
        properties={**published.properties, "delivery_info": {"routing_key": "agent_execution"}},
        delivery_tag="tag",
        content_type="application/json",
        content_encoding="utf-8",
    )
    kind = create_request_cls(DiscreetRequest, task, BasePool(1), "w@host", None, app=app)
    request = kind(delivered, app=app, task=task, hostname="w@host")
    shown = [repr(request), str(request), request.humaninfo(), request.info(), request.info(safe=False)]
    shown += [
        request.argsrepr,
        request.kwargsrepr,
        request.request_dict["argsrepr"],
        request.request_dict["kwargsrepr"],
    ]
    assert "CANARY" not in str(shown)
    assert SHOWN in str(shown)
    assert request.kwargs == arguments, "the task itself gets them"
