from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from agent_exec import api_keys
from agent_exec.embedded import EmbeddedServer
from agent_exec.store import Store
from tests.api_shim.played_worker import PlayedWorker
from tests.api_shim.shim_process import ShimProcess, shim_process

TENANTS = ["acme", "globex"]


@pytest.fixture(scope="session")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="session")
def api_key(keys_file: Path) -> dict[str, str]:
    """A key of each tenant."""
    return {tenant: api_keys.create(keys_file, tenant_id=tenant) for tenant in TENANTS}


@pytest.fixture(scope="session")
def one_shim(
    redis_server: EmbeddedServer,
    keys_file: Path,
    api_key: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ShimProcess]:
    folder = tmp_path_factory.mktemp("shim")
    settings = {
        "redis_url": redis_server.url,
        "api_keys_file": keys_file,
        "api_failed_attempts": 100_000,  # all tests come from one address
        "callback_secret": "whsec_" + "c2VjcmV0" * 4,
        "api_body_timeout_s": 1,
        "api_sse_ping_s": 1,
        "api_send_timeout_s": 2,
        "api_allowed_origins": '["https://console.example"]',
    }
    with shim_process(folder, **settings) as shim:
        yield shim


@pytest.fixture
def shim(one_shim: ShimProcess, redis_url: str) -> ShimProcess:
    """The shim that all tests share, on a store that is empty."""
    return one_shim


@pytest.fixture
async def acme(shim: ShimProcess, api_key: dict[str, str]) -> AsyncIterator[aiohttp.ClientSession]:
    """A caller with a key of the tenant acme."""
    async with session(shim, api_key["acme"]) as caller:
        yield caller


@pytest.fixture
async def globex(shim: ShimProcess, api_key: dict[str, str]) -> AsyncIterator[aiohttp.ClientSession]:
    """A caller with a key of another tenant."""
    async with session(shim, api_key["globex"]) as caller:
        yield caller


def session(shim: ShimProcess, key: str, *, connector: aiohttp.BaseConnector | None = None) -> aiohttp.ClientSession:
    """Return a caller with this key."""
    return aiohttp.ClientSession(
        shim.url,
        headers={"Authorization": f"Bearer {key}"},
        timeout=aiohttp.ClientTimeout(total=50),
        connector=connector,
    )


class Submitted(PlayedWorker):
    """An execution that was just submitted, and the worker that may run it."""

    def __init__(self, store: Store, answer: dict[str, str]) -> None:
        super().__init__(store, "acme", answer["execution_id"])
        self.redis = store.redis
        self.id = answer["execution_id"]
        self.path = f"/v1/executions/{self.id}"


@pytest.fixture
async def execution(acme: aiohttp.ClientSession, async_store: Store) -> Submitted:
    """An execution of acme."""
    async with acme.post("/v1/executions", json={"agent_id": "desk", "query": "What is 6 * 7?"}) as response:
        assert response.status == 202
        return Submitted(async_store, await response.json())
