"""What is demanded of a server, and whether it takes writes."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_exec import server
from agent_exec.embedded import EmbeddedServer, _binary
from agent_exec.errors import StorageFull
from agent_exec.settings import read_settings
from agent_exec.store import BlockingStore, Store
from tests.processes import Process, free_port, wait_until

GOOD = {
    "redis_version": "7.2.4",
    "role": "master",
    "cluster_enabled": "0",
    "maxmemory_policy": "noeviction",
    "aof_enabled": "1",
}


def test_nothing_is_said_of_a_server_that_will_do(store: BlockingStore) -> None:
    assert list(server.complaints(GOOD)) == []
    assert list(server.complaints(store.run(server.info()))) == [], "the embedded one will do"
    assert list(server.complaints({"redis_version": "8.0.1"})) == [], "what it does not say it is not blamed for"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"redis_version": "6.2.14"}, "7.0 is the oldest"),
        ({"role": "slave"}, "point AGENT_EXEC_REDIS_URL at the primary"),
        ({"cluster_enabled": "1"}, "point AGENT_EXEC_REDIS_URL at a single primary"),
        ({"maxmemory_policy": "allkeys-lru"}, "set maxmemory-policy noeviction"),
        ({"aof_enabled": "0"}, "set appendonly yes"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(wrong: dict[str, str], says: str) -> None:
    """S23."""
    [complaint] = server.complaints({**GOOD, **wrong})
    assert says in complaint


async def test_it_is_said_once_when_the_server_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with EmbeddedServer(tmp_path / "redis") as running:
        direct, store = BlockingStore(running.url), Store(running.url)
        direct.redis.config_set("appendonly", "no")
        direct.redis.config_set("maxmemory-policy", "volatile-ttl")
        await server.inspect(store, read_settings(redis_url=running.url))
        assert [record.name for record in caplog.records] == ["agent_exec.server"] * 2
        await store.aclose()
        direct.close()


@pytest.fixture
def open_server(tmp_path: Path) -> Iterator[str]:
    """The address, by this machine's name, of a server that knows a user and lets in those it does not know."""
    port = free_port()
    command = [_binary(), "--port", str(port), "--dir", str(tmp_path), "--protected-mode", "no", "--save", ""]
    with Process(
        "redis", [*command, *["--user", "worker", "on", ">word", "~*", "&*", "+@all"]], env={}, log=tmp_path / "log"
    ) as process:
        wait_until(lambda: "Ready to accept" in process.output or not process.running, what="the server")
        assert process.running, process.output
        yield f"redis://worker:word@{socket.gethostname()}:{port}/0"


async def test_a_server_that_lets_in_everybody_is_found_out(open_server: str, redis_server: EmbeddedServer) -> None:
    assert await server.lets_anybody_in(open_server)
    assert not await server.lets_anybody_in(redis_server.url)
    assert not await server.lets_anybody_in(f"redis://{socket.gethostname()}:{free_port()}/0")


@pytest.mark.parametrize(("environment", "goes_on"), [("production", False), ("sandbox", True)])
def test_a_process_ends_when_its_server_on_another_machine_lets_in_everybody(
    environment: str, goes_on: bool, open_server: str, tmp_path: Path
) -> None:
    """S23."""
    env = {"AGENT_EXEC_REDIS_URL": open_server, "AGENT_EXEC_ENVIRONMENT": environment}
    with Process("notifier", ["-m", "notifier"], env=env, log=tmp_path / "notifier.log") as process:
        wait_until(lambda: "asks nobody for a password" in process.output, what="the process to find out")
        if not goes_on:
            wait_until(lambda: not process.running, what="the process to end")
        assert process.running == goes_on
        assert "word@" not in process.output


def test_a_server_that_takes_no_writes_is_found_without_writing(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "redis") as running:
        store = BlockingStore(running.url)
        store.run(server.writable())
        for wrong, right in (
            (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
            (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
            (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
        ):
            store.redis.execute_command(*wrong)
            with pytest.raises(StorageFull):
                store.run(server.writable())
            store.redis.execute_command(*right)
            store.run(server.writable())
        assert store.redis.dbsize() == 0
        store.close()
