"""Running calls: in one pipeline, past a forgotten script, through a lost server, beside a cancelled caller."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis

from agent_exec.embedded import EmbeddedServer
from agent_exec.errors import StorageFull, StorageUnavailable
from agent_exec.script import Call, Script
from agent_exec.store import MAX_BATCH, BlockingStore, Store


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
    assert len(async_store.redis.connection_pool._available_connections) == 1


async def test_a_forgotten_script_is_sent_whole(async_store: Store, store: BlockingStore, echo: Script) -> None:
    for _ in range(2):
        store.redis.script_flush()
        assert await async_store.run(call(echo, "x")) == "x"
        store.redis.script_flush()
        assert store.run_many([call(echo, "y"), call(echo, "z")]) == ["y", "z"]


async def test_a_cancelled_caller_leaves_the_others_their_own_replies(async_store: Store, echo: Script) -> None:
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
