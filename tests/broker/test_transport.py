"""The transport under kombu and Celery, in this process: publishing, consuming, settling, and connections that break."""

from __future__ import annotations

import gc
import json
import select
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
import redis
from celery import Celery
from kombu import Connection, Consumer, Exchange, Producer, Queue, pools
from kombu.transport import get_transport_cls, virtual
from kombu.utils.eventio import ERR
from redis.exceptions import BusyLoadingError

from agent_exec import embedded, keys
from agent_exec.broker import fair_queue, lane, leases
from agent_exec.broker.channel import Channel
from agent_exec.broker.transport import SentinelTransport, Transport, register
from agent_exec.embedded import EmbeddedServer
from agent_exec.errors import InvalidMessage
from agent_exec.hint import Hint
from agent_exec.script import Call
from agent_exec.store import BlockingStore
from tests.broker.workers import STOCK, until

HINT = Hint(tenant_id="t", agent_id="a", execution_id="e", step="prompt", priority=3)


class Taker:
    """A consumer without Celery: takes messages and keeps them until told."""

    def __init__(self, url: str, *queues: str, prefetch: int = 0, no_ack: bool = False, **options: Any) -> None:
        self.connection = Connection(url, transport_options=options)
        self.messages: list[Any] = []
        self.channel = self.connection.channel()
        self.channel.basic_qos(0, prefetch, False)
        self.consumer = Consumer(
            self.channel,
            [Queue(name, Exchange(name), name) for name in queues or ("agent_execution",)],
            on_message=self.messages.append,
            accept=["json"],
            no_ack=no_ack,
        )
        self.consumer.consume()

    def __enter__(self) -> Taker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.connection.close()
        # The thread that keeps the leases closes its connection within its next turn.
        until(lambda: not self.channel.leases.keeper.is_alive())

    def drain(self, timeout_s: float = 1.0) -> None:
        try:
            self.connection.drain_events(timeout=timeout_s)
        except TimeoutError:
            return

    def take(self, count: int = 1, timeout_s: float = 5.0) -> list[Any]:
        """Take until `count` messages are there; returns them and forgets them."""
        deadline = time.monotonic() + timeout_s
        while len(self.messages) < count and time.monotonic() < deadline:
            self.drain(0.1)
        taken, self.messages[:] = list(self.messages), []
        return taken

    def take_nothing(self, for_s: float = 0.3) -> None:
        assert self.take(1, for_s) == []


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    register()


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    """An app with our transport."""
    with Celery("ours", broker=redis_url, set_as_current=False) as app:
        app.conf.task_ignore_result = True
        yield app
    pools.reset()


@pytest.fixture
def plain_app(redis_url: str) -> Iterator[Celery]:
    """An app without this package, with priority steps of its own."""
    with Celery("plain", broker=redis_url, set_as_current=False, broker_transport=STOCK) as app:
        app.conf.update(task_ignore_result=True, broker_transport_options={"priority_steps": list(range(10))})
        yield app
    pools.reset()


def nothing_left(store: BlockingStore, taker: Taker | None = None) -> bool:
    """No key but those that stay; a tenant's turn is forgotten by the next pop that finds it without work."""
    until(lambda: (taker is not None and taker.drain(0.01)) or not keys_left(store))
    return True


def keys_left(store: BlockingStore) -> set[str]:
    left = {name.decode() for name in store.redis.scan_iter()}
    return {name for name in left if not name.startswith("_kombu")} - {keys.fair_clock(), keys.fair_dead()}


# -- registration


def test_the_schemes_are_ours() -> None:
    assert get_transport_cls("redis") is get_transport_cls("rediss") is Transport
    assert get_transport_cls("sentinel") is SentinelTransport
    assert Connection("redis://").transport_cls == "redis"


