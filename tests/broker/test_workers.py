"""Real workers, as processes with the pools that people use, under everything that does not kill them."""

from __future__ import annotations

import base64
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from agent_exec.broker import fair_queue
from tests.broker.workers import STOCK, Bench, Start, Worker, until


@pytest.fixture(scope="module", params=[("asyncio", "threads"), ("prefork", "asyncio")], ids="-".join)
def pair(start: Start, request: pytest.FixtureRequest) -> Iterator[list[Worker]]:
    """Two workers that live through all tests of this file, of pools that are mixed: each stands its test beside another."""
    workers = [start(pool, slots) for pool, slots in zip(request.param, (4, 2), strict=True)]
    yield [worker.ready() for worker in workers]
    for worker in workers:
        worker.begin_stop()
    assert [worker.stop() for worker in workers] == [0, 0]


def test_a_new_tenant_is_served_at_once(pair: list[Worker], bench: Bench) -> None:
    delays = []
    for number, queue in enumerate(["agent_execution:new", "agent_tools:new:a", "agent_execution"] * 4):
        until(lambda: not bench.depths()["agent_execution"].in_flight)
        sent_at = time.time()
        bench.send(queue, f"n/{number}")
        until(lambda name=f"n/{number}": name in bench.ended())
        delays.append(bench.begun_at()[f"n/{number}"] - sent_at)
    assert sorted(delays)[6] < 0.1


def test_a_cap_holds_across_workers(pair: list[Worker], bench: Bench) -> None:
    for tenant, cap in (("two", 2), ("five", 5)):
        bench.store.run(fair_queue.set_share(tenant, cap=cap))
    for number in range(20):
        for tenant in ("two", "five"):
            bench.send(f"agent_execution:{tenant}", f"{tenant}/{number}", 0.03)
    until(lambda: len(bench.ended()) == 40)
    assert bench.at_once("two") == 2
    assert 3 <= bench.at_once("five") <= 5
    until(bench.idle)


def test_weights_are_kept_under_load(pair: list[Worker], bench: Bench) -> None:
    weights = {"a": 8, "b": 4, "c": 1}
    for tenant in weights:
        bench.store.run(fair_queue.set_share(tenant, cap=0))
        for number in range(100):
            bench.send(f"agent_execution:{tenant}", f"{tenant}/{number}")
    bench.store.run_many([fair_queue.set_share(tenant, weight=weight) for tenant, weight in weights.items()])
    until(lambda: len(bench.ended()) == 300)
    first = Counter(name[0] for name in bench.begun()[:104])
    for tenant, weight in weights.items():
        assert first[tenant] == pytest.approx(8 * weight, abs=6)  # as many as there are slots begin in any order


def test_a_quiet_tenant_passes_a_flood(pair: list[Worker], bench: Bench) -> None:
    """F28."""
    flood = 900  # more than is done while the quiet ones come
    for number in range(flood):
        bench.send("agent_execution:flood", f"flood/{number}", 0.01, priority=9)
    until(lambda: len(bench.begun()) > 20)
    ahead = []
    for number in range(5):
        call = bench.note("agent_execution:quiet", f"quiet/{number}")
        depths, _ = bench.store.run_many([fair_queue.depths(), call])
        popped = flood - depths["agent_execution"].tenants["flood"].waiting + number
        until(lambda name=f"quiet/{number}": name in bench.begun())
        ahead.append(bench.begun().index(f"quiet/{number}") - popped)
    # Two by the rule, which test_fair_queue.py holds to; and on a busy machine three slots of one worker begin some more
    # while the other is about to begin this one. Without the rule it is the whole flood.
    assert sorted(ahead)[2] <= 12
    until(lambda: len(bench.ended()) == flood + 5)


def test_an_ordinary_queue_is_served_beside_the_families(pair: list[Worker], bench: Bench) -> None:
    for number in range(20):
        bench.send("agent_execution:t", f"fair/{number}", 0.01)
        bench.send("ordinary", f"ordinary/{number}", 0.01)
    until(lambda: len(bench.ended()) == 40)
    until(bench.idle)
    assert not bench.store.redis.exists("unacked", "unacked_index", "ordinary")


def test_remote_control_and_events_work(pair: list[Worker], bench: Bench) -> None:
    names = {worker.name for worker in pair}
    inspect = bench.app.control.inspect(timeout=5, limit=2)  # two answers end the waiting
    assert set(until(lambda: (found := inspect.ping()) and len(found) == 2 and found)) == names
    queues = inspect.active_queues()
    assert {queue["name"] for name in names for queue in queues[name]} == {"agent_execution", "agent_tools", "ordinary"}
    assert inspect.stats()[pair[0].name]["broker"]["transport"] == "redis"

    kinds: list[str] = []
    with bench.app.connection_for_read() as reading:
        receiver = bench.app.events.Receiver(reading, handlers={"*": lambda event: kinds.append(event["type"])})
        with receiver.consumer_context(wakeup=False) as (connection, *_):
            _drained(connection)  # the first poll is what subscribes
            bench.send("agent_execution:t", "e/1")
            expected = {"task-received", "task-started", "task-succeeded"}
            until(lambda: _drained(connection) or expected <= set(kinds))


