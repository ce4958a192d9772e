"""What follows an execution in a canvas: as Celery would send it, once whatever is lost; what cannot be sent is refused."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery, chain, chord, group, signature
from celery.app.task import Context
from celery.canvas import Signature
from redis.exceptions import ConnectionError as RedisConnectionError

from agent_exec import keys, submission
from agent_exec.broker import fair_queue
from agent_exec.contract.completion import Usage
from agent_exec.contract.execution import ErrorDetail, FinalResponse, Output
from agent_exec.contract.links import MAX_NESTING
from agent_exec.contract.message import Status
from agent_exec.contract.model import MAX_BODY_BYTES
from agent_exec.errors import InvalidMessage
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, StepRef
from agent_exec.script import Call
from agent_exec.store import Store
from tasks import response
from tasks.links import Sender, take_off
from tests.contract.test_message import STANDARD

ID = STANDARD["execution_id"]
RETENTION_S = 3_600
#: What differs from one sending to the next, whoever sends.
OF_THE_SENDING = {"id", "origin", "argsrepr", "kwargsrepr", "correlation_id", "reply_to", "delivery_tag", "group"}


class Bench:
    """One execution with links, from its acceptance to what was sent of them."""

    def __init__(self, store: Store, app: Celery) -> None:
        self.store = store
        self.app = app
        self.sender = Sender(store, retention_s=RETENTION_S)

    def sign(self, task: str, **options: Any) -> Signature:
        signed: Signature = signature(task, app=self.app, **options)
        return signed

    def read(self, task_id: str = "celery-id", **context: Any) -> str:
        """Read the links of a Celery message that a tracer has begun."""
        request = Context({"id": task_id, **context})
        return self.sender.read(request, take_off(request), execution_id=ID)

    async def end(self, links: str, *, status: Status = "completed") -> FinalResponse:
        """Accept the execution and end it, as a worker does that dies then."""
        message = submission.message_from(STANDARD)
        await self.store.run(submission.store(message, open_retention_s=9_999, max_queued=9, links=links))
        claim = await self.store.run(ledger.claim(StepRef("acme", ID, "prompt"), lease_s=9, worker="w"))
        assert isinstance(claim, Claimed)
        assert claim.execution.linked is bool(links)
        error = ErrorDetail(code="cancelled", message="so it was", retryable=False) if status == "failed" else None
        final = FinalResponse(
            execution_id=ID,
            tenant_id="acme",
            agent_id=message.agent_id,
            status="failed" if error else "completed",
            output=Output(text="the answer"),
            error=error,
            usage=Usage(),
            created_at=datetime.now(UTC),
            finished_at=datetime.now(UTC),
        )
        finish = ledger.finish(
            claim.hold,
            result="null",
            status=final.status,
            response=final.model_dump_json(),
            celery_result=response.celery_result(final),
            events=[],
            retention_s=RETENTION_S,
        )
        await self.store.run(finish)
        return final

    async def send(self) -> None:
        await self.sender.send("acme", ID)

    async def sent(self, queue: str = "celery") -> list[dict[str, Any]]:
        """Return the messages in a queue, the first first."""
        return [json.loads(text) for text in reversed(await self.store.redis.lrange(queue, 0, -1))]

    async def is_settled(self) -> bool:
        """Say whether nothing is left to send."""
        left = await self.store.redis.exists(keys.links("acme", ID), keys.unsent_links())
        return not left

    async def result(self, task_id: str) -> dict[str, Any]:
        stored = await self.store.redis.get(keys.celery_result(task_id))
        found: dict[str, Any] = json.loads(stored)
        return found


@pytest.fixture
async def bench(async_store: Store, celery: Celery) -> Any:
    """A bench; what it puts into queues of an app's own is taken away."""
    yield Bench(async_store, celery)
    async for key in async_store.redis.scan_iter():
        if not key.startswith((b"ax:", b"agent_", b"celery-task")):
            await async_store.redis.delete(key)


@pytest.fixture
def celery(redis_url: str) -> Iterator[Celery]:
    """A plain Celery app on the same server."""
    app = Celery("plain", broker=redis_url, backend=redis_url, set_as_current=False)
    yield app
    backend = app.backend
    backend.remove_pending_result = lambda result: result
    backend.result_consumer.stop()
    backend.client.connection_pool.disconnect()
    app.close()


def body(message: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(message["body"]))


def comparable(message: dict[str, Any]) -> dict[str, Any]:
    flat = {**message["headers"], **message["properties"], "body": body(message)}
    return {name: value for name, value in flat.items() if name not in OF_THE_SENDING}


