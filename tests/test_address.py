"""Addresses of Redis: what our clients and Celery's broker make of the same text."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection
from kombu.utils import json as kombu_json
from pydantic import SecretStr

from agent_exec import address
from agent_exec.address import Sentinels
from agent_exec.broker.transport import register
from agent_exec.embedded import _binary, redis_url
from agent_exec.errors import SettingsInvalid, StorageUnavailable
from agent_exec.script import Call, Script
from agent_exec.settings import Settings
from agent_exec.store import BlockingStore, Store
from tests import sentinels
from tests.processes import Process, wait_until

WHOLE = "sentinel://me:p%40ss@a:1/3;sentinel://b;sentinel://[::1]:7"


def completed(url: str, **more: str) -> str:
    return address.complete(url, **{"master_name": "cell 1", "sentinel_password": "", **more})


def test_the_parts_of_a_sentinel_address_are_one() -> None:
    assert Sentinels.parse(completed(WHOLE, sentinel_password="s&t")) == Sentinels(
        hosts=(("a", 1), ("b", 26_379), ("::1", 7)),
        master_name="cell 1",
        sentinel_password="s&t",
        username="me",
        password="p@ss",
        database=3,
    )
    late = Sentinels.parse(completed("sentinel://a;sentinel://:p@b/2"))
    assert (late.password, late.database, late.sentinel_password) == ("p", 2, None)


@pytest.mark.parametrize("url", ["sentinel://", "sentinel://a;redis://b", "sentinel://a:x", "sentinel://a/x"])
def test_what_is_no_address_is_told_as_a_setting(url: str) -> None:
    with pytest.raises(SettingsInvalid, match="AGENT_EXEC_REDIS_URL"):
        completed(url)


def test_other_addresses_are_complete_as_they_are() -> None:
    for url in ("redis://:p@a/1", "rediss://a?ssl_ca_certs=/x", "unix:///run/redis.sock?db=2"):
        assert completed(url) == url


def test_celery_is_told_the_same() -> None:
    told = address.broker(completed(WHOLE, sentinel_password="s"))
    assert told.broker_url == "sentinel://me:p%40ss@a:1/3;sentinel://me:p%40ss@b:26379/3;sentinel://me:p%40ss@[::1]:7/3"
    assert told.transport_options["master_name"] == "cell 1"
    sentinel = told.transport_options["sentinel_kwargs"]
    assert dict(sentinel)["password"] == "s"
    assert len(sentinel) == len(list(sentinel))
    for shown in (repr(sentinel), kombu_json.dumps(told.transport_options)):  # as in `inspect stats`
        assert "'s'" not in shown
        assert '"s"' not in shown
    assert address.broker("redis://a").broker_url == "redis://a"
    assert address.broker("rediss://a").use_ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}


def test_a_unix_socket_serves_both(tmp_path: Path) -> None:
    """Celery has a spelling of its own for it."""
    register()
    socket = tmp_path / "redis.sock"
    command = [_binary(), "--port", "0", "--unixsocket", str(socket), "--requirepass", "p", "--dir", str(tmp_path)]
    with Process("redis", command, env={}, log=tmp_path / "log"):
        wait_until(socket.exists, what="the socket")
        url = f"unix://:p@{socket}?db=2"
        store, told = BlockingStore(url), address.broker(url)
        store.redis.set("ax:there", "1")
        with Connection(told.broker_url) as connection, connection.channel() as channel:
            assert channel.client.get("ax:there") == b"1"
        store.close()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[sentinels.Sentinels]:
    with sentinels.Sentinels(tmp_path) as running:
        yield running


@pytest.fixture
def count(tmp_path: Path) -> Call[int]:
    (tmp_path / "count.lua").write_text("return redis.call('INCR', KEYS[1])\n")
    return Call(Script.load(tmp_path / "count.lua"), ["ax:count"], [], int)


@pytest.fixture
def url(watched: sentinels.Sentinels) -> str:
    """Its address, as the settings make it."""
    return redis_url(
        Settings(
            redis_url=watched.url,
            redis_sentinel_master=sentinels.MASTER_NAME,
            redis_sentinel_password=SecretStr(sentinels.SENTINEL_PASSWORD),
        )
    )


async def test_stores_follow_a_primary_that_is_made_a_replica(
    watched: sentinels.Sentinels, url: str, count: Call[int]
) -> None:
    asynchronous, blocking = Store(url), BlockingStore(url)
    assert (await asynchronous.run(count), blocking.run(count)) == (1, 2)
    watched.fail_over()
    assert (await asynchronous.run(count), blocking.run(count)) == (3, 4)
    await asynchronous.aclose()
    blocking.close()


async def test_what_must_get_through_does_when_the_primary_died(
    watched: sentinels.Sentinels, url: str, count: Call[int]
) -> None:
    asynchronous = Store(url)
    assert await asynchronous.run(count) == 1
    watched.kill_primary()
    with pytest.raises(StorageUnavailable):
        await asynchronous.run(count)
    assert await asynchronous.insist(count) == 2
    await asynchronous.aclose()


def test_the_broker_finds_the_primary_by_the_same_settings(url: str) -> None:
    register()
    told = address.broker(url)
    with (
        Connection(told.broker_url, transport_options=told.transport_options) as connection,
        connection.channel() as channel,
    ):
        assert channel.client.ping()