def test_a_failover_list_of_urls_finds_the_server(redis_url: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"redis://127.0.0.1:{closed.getsockname()[1]}"
        with Connection([dead, redis_url]) as connection:
            connection.ensure_connection(max_retries=3, interval_start=0, interval_step=0)
            assert isinstance(connection.transport, Transport)


# -- publishing


def test_a_hint_by_kombu_and_a_hint_by_call_are_stored_alike(redis_url: str, run: Any, store: BlockingStore) -> None:
    with Connection(redis_url) as connection:
        channel = connection.channel()
        wire = json.loads(HINT.message())
        message = {**wire, "body": '[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'}
        channel.basic_publish(message, exchange="", routing_key=HINT.queue)
        tag = message["properties"]["delivery_tag"]
    run(fair_queue.push(HINT.queue, tag="called", priority=HINT.priority, message=json.dumps(message)))
    stored = [store.redis.hget(keys.fair_message(), name) for name in (tag, "called")]
    assert json.loads(stored[0]) == json.loads(stored[1])
    records = [store.redis.hget(keys.fair_record(), name).split() for name in (tag, "called")]
    assert records[0][2:] == records[1][2:] == [b"3", b"0", b"0", HINT.queue.encode()]
    assert run(fair_queue.purge("agent_execution")) == 2


def test_celery_publishes_to_a_tenants_queue_without_declaring_anything(app: Celery, store: BlockingStore) -> None:
    app.send_task("x", queue="agent_execution:t", priority=7)
    assert {name.decode().removeprefix("ax:queue:") for name in store.redis.scan_iter()} == {
        *("clock", "record", "message", "waiting", "leaf:agent_execution:t", "ring:agent_execution"),
        "agent_execution",
    }
    assert [score for _, score in store.redis.zscan_iter(keys.fair_leaf("agent_execution:t"))]


def test_a_bare_name_is_the_plain_list_whatever_the_priority(app: Celery, store: BlockingStore) -> None:
    for priority in (0, 5, 9):
        app.send_task("x", queue="agent_execution", priority=priority)
    assert store.redis.llen("agent_execution") == 3


@pytest.mark.parametrize("exchange", ["agent_execution:t", "agent_execution", ""])
def test_a_tenants_queue_is_a_route_of_its_own(redis_url: str, run: Any, exchange: str) -> None:
    with Connection(redis_url) as connection, Producer(connection, Exchange(exchange)) as producer:
        producer.publish({}, routing_key="agent_execution:t")
    assert run(fair_queue.purge("agent_execution:t")) == 1


def test_a_batch(redis_url: str, store: BlockingStore) -> None:
    store.redis.script_flush()
    with Connection(redis_url) as connection, Producer(connection) as producer, producer.batch():
        for queue in ("agent_execution:t", "agent_execution", "ordinary", "agent_tools:t:a"):
            producer.publish({}, routing_key=queue)
        assert not keys_left(store)
    assert store.redis.llen("ordinary") == 1
    with Connection(redis_url) as connection:
        channel = connection.channel()
        assert [channel._size(name) for name in ("agent_execution", "agent_tools:t:a")] == [2, 1]
        assert sum(channel.queue_purge(name) for name in ("agent_execution", "agent_tools", "ordinary")) == 4


def test_a_hint_must_be_small_and_a_request_may_be_large(app: Celery) -> None:
    text = "x" * 20_000
    with pytest.raises(InvalidMessage, match="at most 16384"):
        app.send_task("agent_exec.completion", args=[text], queue="agent_execution:t")
    app.send_task("agent_exec.execute", args=[text], queue="agent_execution:t")
    with pytest.raises(InvalidMessage, match="at most 1500000"):
        app.send_task("agent_exec.execute", args=["x" * 1_500_000], queue="agent_execution:t")


# -- consuming


def test_a_message_is_taken_and_acknowledged(app: Celery, redis_url: str, run: Any, store: BlockingStore) -> None:
    with Taker(redis_url) as taker:
        app.send_task("x", args=[1], queue="agent_execution:t", priority=7)
        (message,) = taker.take()
        assert message.payload[0] == [1]
        assert message.delivery_info == {"exchange": "", "routing_key": "agent_execution:t"}
        assert message.properties["priority"] == 7
        assert run(fair_queue.depths())["agent_execution"].in_flight == 1
        message.ack()
        assert nothing_left(store, taker)


def test_plain_messages_of_every_priority_are_taken(plain_app: Celery, redis_url: str, store: BlockingStore) -> None:
    with Taker(redis_url) as taker:
        for priority in range(10):
            plain_app.send_task("x", args=[priority], queue="agent_execution", priority=priority)
        assert store.redis.exists("agent_execution\x06\x169")
        messages = taker.take(10)
        assert sorted(message.payload[0][0] for message in messages) == list(range(10))
        for message in messages:
            message.ack()
        assert nothing_left(store, taker)


def test_an_idle_taker_is_woken_at_once(app: Celery, plain_app: Celery, redis_url: str) -> None:
    with Taker(redis_url, "agent_execution", "agent_tools") as taker:
        delays = []
        for number in range(12):
            publisher, queue = [
                (app, "agent_execution:t"),
                (app, "agent_tools:t:a"),
                (plain_app, "agent_execution"),
            ][number % 3]
            taker.take_nothing(0.01)
            sent_at = time.monotonic()
            publisher.send_task("x", queue=queue)
            for message in taker.take():
                delays.append(time.monotonic() - sent_at)
                message.ack()
        assert len(delays) == 12
        assert sorted(delays)[6] < 0.05


def test_both_families_get_their_turn(app: Celery, redis_url: str) -> None:
    for number in range(10):
        app.send_task("x", args=[number], queue="agent_execution:t")
        app.send_task("x", args=[number], queue="agent_tools:t:a")
    with Taker(redis_url, "agent_execution", "agent_tools", prefetch=10) as taker:
        families = [fair_queue.family_of(message.delivery_info["routing_key"]) for message in taker.take(10)]
        assert sorted(families) == ["agent_execution"] * 5 + ["agent_tools"] * 5
        taker.take_nothing()


def test_plain_and_queued_messages_take_turns(app: Celery, plain_app: Celery, redis_url: str) -> None:
    for number in range(6):
        app.send_task("x", args=[number], queue="agent_execution:t")
        plain_app.send_task("x", args=[number], queue="agent_execution")
    with Taker(redis_url, prefetch=6) as taker:
        queues = sorted(message.delivery_info["routing_key"] for message in taker.take(6))
        assert queues == ["agent_execution"] * 3 + ["agent_execution:t"] * 3


def test_a_settlement_makes_room_for_the_next(app: Celery, redis_url: str) -> None:
    for number in range(5):
        app.send_task("x", args=[number], queue="agent_execution:t")
    with Taker(redis_url, prefetch=1) as taker:
        for number in range(5):
            (message,) = taker.take()
            assert message.payload[0] == [number]
            taker.take_nothing(0.02)
            message.ack()


def test_a_message_settled_as_it_arrives_makes_room_at_once(app: Celery, redis_url: str) -> None:
    for number in range(30):
        app.send_task("x", args=[number], queue="agent_execution:t")
    with Taker(redis_url, prefetch=1) as taker:
        taken = []

        def settle(message: Any) -> None:
            taken.append(message.payload[0][0])
            message.ack()

        taker.consumer.on_message = settle
        began_at = time.monotonic()
        until(lambda: taker.drain(1) or len(taken) == 30)
        assert taken == list(range(30))
        assert time.monotonic() - began_at < 1


def test_a_message_behind_tenants_that_have_drained_is_found(
    app: Celery, redis_url: str, push: Any, pop: Any, run: Any
) -> None:
    def sweepable() -> None:
        for number in range(100):
            push(f"agent_execution:t{number:03}")
        run(fair_queue.ack([pop().delivery for _ in range(100)]))
        app.send_task("x", queue="agent_execution:zz")

    with Taker(redis_url) as taker:
        sweepable()
        (message,) = taker.take()
        message.ack()
        taker.take_nothing(0.05)
        taker.consumer.cancel()
        sweepable()
        taker.channel.basic_get("agent_execution").ack()
        assert taker.channel.basic_get("agent_execution") is None


def test_without_acknowledgement_a_message_is_done_when_taken(
    app: Celery, redis_url: str, store: BlockingStore
) -> None:
    with Taker(redis_url, no_ack=True) as taker:
        app.send_task("x", queue="agent_execution:t")
        taker.take()
        assert nothing_left(store, taker)


def test_getting_one_message(app: Celery, redis_url: str, run: Any, store: BlockingStore) -> None:
    with Connection(redis_url) as connection:
        channel = connection.channel()
        assert channel.basic_get("agent_execution") is None
        assert channel.basic_get("ordinary") is None
        for _ in range(2):
            app.send_task("x", queue="agent_execution:t")
        channel.basic_get("agent_execution", no_ack=True)
        message = channel.basic_get("agent_execution")
        assert run(fair_queue.depths())["agent_execution"].in_flight == 1
        message.ack()
        assert channel.basic_get("agent_execution") is None
        assert nothing_left(store)


def test_a_tenants_queue_is_not_consumed_by_itself(redis_url: str) -> None:
    with Connection(redis_url) as connection:
        channel = connection.channel()
        with pytest.raises(ValueError, match="consume its family, 'agent_execution'"):
            channel.basic_consume("agent_execution:t", no_ack=False, callback=print, consumer_tag="c")
        with pytest.raises(ValueError, match="consume its family"):
            channel.basic_get("agent_execution:t")


def test_consuming_can_stop_and_start_any_number_of_times(app: Celery, redis_url: str, store: BlockingStore) -> None:
    with Taker(redis_url) as taker:
        for _ in range(15):
            taker.consumer.cancel()
            taker.consumer.consume()
            taker.drain(0.01)
        app.send_task("x", queue="agent_execution:t")
        (message,) = taker.take()
        message.ack()
        assert nothing_left(store, taker)


def test_a_message_that_was_asked_for_and_not_read_goes_back_at_once(app: Celery, redis_url: str, run: Any) -> None:
    with Taker(redis_url) as taker:
        taker.take_nothing(0.05)
        app.send_task("x", queue="agent_execution:t")
        (asking,) = taker.channel.lanes.values()
        asking.drop()
        taker.channel.poll_lanes()
        until(lambda: run(fair_queue.depths())["agent_execution"].in_flight == 1)
        taker.consumer.cancel()
        assert run(fair_queue.depths())["agent_execution"].in_flight == 0
        taker.consumer.consume()
        (message,) = taker.take()
        message.ack()


# -- settling


def test_a_rejected_message_is_a_dead_letter_and_a_requeued_one_comes_again(
    app: Celery, redis_url: str, run: Any
) -> None:
    app.send_task("x", queue="agent_execution:t")
    with Taker(redis_url) as taker:
        (message,) = taker.take()
        message.requeue()
        (again,) = taker.take()
        assert again.headers["redelivered"] is True
        assert again.delivery_info["redelivery_count"] == 1
        again.reject()
        taker.take_nothing(0.05)
    (letter,) = run(fair_queue.dead_letters())
    assert letter.reason == "the worker rejected it: it knows no such task, or the task refused it"


def test_recovering_puts_everything_back(app: Celery, redis_url: str) -> None:
    app.send_task("x", queue="agent_execution:t")
    with Taker(redis_url) as taker:
        taker.take()
        taker.channel.basic_recover(requeue=True)
        (message,) = taker.take()
        message.ack()


def test_closing_gives_back_at_once_what_was_not_settled(app: Celery, redis_url: str, run: Any) -> None:
    for _ in range(3):
        app.send_task("x", queue="agent_execution:t")
    with Taker(redis_url) as taker:
        held = taker.take(3)
        held[0].ack()
    depth = run(fair_queue.depths())["agent_execution"]
    assert (depth.waiting, depth.in_flight) == (2, 0)


def test_a_lease_is_renewed_while_the_process_lives(app: Celery, redis_url: str, pop: Any) -> None:
    app.send_task("x", queue="agent_execution:t")
    with Taker(redis_url, fair_lease_s=0.3) as taker:
        (message,) = taker.take()
        held_until = time.monotonic() + 1.0
        while time.monotonic() < held_until:  # nobody drains here: the loop may be as busy as it likes
            assert pop() is None
        message.ack()


def test_a_message_that_nobody_can_settle_any_more_goes_back(app: Celery, redis_url: str) -> None:
    app.send_task("x", queue="agent_execution:t")
    with Taker(redis_url, prefetch=1) as taker:
        taker.take()
        gc.collect()
        (again,) = taker.take()
        assert again.delivery_info["redelivery_count"] == 1
        again.ack()


def test_a_lease_that_lapsed_all_the_same_is_reported(
    app: Celery, redis_url: str, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app.send_task("x", queue="agent_execution:t")
    with Taker(redis_url, fair_lease_s=0.3) as taker:
        (message,) = taker.take()
        run(fair_queue.ack([message.delivery_tag]))  # behind its back
        until(lambda: "it may run twice" in caplog.text)
        message.ack()


# -- what is malformed


def test_a_malformed_message_is_a_dead_letter_and_the_next_one_is_delivered(
    app: Celery, redis_url: str, run: Any, store: BlockingStore
) -> None:
    bad = ["null", "", "{", "[]", '{"properties": {}, "headers": {}}', HINT.message().replace("json", "x-yaml")]
    with Taker(redis_url) as taker:
        for text in bad:
            store.redis.lpush("agent_execution", text)
        run(fair_queue.push("agent_execution:t", tag="bad", priority=9, message="{"))
        app.send_task("x", queue="agent_execution:t")
        (message,) = taker.take()
        message.ack()
        until(lambda: taker.drain(0.05) or len(run(fair_queue.dead_letters())) == 6)
        assert nothing_left(store, taker)
    assert {letter.queue for letter in run(fair_queue.dead_letters())} == {"agent_execution", "agent_execution:t"}


# -- operators


def test_sizes_purge_and_delete(app: Celery, redis_url: str) -> None:
    with Connection(redis_url) as connection:
        channel = connection.channel()
        for queue in ("agent_tools:t:a", "agent_tools:t:b", "agent_tools:u:a", "agent_tools"):
            app.send_task("x", queue=queue)
        assert channel.queue_declare("agent_tools", passive=True).message_count == 4
        assert channel.queue_declare("agent_tools:t", passive=True).message_count == 2
        assert channel.queue_delete("agent_tools:t:a", if_empty=True) is None
        assert channel.queue_purge("agent_tools:t:a") == 1
        channel.queue_delete("agent_tools:t")
        assert channel.queue_declare("agent_tools", passive=True).message_count == 2
        assert channel.queue_purge("agent_tools") == 2
        assert channel._has_queue("agent_tools:nobody")


def test_a_global_prefix_stands_before_every_key(redis_url: str, store: BlockingStore) -> None:
    options = {"global_keyprefix": "cell1:"}
    with Celery("ours", broker=redis_url, set_as_current=False) as app, Taker(redis_url, **options) as taker:
        app.conf.update(task_ignore_result=True, broker_transport_options=options)
        for queue in ("agent_execution:t", "agent_execution"):
            app.send_task("x", queue=queue)
        with app.amqp.Producer(app.connection_for_write().channel()) as producer, producer.batch():
            app.send_task("x", queue="agent_execution:t", producer=producer)
        producer.connection.close()
        assert taker.channel._size("agent_execution") == 3
        for message in taker.take(3):
            message.ack()
        names = {name.decode() for name in store.redis.scan_iter()}
        assert names
        assert all(name.startswith("cell1:") for name in names)
        assert not [name for name in names if "message" in name or "lease" in name]
    pools.reset()
    store.redis.flushall()


# -- ordinary queues


def test_ordinary_queues_and_fanout_are_served_by_the_same_channel(app: Celery, redis_url: str) -> None:
    with Taker(redis_url, "agent_execution", "ordinary") as taker:
        news = Queue("news", Exchange("news", "fanout"), auto_delete=True)
        taker.consumer.add_queue(news(taker.channel))
        taker.consumer.consume()
        for queue in ("ordinary", "agent_execution:t"):
            for number in range(5):
                app.send_task("x", args=[number], queue=queue)
        messages = taker.take(10)
        with Producer(taker.connection, Exchange("news", "fanout")) as producer:
            producer.publish({"a": 1})
        messages += taker.take()
        routes = sorted(message.delivery_info["routing_key"] for message in messages)
        assert routes == [""] + ["agent_execution:t"] * 5 + ["ordinary"] * 5
        for message in messages:
            message.ack()
        assert taker.channel._size("ordinary") == 0


def test_stock_priorities_of_an_ordinary_queue_are_kept(app: Celery, redis_url: str) -> None:
    for priority in (9, 0, 6, 3):
        app.send_task("x", args=[priority], queue="ordinary", priority=priority)
    with Taker(redis_url, "ordinary") as taker:
        messages = taker.take(4)
        assert [message.payload[0][0] for message in messages] == [0, 3, 6, 9]
        messages[0].reject(requeue=True)
        messages[1].reject()
        (again,) = taker.take()
        assert again.payload[0] == [0]
        for message in (again, *messages[2:]):
            message.ack()


# -- wake-ups


def test_a_wake_up_that_finds_no_room_is_passed_on(redis_url: str, run: Any) -> None:
    with Taker(redis_url, prefetch=1) as full, Taker(redis_url) as other:
        # `full` blocks for a wake-up,
        until(lambda: full.drain(0.01) or next(iter(full.channel.lanes.values())).under_way is lane.UnderWay.WAIT)
        virtual.QoS.append(full.channel.qos, None, "of another queue")  # and then has no room
        until(lambda: other.drain(0.02) or True)
        stop = threading.Event()

        def run_full() -> None:
            while not stop.is_set():
                full.drain(0.05)

        thread = threading.Thread(target=run_full)
        thread.start()
        try:
            delays = []
            for number in range(5):
                sent_at = time.monotonic()
                run(fair_queue.push("agent_execution:t", tag=str(number), priority=0, message=HINT.message()))
                (message,) = other.take()
                delays.append(time.monotonic() - sent_at)
                message.ack()
            assert max(delays) < 0.5
        finally:
            stop.set()
            thread.join()
            full.channel.qos._delivered.clear()


# -- connections and servers that break


def test_scripts_that_the_server_forgot_are_loaded_again(app: Celery, redis_url: str, store: BlockingStore) -> None:
    with Taker(redis_url) as taker:
        for _ in range(3):
            store.redis.script_flush()
            app.send_task("x", queue="agent_execution:t")
            (message,) = taker.take()
            store.redis.script_flush()
            message.ack()
        assert nothing_left(store, taker)


def cut_every_connection(store: BlockingStore) -> None:
    own = store.redis.client_id()
    for client in store.redis.client_list():
        if int(client["id"]) != own:
            store.redis.client_kill_filter(_id=client["id"])


def test_a_cut_connection_loses_and_doubles_nothing(app: Celery, redis_url: str, store: BlockingStore) -> None:
    taken = []
    with Taker(redis_url, "agent_execution", "ordinary") as taker:
        for number in range(30):
            app.send_task("x", args=[number], queue="agent_execution:t")
            cut_every_connection(store)
            for message in taker.take(1):
                taken.append(message.payload[0][0])
                cut_every_connection(store)
                message.ack()
        assert taken == list(range(30))
        assert nothing_left(store, taker)


def test_a_connection_that_is_cut_while_there_is_no_room_is_replaced(
    app: Celery, redis_url: str, store: BlockingStore
) -> None:
    with Taker(redis_url, prefetch=1) as taker:
        for _ in range(2):
            app.send_task("x", queue="agent_execution:t")
        (message,) = taker.take()
        taker.take_nothing(0.05)
        cut_every_connection(store)
        taker.take_nothing(0.05)
        message.ack()
        (message,) = taker.take()
        message.ack()
        assert nothing_left(store, taker)


def test_a_connection_that_breaks_as_something_is_sent_is_replaced(app: Celery, redis_url: str) -> None:
    with Taker(redis_url) as taker:
        taker.take_nothing(0.05)
        (only,) = taker.channel.lanes.values()
        only.drop()
        taker.connection.transport.cycle.register_lane(taker.channel, only)
        only.client.connection._sock.shutdown(socket.SHUT_RDWR)
        only.wait()
        assert only.under_way is lane.UnderWay.NOTHING
        app.send_task("x", queue="agent_execution:t")
        (message,) = taker.take()
        message.ack()


def test_a_connection_that_breaks_with_a_message_on_it_returns_it_with_its_lease(
    app: Celery, redis_url: str, run: Any
) -> None:
    with Taker(redis_url, fair_lease_s=0.3) as taker:
        taker.take_nothing(0.05)
        app.send_task("x", queue="agent_execution:t")
        (only,) = taker.channel.lanes.values()
        only.drop()
        taker.channel.poll_lanes()
        until(lambda: run(fair_queue.depths())["agent_execution"].in_flight == 1)
        only.client.connection._sock.close()
        taker.consumer.cancel()
        taker.consumer.consume()
        (message,) = taker.take()
        message.ack()


def test_an_error_on_a_lanes_socket_is_read_like_a_reply(app: Celery, redis_url: str) -> None:
    with Taker(redis_url) as taker:
        taker.take_nothing(0.05)
        (only,) = taker.channel.lanes.values()
        fileno = only.client.connection._sock.fileno()
        only.client.connection._sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(Empty):
            taker.connection.transport.cycle.handle_event(fileno, ERR)
        app.send_task("x", queue="agent_execution:t")
        (message,) = taker.take()
        message.ack()


class Loading(socketserver.BaseRequestHandler):
    """Between a client and its server: answers some commands as a server does that is still reading its data."""

    server_port: int
    refused: ClassVar[set[bytes]] = set()

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server_port)) as server:
            while True:
                for ready in select.select([self.request, server], [], [])[0]:
                    if not (octets := ready.recv(1_000_000)):
                        return
                    if ready is server:
                        self.request.sendall(octets)
                    elif any(command in octets for command in self.refused):
                        self.request.sendall(b"-LOADING Redis is loading the dataset in memory\r\n")
                    else:
                        server.sendall(octets)