async def test_a_message_without_links_under_its_own_id_has_nothing_to_keep(bench: Bench) -> None:
    assert bench.read(ID) == ""
    await bench.end("")
    assert await bench.is_settled()
    assert (await bench.result(ID))["status"] == "SUCCESS", "written by the end itself"


async def test_the_links_are_taken_off_what_the_tracer_sees() -> None:
    request = Context(callbacks=[{"task": "x"}], errbacks=None, chain=[{"task": "y"}], chord=None, group="g")
    assert take_off(request) == {"callbacks": [{"task": "x"}], "chain": [{"task": "y"}]}
    assert (request.callbacks, request.errbacks, request.chain, request.chord) == (None, None, None, None)
    assert take_off(request) == {}


async def test_a_message_is_what_celery_itself_would_send(bench: Bench) -> None:
    linked = bench.sign("a.b", args=[1], kwargs={"c": 2}, queue="theirs", priority=4, expires=60, time_limit=9)
    final = await bench.end(bench.read(callbacks=[linked], root_id="the-root"))
    await bench.send()
    [ours] = await bench.sent("theirs\x06\x163")
    await bench.store.redis.delete("theirs\x06\x163")
    value = final.model_dump(mode="json")
    linked.apply_async((value,), parent_id="celery-id", root_id="the-root")
    [theirs] = await bench.sent("theirs\x06\x163")
    mine, stock = comparable(ours), comparable(theirs)
    assert stock.keys() - mine.keys() == set()
    for name in ("expires", "expiration"):
        mine.pop(name), stock.pop(name)
    assert mine == stock
    assert "the answer" not in json.dumps(ours["headers"]), "and shown nowhere"
    assert await bench.is_settled()


async def test_the_results_name_each_other(bench: Bench) -> None:
    final = await bench.end(bench.read(callbacks=[bench.sign("a")], chain=[bench.sign("b")], group="g"))
    assert await bench.store.redis.get(keys.celery_result(ID)) is None, "Celery's result comes with the links"
    await bench.send()
    sent = [message["headers"]["id"] for message in await bench.sent()]
    mine = await bench.result("celery-id")
    assert [child[0][0] for child in mine["children"]] == sent
    assert (mine["status"], mine["result"], mine["group_id"]) == ("SUCCESS", final.model_dump(mode="json"), "g")
    assert (await bench.result(ID))["result"] == mine["result"], "and under the execution's own id"


async def test_a_failure_goes_to_the_error_links_and_down_the_chain(bench: Bench) -> None:
    rest = bench.sign("b", task_id="b-id")
    links = bench.read(ID, callbacks=[bench.sign("a")], errbacks=[bench.sign("e")], chain=[rest])
    await bench.end(links, status="failed")
    await bench.send()
    [message] = await bench.sent()
    assert (message["headers"]["task"], body(message)[0]) == ("e", [ID])
    for task_id in (ID, "b-id"):
        failed = await bench.result(task_id)
        assert (failed["status"], failed["result"]["exc_type"]) == ("FAILURE", "ExecutionFailed")
        assert failed["result"]["exc_message"][:2] == ["cancelled", "so it was"]


@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_the_result_of_another_execution_is_not_overwritten(bench: Bench, status: Status) -> None:
    other = "00000000-0000-4000-8000-000000000000"
    await bench.store.redis.set(keys.tenant_of(other), "globex", ex=60)
    await bench.end(bench.read(other, callbacks=[bench.sign("a")], errbacks=[bench.sign("a")]), status=status)
    await bench.send()
    assert len(await bench.sent()) == 1
    assert await bench.store.redis.get(keys.celery_result(other)) is None


async def test_who_wants_no_result_gets_none(bench: Bench) -> None:
    await bench.end(bench.read(callbacks=[bench.sign("a")], ignore_result=True))
    await bench.send()
    assert len(await bench.sent()) == 1
    assert await bench.store.redis.get(keys.celery_result("celery-id")) is None


async def test_many_senders_send_once(bench: Bench) -> None:
    await bench.end(bench.read(callbacks=[bench.sign("a")], chain=[bench.sign("b")]))
    others = [Sender(bench.store, retention_s=RETENTION_S) for _ in range(9)]
    await asyncio.gather(*[sender.send("acme", ID) for sender in others])
    assert [message["headers"]["task"] for message in await bench.sent()] == ["a", "b"]
    assert await bench.is_settled()


class Forgetful(Store):
    """A store whose every reply is lost once, after the server has done what it was asked."""

    async def _replies(self, calls: list[Call[Any]]) -> list[Any]:
        replies = await super()._replies(calls)
        self.heard = not getattr(self, "heard", True)
        if not self.heard:
            raise RedisConnectionError("gone before it answered")
        return replies


