"""Running calls: in one pipeline, past a forgotten script, through a lost server, beside a cancelled caller."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import uvloop

from agent_exec import pipeline
from agent_exec import store as store_module
from agent_exec.embedded import EmbeddedServer
from agent_exec.errors import StorageFull, StorageUnavailable
from agent_exec.script import Call, Script
from agent_exec.store import MAX_BATCH, QUIET_S, REMIND_S, BlockingStore, Outage, Store, redis_errors
from chaos.proxy import Proxy


@pytest.fixture
def echo(tmp_path: Path) -> Script:
    """A script that returns its argument, by way of an include."""
    (tmp_path / "_say.lua").write_text("local function say(word) return word end\n")
    (tmp_path / "echo.lua").write_text("-- include: _say.lua\nreturn say(ARGV[1])\n")
    return Script.load(tmp_path / "echo.lua")


def call(script: Script, word: str) -> Call[str]:
    return Call(script, [], [word], lambda reply: reply.decode())


async def test_calls_of_one_moment_travel_together(async_store: Store, store: BlockingStore, echo: Script) -> None:
    store.redis.config_resetstat()
    words = [str(number) for number in range(MAX_BATCH + 10)]
    assert await async_store.run_many([call(echo, word) for word in words]) == words
    assert store.redis.info("stats")["total_connections_received"] == 1


async def test_calls_are_the_same_without_hiredis(
    async_store: Store, echo: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "hiredis", None)
    assert await async_store.run_many([call(echo, word) for word in ("a", "ü", "")]) == ["a", "ü", ""]


async def test_a_forgotten_script_is_sent_whole(async_store: Store, store: BlockingStore, echo: Script) -> None:
    for _ in range(2):
        store.redis.script_flush()
        assert await async_store.run(call(echo, "x")) == "x"
        store.redis.script_flush()
        assert store.run_many([call(echo, "y"), call(echo, "z")]) == ["y", "z"]


async def test_a_cancelled_caller_leaves_the_others_their_own_replies(async_store: Store, echo: Script) -> None:
    """S06."""
    for round_ in range(50):
        tasks = [asyncio.create_task(async_store.run(call(echo, f"{round_}:{number}"))) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        for number, reply in enumerate(replies):
            if number % 3:
                assert reply == f"{round_}:{number}"
            else:
                assert isinstance(reply, asyncio.CancelledError)


async def test_one_failing_call_fails_alone(
    async_store: Store, store: BlockingStore, tmp_path: Path, echo: Script
) -> None:
    (tmp_path / "wrong.lua").write_text("return redis.call('NO SUCH COMMAND')\n")
    wrong: Call[str] = Call(Script.load(tmp_path / "wrong.lua"), [], [], str)
    one, two = await asyncio.gather(async_store.run(wrong), async_store.run(call(echo, "fine")), return_exceptions=True)
    assert isinstance(one, redis.ResponseError)
    assert two == "fine"
    outcomes = store.run_each([wrong, call(echo, "fine")])
    assert isinstance(outcomes[0], redis.ResponseError)
    assert outcomes[1] == "fine"


async def test_a_server_that_is_away_is_an_error_that_says_so_and_its_return_is_noticed(
    tmp_path: Path, echo: Script
) -> None:
    with EmbeddedServer(tmp_path / "redis") as server:
        asynchronous, blocking = Store(server.url), BlockingStore(server.url)
        assert await asynchronous.run(call(echo, "x")) == blocking.run(call(echo, "x")) == "x"
        server.kill()
        with pytest.raises(StorageUnavailable, match="AGENT_EXEC_REDIS_URL"):
            await asynchronous.run(call(echo, "x"))
        with pytest.raises(StorageUnavailable):
            blocking.run(call(echo, "x"))
        server.restart()
        assert await asynchronous.run(call(echo, "x")) == blocking.run(call(echo, "x")) == "x"
        await asynchronous.aclose()
        blocking.close()


async def test_a_full_server_is_another_error(tmp_path: Path) -> None:
    (tmp_path / "write.lua").write_text("redis.call('SET', KEYS[1], ARGV[1])\nreturn 1\n")
    write: Call[int] = Call(Script.load(tmp_path / "write.lua"), ["ax:x"], ["x" * 100], int)
    with EmbeddedServer(tmp_path / "redis") as server:
        blocking = BlockingStore(server.url)
        blocking.redis.config_set("maxmemory", 1)
        with pytest.raises(StorageFull, match="refuses writes"):
            blocking.run(write)
        blocking.redis.config_set("maxmemory", 0)
        assert blocking.run(write) == 1
        blocking.close()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("MISCONF Redis is configured to save RDB snapshots", StorageFull),
        ("OOM command not allowed", StorageFull),
        ("READONLY You can't write against a read only replica", StorageFull),
        ("MASTERDOWN Link with MASTER is down", StorageFull),
        ("NOREPLICAS Not enough good replicas to write", StorageFull),
        ("LOADING Redis is loading the dataset in memory", StorageUnavailable),
        ("BUSY Redis is busy running a script", StorageUnavailable),
        ("UNBLOCKED force unblock from blocking operation", StorageUnavailable),
        ("MOVED 3999 127.0.0.1:6381", StorageUnavailable),
        ("CROSSSLOT Keys in request don't hash to the same slot", StorageUnavailable),
        ("CLUSTERDOWN The cluster is down", StorageUnavailable),
        ("BUSYGROUP Consumer Group name already exists", redis.ResponseError),
        ("WRONGTYPE Operation against a key", redis.ResponseError),
    ],
)
async def test_what_a_server_says_of_itself_is_an_error_of_ours(
    async_store: Store, store: BlockingStore, tmp_path: Path, said: str, kind: type[Exception]
) -> None:
    (tmp_path / "refuses.lua").write_text(f'return redis.error_reply("{said}")\n')
    refuses: Call[str] = Call(Script.load(tmp_path / "refuses.lua"), [], [], str)
    with pytest.raises(kind):
        await async_store.run(refuses)
    with pytest.raises(kind):
        store.run(refuses)


async def test_what_is_on_its_way_is_finished_before_the_store_closes(redis_url: str, echo: Script) -> None:
    closing = Store(redis_url)
    asked = asyncio.create_task(closing.run(call(echo, "last")))
    await asyncio.sleep(0)
    await closing.aclose()
    assert await asked == "last"


def test_a_connection_that_was_lost_while_idle_is_no_outage_under_uvloop(redis_url: str, echo: Script) -> None:
    async def lose() -> None:
        store = Store(redis_url)
        await store.run(call(echo, "x"))
        connection = store._pipeline._connection
        assert connection is not None
        assert connection._writer is not None
        connection._writer.transport.abort()
        assert await store.run(call(echo, "y")) == "y"
        await store.aclose()

    uvloop.run(lose())


# -- by way of a network that fails


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    """A proxy before the server."""
    with Proxy.before(redis_url) as running:
        yield running


@pytest.fixture
def count(tmp_path: Path) -> Call[int]:
    """A call that counts how often it took effect."""
    (tmp_path / "count.lua").write_text(
        "redis.call('EXPIRE', KEYS[1], 60)\nlocal n = redis.call('INCR', KEYS[1])\n"
        "redis.call('EXPIRE', KEYS[1], 60)\nreturn n\n"
    )
    return Call(Script.load(tmp_path / "count.lua"), ["ax:count"], [], int)


async def test_a_storm_of_cancels_mixes_up_no_replies(proxy: Proxy, echo: Script) -> None:
    """Callers give up at every moment of a call that takes its time: before it is sent, under way, when there (S06)."""
    stormy, dice = Store(proxy.url), random.Random(6)
    proxy.delay(0.002)
    wrong: list[tuple[str, str]] = []

    async def ask(word: str) -> None:
        answer = await stormy.run(call(echo, word))
        if answer != word:
            wrong.append((word, answer))

    async def wait_for_nothing() -> None:
        with redis_errors():
            assert await stormy.redis.blpop(["ax:never"], timeout=0.05) is None

    for round_ in range(40):
        tasks = [asyncio.create_task(ask(f"{round_}:{number}")) for number in range(20)]
        tasks += [asyncio.create_task(wait_for_nothing()) for _ in range(2)]
        for task in dice.sample(tasks, 12):
            asyncio.get_running_loop().call_later(dice.random() * 0.01, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        if round_ % 10 == 0:
            proxy.cut()
    assert await stormy.run(call(echo, "last")) == "last"
    assert not wrong
    await stormy.aclose()


async def test_what_nobody_waits_for_any_more_is_not_sent(proxy: Proxy, count: Call[int]) -> None:
    held = Store(proxy.url)
    assert await held.run(count) == 1
    proxy.hold(0.3)
    first = asyncio.create_task(held.run(count))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(held.run(count))
    await asyncio.sleep(0.05)
    second.cancel()
    assert await first == 2
    assert await held.run(count) == 3
    await held.aclose()


async def test_a_lost_reply_is_asked_for_again(proxy: Proxy, count: Call[int]) -> None:
    """What is called must therefore be safe to repeat; this script is not, and counts twice."""
    lossy = Store(proxy.url)
    assert await lossy.run(count) == 1
    proxy.drop_replies(1)
    assert await lossy.run(count) == 3
    proxy.drop_replies(4)
    with pytest.raises(StorageUnavailable):
        await lossy.run(count)
    assert await lossy.insist(count) == 8
    assert proxy.dropped == 5
    await lossy.aclose()


async def test_all_who_wait_for_a_silent_server_hear_of_it_together(
    proxy: Proxy, echo: Script, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(store_module.CONNECTION, "socket_timeout", 0.3)
    waiting = Store(proxy.url)
    assert await waiting.run(call(echo, "x")) == "x"
    proxy.black_hole(True)
    began = time.monotonic()
    asked = [asyncio.create_task(waiting.run(call(echo, str(number)))) for number in range(10 * MAX_BATCH)]
    insisting = asyncio.create_task(waiting.insist(call(echo, "insisted")))
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StorageUnavailable}
    assert time.monotonic() - began < 2
    proxy.black_hole(False)
    assert await insisting == "insisted"
    assert len(caplog.records) <= 2, "ten batches of calls are one outage"
    await waiting.aclose()


@pytest.mark.parametrize("said", ["LOADING Redis is loading the dataset in memory", "NOAUTH Authentication required."])
async def test_f29_a_server_that_is_not_there_yet_is_away(said: str, echo: Script) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4_096):
            writer.write(f"-{said}\r\n".encode())
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        away = Store(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
        with pytest.raises(StorageUnavailable, match=said.partition(" ")[2].rstrip(".")):
            await away.run(call(echo, "x"))
        await away.aclose()


def test_an_outage_is_told_of_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    outage, now_s = Outage(), 1_000.0
    outage.passed(now_s=now_s)
    for tick in range(1_000):
        outage.met(StorageFull("Redis is full."), now_s=now_s + tick / 10)
        outage.passed(now_s=now_s + tick / 10)
    ended_s = now_s + 99.9 + QUIET_S
    outage.passed(now_s=ended_s)
    outage.passed(now_s=ended_s + REMIND_S)
    assert [record.getMessage() for record in caplog.records] == [
        "Redis is full. What is under way is kept and tried again.",
        "Redis is full. So it has been for 60 s, 601 calls.",
        "Redis serves again, after 100.9 s and 1000 calls.",
    ]