@pytest.fixture
def loading_url(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    parts = urlsplit(redis_url)
    monkeypatch.setattr(Loading, "server_port", parts.port, raising=False)
    monkeypatch.setattr(Loading, "refused", set())
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Loading) as proxy:
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield redis_url.replace(f":{parts.port}", f":{proxy.server_address[1]}")
        proxy.shutdown()
        thread.join()


def test_a_server_that_is_loading_is_not_asked_in_a_busy_loop(
    app: Celery, loading_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "PAUSE_S", 0.2)
    with Taker(loading_url, "agent_execution", "ordinary") as taker:
        Loading.refused.add(b"EVALSHA")
        until(lambda: taker.drain(0.05) or caplog.text.count("Redis answered") == 2)
        Loading.refused.clear()
        app.send_task("x", queue="agent_execution:t")
        (message,) = taker.take()
        message.ack()
        Loading.refused.add(b"BRPOP")
        with pytest.raises(BusyLoadingError):  # Celery's answer is to wait and to connect anew
            until(lambda: taker.drain(0.05))


def test_a_connection_that_hangs_is_replaced(
    app: Celery, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lane, "OVERDUE_S", -0.8)
    monkeypatch.setattr(lane, "WAIT_S", 30)  # for Redis; our patience is 29.2 s less
    with Taker(redis_url) as taker:
        taker.drain(0.05)
        monkeypatch.setattr(lane, "WAIT_S", 1)
        until(lambda: taker.drain(0.05) or "connecting anew" in caplog.text)
        app.send_task("x", queue="agent_execution:t")
        (message,) = taker.take()
        message.ack()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that the test may kill."""
    with EmbeddedServer(tmp_path / "redis") as server:
        yield server


def test_a_task_that_ends_during_an_outage_is_acknowledged_after_it(
    own_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = BlockingStore(own_server.url)
    for step in ("prompt", "completion.1"):
        store.run(replace(HINT, step=step).push())
    with Taker(own_server.url, socket_connect_timeout=1) as taker:
        messages = taker.take(2)
        own_server.kill()
        for message in messages:
            message.ack()
        assert caplog.text.count("not settled") == 1
        until(lambda: "not renewed" in caplog.text)
        own_server.restart()
        until(lambda: store.redis.ping() and not store.redis.exists(keys.fair_lease()))
        assert store.run(fair_queue.depths())["agent_execution"].in_flight == 0
    store.close()


def test_a_connection_lost_gives_no_running_task_to_another(own_server: EmbeddedServer) -> None:
    store = BlockingStore(own_server.url)
    for number in range(2):
        call: Call[bool] = fair_queue.push("agent_execution:t", tag=str(number), priority=0, message=HINT.message())
        store.run(call)
    taker = Taker(own_server.url, fair_lease_s=1)
    messages = taker.take(2)
    own_server.kill()
    with pytest.raises(redis.ConnectionError):
        taker.drain()
    taker.connection.collect()  # which is what Celery does then
    own_server.restart()
    until(lambda: store.redis.ping())
    for _ in range(3):
        time.sleep(0.5)  # longer than the lease: only renewals explain what follows
        assert store.run(fair_queue.depths())["agent_execution"].in_flight == 2
    store.run(fair_queue.push("agent_execution:t", tag="next", priority=0, message=HINT.message()))
    with Taker(own_server.url, prefetch=2) as successor:
        successor.take_nothing()  # the places are filled
        messages[0].ack()
        (message,) = successor.take()
        message.ack()
    until(lambda: store.run(fair_queue.depths())["agent_execution"].in_flight == 1)
    del messages[:]
    gc.collect()
    until(lambda: store.run(fair_queue.depths())["agent_execution"].in_flight == 0)
    assert store.run(fair_queue.size("agent_execution")) == 1
    until(lambda: not taker.channel.leases.keeper.is_alive())
    store.close()


def test_what_cannot_be_given_back_as_a_channel_closes_is_given_back_later(
    own_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = BlockingStore(own_server.url)
    store.run(HINT.push())
    taker = Taker(own_server.url)
    messages = taker.take()
    own_server.kill()
    taker.connection.close()
    assert "not given back" in caplog.text
    messages.clear()
    gc.collect()
    own_server.restart()
    until(lambda: not taker.channel.leases.keeper.is_alive())
    assert store.run(fair_queue.size("agent_execution")) == 1
    store.close()


def test_a_channel_that_closes_says_at_once_what_it_could_not_say_before(own_server: EmbeddedServer) -> None:
    store = BlockingStore(own_server.url)
    store.run(HINT.push())
    taker = Taker(own_server.url)
    (message,) = taker.take()
    own_server.kill()
    message.ack()
    own_server.restart()
    until(lambda: store.redis.ping())
    taker.connection.close()  # as a worker does that stops: its process may end here
    assert not store.redis.exists(keys.fair_lease())
    until(lambda: not taker.channel.leases.keeper.is_alive())
    store.close()


def test_a_server_that_refuses_is_asked_again(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lane, "PAUSE_S", 0.2)
    store = BlockingStore(own_server.url)
    with Taker(own_server.url) as taker:
        store.run(HINT.push())
        store.redis.replicaof("127.0.0.1", "1")
        taker.drain(0.1)
        until(lambda: taker.drain(0.05) or "Redis answered" in caplog.text)
        store.redis.replicaof("NO", "ONE")
        (message,) = taker.take()
        message.ack()
    store.close()


# -- sentinel


@pytest.fixture
def sentinel_url(own_server: EmbeddedServer, tmp_path: Path) -> Iterator[str]:
    """A sentinel that watches `own_server` under the name `cell`."""
    url = redis.connection.parse_url(own_server.url)
    port = embedded.free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nsentinel monitor cell 127.0.0.1 {url['port']} 1\n"
        f"sentinel auth-pass cell {url.get('password') or ''}\n"
    )
    process = subprocess.Popen(
        [embedded._binary(), str(configuration), "--sentinel"], stdout=subprocess.DEVNULL, cwd=tmp_path
    )
    client = redis.Redis(port=port)

    def watches() -> bool:
        try:
            return bool(client.sentinel_master("cell"))
        except redis.RedisError:
            return False

    until(watches)
    client.close()
    yield f"sentinel://:{url.get('password') or ''}@127.0.0.1:{port}"
    process.terminate()
    process.wait()


def test_sentinel(sentinel_url: str) -> None:
    options = {"master_name": "cell"}
    with Celery("ours", broker=sentinel_url, set_as_current=False) as app:
        app.conf.update(task_ignore_result=True, broker_transport_options=options)
        with Taker(sentinel_url, **options) as taker:
            assert isinstance(taker.channel, Channel)
            for queue in ("agent_execution:t", "agent_execution"):
                app.send_task("x", queue=queue)
            for message in taker.take(2):
                message.ack()
            assert taker.channel._size("agent_execution") == 0
    pools.reset()


def test_leases_wait_for_each_other_and_not_for_ever() -> None:
    assert leases.RENEWALS_PER_LEASE * lane.WAIT_S < fair_queue.LEASE_S