async def test_a_lost_reply_sends_nothing_twice(bench: Bench, redis_url: str) -> None:
    await bench.end(bench.read(callbacks=[bench.sign("a")], chain=[bench.sign("b")]))
    store = Forgetful(redis_url)
    await Sender(store, retention_s=RETENTION_S).send("acme", ID)
    await store.aclose()
    assert [message["headers"]["task"] for message in await bench.sent()] == ["a", "b"]
    assert await bench.is_settled()


async def test_whoever_dies_before_the_sending_is_followed_by_another(bench: Bench) -> None:
    await bench.end(bench.read(callbacks=[bench.sign("a")]))
    assert await bench.store.run(ledger.due_links()) == [], "who ended it is given the time to send them"
    await bench.store.redis.zincrby(keys.unsent_links(), -ledger.LOST_LINKS_AFTER_MS, f"acme {ID}")
    looks = asyncio.create_task(bench.sender.keep_sending())
    while not await bench.is_settled():
        await asyncio.sleep(0.01)
    looks.cancel()
    assert len(await bench.sent()) == 1


async def test_links_that_cannot_be_sent_are_dead_letters_and_hold_nothing_up(bench: Bench) -> None:
    await bench.store.redis.set("theirs", "no list", ex=60)
    await bench.end(bench.read(callbacks=[bench.sign("a", queue="theirs")]))
    await bench.send()
    [letter] = await bench.store.run(fair_queue.dead_letters())
    assert "could not be sent" in letter.reason
    assert (await bench.result(ID))["status"] == "SUCCESS"
    assert await bench.is_settled()


# -- chords: their other parts are the app's, and come as Celery brings them


def part(bench: Bench, number: int, *, of: Signature, state: str = "SUCCESS") -> None:
    """Bring a part of the app's own to the chord."""
    request = Context(id=f"part-{number}", group="g", group_index=number, chord=of, delivery_info={}, errbacks=[])
    value = number if state == "SUCCESS" else ValueError(number)
    bench.app.backend.on_chord_part_return(request, state, value)


async def bodies(bench: Bench) -> list[Any]:
    return [body(message)[0] for message in await bench.sent("theirs")]


@pytest.mark.parametrize("last", [0, 1, 2])
async def test_the_parts_of_a_chord_come_in_any_order_and_the_body_gets_them_in_theirs(bench: Bench, last: int) -> None:
    behind = bench.sign("behind", queue="theirs", task_id="body-id")
    bench.app.backend.set_chord_size("g", 3)
    final = await bench.end(bench.read(group="g", group_index=1, chord=behind))
    for number in (*[other for other in (0, 1, 2) if other != last], last):
        assert await bodies(bench) == []
        if number == 1:
            await bench.send()
        else:
            part(bench, number, of=behind)
    assert await bodies(bench) == [[[0, final.model_dump(mode="json"), 2]]]
    part(bench, 0, of=behind)
    assert len(await bodies(bench)) == 1, "what comes late is known to be late"
    await bench.send()
    assert len(await bodies(bench)) == 1


async def test_a_part_that_comes_between_the_plan_and_the_writing_is_not_missed(bench: Bench) -> None:
    behind = bench.sign("behind", queue="theirs", task_id="body-id")
    bench.app.backend.set_chord_size("g", 2)
    final = await bench.end(bench.read(group="g", group_index=1, chord=behind))
    insist, came = bench.store.insist, 0

    async def insist_late(call: Call[Any]) -> Any:
        nonlocal came
        if call.script.name == "commit" and not came:
            came += 1
            part(bench, 0, of=behind)
        return await insist(call)

    bench.store.insist = insist_late  # type: ignore[method-assign]
    await bench.send()
    assert came == 1
    assert await bodies(bench) == [[[0, final.model_dump(mode="json")]]]


@pytest.mark.parametrize("ours", ["completed", "failed"])
async def test_a_part_that_failed_fails_the_chord(bench: Bench, ours: Status) -> None:
    behind = bench.sign("behind", queue="theirs", task_id="body-id")
    behind.link_error(bench.sign("e", queue="errors"))
    bench.app.backend.set_chord_size("g", 2)
    part(bench, 0, of=behind, state="SUCCESS" if ours == "failed" else "FAILURE")
    await bench.end(bench.read(group="g", group_index=1, chord=behind), status=ours)
    await bench.send()
    assert await bodies(bench) == []
    failed = await bench.result("body-id")
    assert (failed["status"], failed["result"]["exc_type"]) == ("FAILURE", "ChordError")
    assert failed["traceback"] is None
    [error] = await bench.sent("errors")
    assert body(error)[0] == ["body-id"]


