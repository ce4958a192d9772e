"""The proxy's faults are what they say: the effect took place, the reply is lost, the connection is gone or silent."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent_exec.embedded import EmbeddedServer
from chaos.proxy import Proxy
from tests.processes import wait_until

COUNT = "return redis.call('INCR', KEYS[1])"
KEY = "ax:counted"
LOST = (redis.ConnectionError, redis.TimeoutError)


@pytest.fixture
def proxy(redis_server: EmbeddedServer, store: object) -> Iterator[Proxy]:
    """A proxy before the server of the run, whose database is empty."""
    with Proxy.before(redis_server.url) as running:
        yield running


@pytest.fixture(params=[2, 3])
def through(proxy: Proxy, redis_url: str, request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """A client by way of the proxy that gives up soon and tries nothing again, in both protocols."""
    with client(proxy, protocol=request.param) as connected:
        yield connected
    with redis.Redis.from_url(redis_url) as direct:
        direct.delete(KEY, "ax:list")


def client(proxy: Proxy, *, protocol: int = 3, timeout_s: float = 0.5) -> redis.Redis:
    return redis.Redis.from_url(
        proxy.url, retry=Retry(NoBackoff(), 0), socket_timeout=timeout_s, protocol=protocol, health_check_interval=0
    )


def test_a_cut_resets_what_is_open_and_nothing_that_comes(proxy: Proxy, through: redis.Redis) -> None:
    assert through.ping()
    proxy.cut()
    with suppress(*LOST):  # the client may see the reset before it sends
        through.ping()
    assert through.ping()
    assert (proxy.connections, proxy.cuts, proxy.dropped) == (2, 1, 0)


def test_a_dropped_reply_is_lost_after_its_script_took_effect(
    proxy: Proxy, through: redis.Redis, redis_url: str
) -> None:
    proxy.drop_replies(2)
    for _ in range(2):
        assert through.ping(), "what carries no script passes"
        with pytest.raises(LOST):
            through.eval(COUNT, 1, KEY)
    assert through.eval(COUNT, 1, KEY) == 3
    assert (proxy.cuts, proxy.dropped) == (2, 2)


def test_an_error_is_no_effect_and_is_passed_on(proxy: Proxy, through: redis.Redis) -> None:
    proxy.drop_replies(1)
    with pytest.raises(redis.exceptions.NoScriptError):
        through.evalsha("0" * 40, 0)
    with pytest.raises(LOST):
        through.eval(COUNT, 1, KEY)


def test_in_a_pipeline_the_replies_before_the_lost_one_belong_to_their_requests(
    proxy: Proxy, through: redis.Redis, redis_url: str
) -> None:
    proxy.drop_replies(1, about=b"second")
    pipeline = through.pipeline(transaction=False)
    pipeline.eval(COUNT, 1, KEY)
    pipeline.eval(COUNT + " -- second", 1, KEY)
    pipeline.eval(COUNT, 1, KEY)
    with pytest.raises(LOST):
        pipeline.execute()
    assert through.get(KEY) == b"3", "the whole pipeline took effect"
    assert proxy.dropped == 1


def test_each_nth_message_of_a_blocking_pop_is_lost(proxy: Proxy, through: redis.Redis) -> None:
    proxy.cut_on(b"BRPOP", every=3)
    through.lpush("ax:list", *range(6))
    got, lost = [], 0
    while through.llen("ax:list"):
        try:
            reply = through.brpop(["ax:list"], timeout=1)
            got.append(int(reply[1]))
        except LOST:
            lost += 1
    assert (got, lost) == ([0, 1, 3, 4], 2)
    assert through.brpop(["ax:list"], timeout=0.01) is None, "an empty answer is not counted"
    proxy.heal()
    through.lpush("ax:list", *range(3))
    assert [int(through.brpop(["ax:list"])[1]) for _ in range(3)] == [0, 1, 2]


def test_held_bytes_arrive_afterwards_on_the_same_connection(proxy: Proxy) -> None:
    with client(proxy, timeout_s=5) as patient:
        assert patient.ping()
        proxy.hold(0.3)
        began = time.monotonic()
        assert patient.eval(COUNT, 1, KEY) == 1
        assert time.monotonic() - began >= 0.25
        assert patient.delete(KEY) == 1
    assert (proxy.connections, proxy.cuts) == (1, 0)


def test_a_black_hole_takes_everything_and_says_nothing(proxy: Proxy, through: redis.Redis) -> None:
    assert through.ping()
    with client(proxy) as late:
        proxy.black_hole(True)
        for one in (through, late):
            with pytest.raises(redis.TimeoutError):
                one.eval(COUNT, 1, KEY)
        proxy.black_hole(False)
        assert late.ping()
    assert through.ping()
    assert not through.exists(KEY), "what the black hole took is gone"


def test_a_reply_that_is_late(proxy: Proxy) -> None:
    with client(proxy, timeout_s=5) as patient:
        assert patient.ping()
        proxy.delay(0.2)
        began = time.monotonic()
        assert patient.ping()
        assert time.monotonic() - began >= 0.2
        proxy.delay(0)


def test_a_reply_that_trickles(proxy: Proxy) -> None:
    with client(proxy, timeout_s=5) as patient:
        assert patient.ping()
        proxy.throttle(10_000)
        began = time.monotonic()
        assert patient.echo("x" * 5_000) == b"x" * 5_000
        assert time.monotonic() - began >= 0.3


def test_a_reset_in_the_middle_of_a_reply(proxy: Proxy, through: redis.Redis) -> None:
    assert through.ping()
    proxy.reset_after(2_000)
    with pytest.raises(LOST):
        through.echo("x" * 5_000)
    proxy.heal()
    assert through.echo("x" * 5_000) == b"x" * 5_000
    assert proxy.cuts == 1


def test_a_half_closed_connection_still_takes_what_is_sent(proxy: Proxy, redis_url: str) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port)) as raw, redis.Redis.from_url(redis_url) as direct:
        raw.settimeout(5)
        password = direct.connection_pool.connection_kwargs["password"]
        raw.sendall(b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n" % (len(password), password.encode()))
        assert raw.recv(100) == b"+OK\r\n"
        proxy.half_close()
        assert raw.recv(100) == b""
        raw.sendall(b"*2\r\n$4\r\nINCR\r\n$10\r\nax:counted\r\n")
        wait_until(lambda: direct.get(KEY) == b"1", what="the effect", within_s=5)
        direct.delete(KEY)


def test_messages_of_a_subscription_pass(proxy: Proxy, through: redis.Redis) -> None:
    proxy.drop_replies(1)
    with through.pubsub(ignore_subscribe_messages=True) as subscribed:
        subscribed.psubscribe("ax.*")
        subscribed.get_message(timeout=5)
        with client(proxy) as speaker:
            assert speaker.publish("ax.word", "heard") == 1
        message = wait_until(lambda: subscribed.get_message(timeout=1), what="the message", within_s=5)
    assert message["data"] == b"heard"


def test_another_protocol_is_passed_on_as_it_comes() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Proxy("127.0.0.1", listener.getsockname()[1]) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port)) as near,
        listener.accept()[0] as far,
    ):
        for sender, receiver in ((near, far), (far, near)):
            sender.sendall(b"\x81\x05hello")
            receiver.settimeout(5)
            assert receiver.recv(100) == b"\x81\x05hello"


def test_a_server_that_is_away_is_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Proxy("127.0.0.1", port) as proxy, client(proxy) as refused, pytest.raises(LOST):
        refused.ping()
