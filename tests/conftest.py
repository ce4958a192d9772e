"""What every test stands on: a real server, emptied before each test, whose leftovers fail the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings

from agent_exec import keys
from agent_exec.embedded import EmbeddedServer
from agent_exec.store import BlockingStore, Store

#: Needs images and a container engine: `make test-containers` names the folder, and so collects it.
collect_ignore = ["containers"]

#: `--hypothesis-profile=thorough`: for a night, or after a change to a rule of the ledger.
settings.register_profile(
    "thorough", max_examples=500, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A private server for the whole run."""
    with EmbeddedServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedServer) -> Iterator[str]:
    """The address of an empty database; the test fails if it leaves a key that keys.py does not know, or an immortal one."""
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    yield redis_server.url
    leaks = [problem for key in client.scan_iter() if (problem := _leak(client, key.decode())) is not None]
    client.close()
    assert not leaks, leaks


def _leak(client: redis.Redis, key: str) -> str | None:
    if not any(fnmatch(key, pattern) for pattern in keys.KNOWN):
        return f"{key} is not in keys.py"
    if client.ttl(key) == -1 and not any(fnmatch(key, pattern) for pattern in keys.IMMORTAL):
        return f"{key} never expires"
    return None


@pytest.fixture
def store(redis_url: str) -> Iterator[BlockingStore]:
    """The store, for synchronous tests."""
    blocking = BlockingStore(redis_url)
    yield blocking
    blocking.close()


@pytest.fixture
async def async_store(redis_url: str) -> AsyncIterator[Store]:
    """The store, for tests that are coroutines."""
    asynchronous = Store(redis_url)
    yield asynchronous
    await asynchronous.aclose()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).parent.parent