async def test_the_body_of_a_chord_may_be_a_group_and_fails_as_one(bench: Bench) -> None:
    behind = group([bench.sign("x", queue="theirs"), bench.sign("y", queue="theirs")], app=bench.app)
    behind.freeze()
    bench.app.backend.set_chord_size("g", 1)
    await bench.end(bench.read(group="g", group_index=0, chord=behind), status="failed")
    await bench.send()
    assert await bodies(bench) == []
    for task in behind.tasks:
        assert (await bench.result(task.options["task_id"]))["result"]["exc_type"] == "ExecutionFailed"


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery's own
async def test_a_group_within_a_chord_is_a_list_in_its_results(bench: Bench) -> None:
    behind = bench.sign("behind", queue="theirs", task_id="body-id")
    inner = bench.app.GroupResult("inner", [bench.app.AsyncResult(ID)])
    bench.app.GroupResult("g", [bench.app.AsyncResult("part-0"), inner]).save()
    bench.app.backend.set_chord_size("g", 2)
    bench.app.backend.store_result("part-0", 0, "SUCCESS")
    part(bench, 0, of=behind)
    final = await bench.end(bench.read(ID, group="g", group_index=1, chord=behind))
    await bench.send()
    assert await bodies(bench) == [[[0, [final.model_dump(mode="json")]]]]


async def test_a_chord_behind_an_execution_is_begun(bench: Bench) -> None:
    behind = chord([bench.sign("x"), chain(bench.sign("y"), bench.sign("z"))], bench.sign("body"), app=bench.app)
    await bench.end(bench.read(chain=[behind]))
    await bench.send()
    messages = await bench.sent()
    assert [message["headers"]["task"] for message in messages] == ["x", "y"]
    [group_id] = {
        message["headers"]["group"] or body(message)[2]["chain"][0]["options"]["group_id"] for message in messages
    }
    size = await bench.store.redis.get(f"celery-taskset-meta-{group_id}.s")
    assert size == b"2"


# -- what cannot be sent is told at the door


def deep(nesting: int) -> dict[str, Any]:
    signed: dict[str, Any] = {"task": "x", "args": [], "kwargs": {}, "options": {}}
    for _ in range(nesting):
        signed = {"task": "x", "args": [], "kwargs": {}, "options": {"link": [signed]}}
    return signed


@pytest.mark.parametrize(
    ("linked", "why"),
    [
        ({"task": "agent_exec.prompt"}, "no signature"),
        ({"task": "agent_exec.prompt", "args": [], "kwargs": {}, "options": {}}, "names the task 'agent_exec.prompt'"),
        (deep(MAX_NESTING), f"nested deeper than {MAX_NESTING}"),
        (deep(900), f"nested deeper than {MAX_NESTING}|far too deep|invalid"),
        ({"task": "x", "args": ["x" * MAX_BODY_BYTES], "kwargs": {}, "options": {}}, "at most 1000000 are taken"),
        ({"task": "x", "args": [], "kwargs": {}, "options": {"exchange": "e", "routing_key": "r"}}, "exchange 'e'"),
        ({"task": "x", "args": [], "kwargs": {}, "options": {"serializer": "pickle"}}, "plain JSON"),
        ({"task": "x", "args": [], "kwargs": {}, "options": {"compression": "zlib"}}, "plain JSON"),
        (
            {"task": "x", "args": [], "kwargs": {}, "options": {"queue": "agent_tools:acme:a"}},
            "which is this service's",
        ),
        ({"task": "x", "args": [], "kwargs": {}, "options": {"queue": "agent_execution"}}, "which is this service's"),
        ({"task": "x", "args": [], "kwargs": {}, "options": {"queue": "ax:pending"}}, "something else is kept"),
        ({"task": "x", "args": [], "kwargs": {}, "options": {"expires": "never"}}, "Celery cannot read them"),
        ({"task": "c", "args": [], "kwargs": {}, "options": {}, "subtask_type": "chain"}, "Celery cannot read them"),
        ({"task": "c", "args": [], "kwargs": {}, "options": {}, "subtask_type": "knot"}, "Celery cannot read them"),
    ],
)
@pytest.mark.parametrize("where", ["callbacks", "errbacks", "chain", "chord"])
async def test_what_cannot_be_sent_is_refused(bench: Bench, linked: dict[str, Any], why: str, where: str) -> None:
    with pytest.raises(InvalidMessage, match=why):
        bench.read(group="g", group_index=0, **{where: linked if where == "chord" else [linked]})


async def test_planning_leaves_celery_as_it_was(bench: Bench) -> None:
    current = Celery("current", set_as_current=True)
    bench.read(callbacks=[bench.sign("x", queue=f"q{number}") for number in range(9)])
    assert signature("y").app.main == "current"
    assert len(bench.sender._canvas._app.amqp.queues) == 1
    current.close()