def _drained(connection: Any) -> None:
    try:
        connection.drain_events(timeout=0.1)
    except TimeoutError:
        return


@pytest.mark.parametrize("steps", [None, list(range(10)), [0, 9]], ids=["default steps", "ten steps", "two steps"])
def test_plain_apps_are_served_whatever_their_priority_steps(
    pair: list[Worker], bench: Bench, steps: list[int] | None
) -> None:
    with Celery("plain", broker=bench.url, broker_transport=STOCK, set_as_current=False) as plain:
        plain.conf.task_ignore_result = True
        plain.conf.broker_transport_options = {} if steps is None else {"priority_steps": steps}
        for priority in (None, *range(10)):
            plain.send_task("note", args=[f"p/{priority}"], queue="agent_execution", priority=priority)
        until(lambda: len(bench.ended()) == 11, 5)
    until(bench.idle)
    assert not bench.store.redis.exists("agent_execution", *(f"agent_execution\x06\x16{step}" for step in range(1, 10)))


def mutated(wire: dict[str, Any], dice: random.Random) -> str | bytes:
    """A message with something wrong with it, perhaps."""
    values: list[Any] = [None, 0, -5, 1e308, "", "x", "9999-01-01T00:00:00", [], [1], {}, {"a": 1}, True, "note"]
    message = json.loads(json.dumps(wire))
    for _ in range(dice.randint(1, 3)):
        match dice.randint(0, 4):
            case 0:
                message[dice.choice(list(message))] = dice.choice(values)
            case 1 if isinstance(message.get("headers"), dict):
                message["headers"][dice.choice(list(wire["headers"]))] = dice.choice(values)
            case 2 if isinstance(message.get("properties"), dict):
                message["properties"][dice.choice(list(wire["properties"]))] = dice.choice(values)
            case 3:
                body = [dice.choice(values) for _ in range(dice.randint(0, 4))]
                message["body"] = base64.b64encode(json.dumps(body).encode()).decode()
            case _:
                body = [
                    ["m/1"],
                    {},
                    {name: dice.choice(values) for name in ("callbacks", "errbacks", "chain", "chord")},
                ]
                message["body"] = base64.b64encode(json.dumps(body).encode()).decode()
    text = json.dumps(message)
    return text[: dice.randint(0, len(text))] if dice.random() < 0.1 else text


def test_no_message_stops_a_worker(pair: list[Worker], bench: Bench) -> None:
    bench.store.run(fair_queue.set_share("sample", cap=0))
    bench.send("agent_execution:sample", "m/1")
    (wire,) = (json.loads(text) for text in bench.store.redis.hvals("ax:queue:message"))
    bench.store.run(fair_queue.set_share("sample"))
    until(bench.idle)
    dice = random.Random(7)
    for number in range(400):
        text = mutated(wire, dice)
        if number % 2:
            bench.store.redis.lpush("agent_execution", text)
        else:
            call = fair_queue.push(f"agent_execution:t{number % 7}", tag=str(number), priority=0, message=text)
            bench.store.run(call)
    bench.store.redis.lpush("agent_tools", "null", "", b"\xff", "[" * 1000, "x" * 1_500_001)
    bench.app.send_task("no such task", queue="agent_execution:t1")
    bench.app.send_task("note", args=["too", "many", "arguments"], queue="agent_execution:t1")
    bench.send("agent_execution:t1", "good/1")
    bench.send("agent_execution", "good/2")
    until(lambda: {"good/1", "good/2"} <= bench.ended())
    until(bench.idle)
    assert all(worker.process.poll() is None for worker in pair)
    reasons = {letter.reason for letter in bench.store.run(fair_queue.dead_letters(limit=1000))}
    assert any(reason.startswith("the worker rejected it") for reason in reasons)
    assert any(reason.startswith("has 1500001 bytes") for reason in reasons)
    assert not any(reason.startswith("came back") for reason in reasons)


def test_cut_connections_lose_and_double_nothing(pair: list[Worker], bench: Bench) -> None:
    for number in range(60):
        bench.send(f"agent_execution:t{number % 3}", f"cut/{number}", 0.1)
    while len(bench.ended()) < 60:
        own = {bench.store.redis.client_id(), bench.pages.client_id()}
        for client in bench.store.redis.client_list():
            if int(client["id"]) not in own and client["db"] == "0":
                bench.store.redis.client_kill_filter(_id=client["id"])
        time.sleep(0.2)  # the interval of the cuts
    until(bench.idle)
    assert len(bench.begun()) == 60
