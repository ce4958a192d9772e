"""What the services beside this one may ask, and who may not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent_exec import api_keys, configuration
from agent_exec.api_keys import Role
from agent_exec.contract.completion import Usage
from agent_exec.contract.spending import TenantUsage
from agent_exec.spending.reservation import Attempt, reserve, settle
from agent_exec.store import Store
from api_shim.app import OPERATIONS
from api_shim.operation import Operation
from api_shim.problem import Problem
from tests.api_shim.conftest import session
from tests.api_shim.played_worker import until
from tests.api_shim.shim_process import ShimProcess, shim_process

USAGE = "/internal/v1/tenants/{}/usage"
INVALIDATE = "/internal/v1/cache/invalidate"
INTERNAL = [operation for operation in OPERATIONS if operation.path.startswith("/internal/")]


@pytest.fixture(scope="session")
def service_key(keys_file: Path) -> dict[str, str]:
    """A service key of each tenant, and one of the services' own."""
    return {
        tenant: api_keys.create(keys_file, tenant_id=tenant, role="service")
        for tenant in ("acme", "globex", "platform")
    }


@pytest.fixture
async def service(service_key: dict[str, str], shim: ShimProcess) -> AsyncIterator[aiohttp.ClientSession]:
    """A service with a key of acme."""
    async with session(shim, service_key["acme"]) as caller:
        await known(caller)
        yield caller


async def known(caller: aiohttp.ClientSession) -> None:
    """Wait until the shim has looked at the file that the caller's key was added to."""

    async def is_known() -> bool:
        async with caller.get("/v1/executions") as response:
            return response.status == 200

    await until(is_known, within_s=5)


async def asked(caller: aiohttp.ClientSession, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    async with caller.request(method, path, **options) as response:
        return response.status, await response.json(content_type=None)


async def spend(store: Store, tenant_id: str) -> None:
    """A call that is settled, a wasted one, and one under way."""
    for name, waste in (("a", False), ("b", True), ("c", None)):
        attempt = Attempt(tenant_id, name, 1)
        await store.run(reserve(attempt, usd=0.5, tokens=100, limit_usd_per_day=5.0, holds_s=60))
        if waste is not None:
            came_to = Usage(prompt_tokens=30, completion_tokens=12, total_tokens=42, cost_usd=0.25)
            await store.run(settle(attempt, came_to, waste=waste))


async def test_a_service_learns_what_a_tenant_has_spent(service: aiohttp.ClientSession, async_store: Store) -> None:
    await spend(async_store, "acme")
    await spend(async_store, "globex")
    status, body = await asked(service, "GET", USAGE.format("acme"))
    assert status == 200
    told = TenantUsage.model_validate_json(json.dumps(body))
    [day] = told.days
    assert (told.tenant_id, day.day, told.last_day - told.first_day) == ("acme", told.last_day, timedelta(days=34))
    assert body["total"]["used"] == {"calls": 2, "prompt_tokens": 60, "completion_tokens": 24, "cost_usd": 0.5}
    assert body["total"]["waste"] == {"calls": 1, "prompt_tokens": 30, "completion_tokens": 12, "cost_usd": 0.25}
    assert body["total"]["reserved"] == {"calls": 1, "tokens": 100, "cost_usd": 0.5}
    assert day.limit_usd == 5.0


async def test_the_days_are_those_asked_for(service: aiohttp.ClientSession, async_store: Store) -> None:
    await spend(async_store, "acme")
    today: date = (await asked(service, "GET", USAGE.format("acme")))[1]["last_day"]
    for params, days in (
        ({"from": today}, 1),
        ({"to": today}, 1),
        ({"from": today, "to": today}, 1),
        ({"to": "2001-01-01"}, 0),
        ({"from": "2001-01-01", "to": "2999-01-01"}, 1),
    ):
        status, body = await asked(service, "GET", USAGE.format("acme"), params=params)
        assert (status, len(body["days"])) == (200, days), params


@pytest.mark.parametrize(
    "params", [{"from": "2026-01-02", "to": "2026-01-01"}, {"from": "soon"}, {"first": "2026-01-01"}, {"days": "3"}]
)
async def test_days_that_are_none_are_refused(service: aiohttp.ClientSession, params: dict[str, str]) -> None:
    status, body = await asked(service, "GET", USAGE.format("acme"), params=params)
    assert (status, Problem.model_validate(body).code) == (422, "invalid_message")


async def test_what_is_cached_is_void_once_answered(service: aiohttp.ClientSession, async_store: Store) -> None:
    before = await async_store.run(configuration.edition("acme", "desk"))
    status, body = await asked(service, "POST", INVALIDATE, json={"tenant_id": "acme", "agent_id": "desk"})
    assert (status, body) == (200, {"tenant_id": "acme", "agent_id": "desk", "status": "invalidated"})
    after = await async_store.run(configuration.edition("acme", "desk"))
    assert (after.agent != before.agent, after.tenant == before.tenant) == (True, True)
    assert (await asked(service, "POST", INVALIDATE, json={"tenant_id": "acme"}))[0] == 200
    whole = await async_store.run(configuration.edition("acme", "desk"))
    assert (whole.agent != after.agent, whole.tenant != after.tenant) == (True, True)


@pytest.mark.parametrize("body", [{}, {"tenant_id": "A"}, {"tenant_id": "acme", "agent_id": "*"}, {"tenant": "acme"}])
async def test_an_invalidation_of_nothing_is_refused(service: aiohttp.ClientSession, body: dict[str, str]) -> None:
    status, told = await asked(service, "POST", INVALIDATE, json=body)
    assert (status, Problem.model_validate(told).code) == (422, "invalid_message")


async def ask(caller: aiohttp.ClientSession, operation: Operation, tenant_id: str) -> tuple[int, dict[str, Any]]:
    body = None if operation.body is None else {"tenant_id": tenant_id}
    return await asked(caller, operation.method, operation.path.format(tenant_id=tenant_id), json=body)


def named(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


@pytest.mark.parametrize("operation", INTERNAL, ids=named)
@pytest.mark.parametrize("role", ["caller", "operator"])
async def test_a_callers_key_gets_nowhere(
    operation: Operation, role: Role, shim: ShimProcess, keys_file: Path, async_store: Store
) -> None:
    key = api_keys.create(keys_file, tenant_id=f"only-{role}-{operation.method.lower()}", role=role)
    async with session(shim, key) as caller:
        await known(caller)
        answer = await ask(caller, operation, "acme")
    assert (answer[0], Problem.model_validate(answer[1]).code) == (403, "forbidden")
    assert await async_store.redis.dbsize() == 0


@pytest.mark.parametrize("operation", INTERNAL, ids=named)
async def test_another_tenant_looks_exactly_like_a_missing_one(
    operation: Operation, service: aiohttp.ClientSession, async_store: Store
) -> None:
    await spend(async_store, "globex")
    before = await async_store.redis.dbsize()
    foreign = await ask(service, operation, "globex")
    assert (foreign[0], Problem.model_validate(foreign[1]).code) == (403, "forbidden")
    assert foreign == await ask(service, operation, "nobody")
    assert await async_store.redis.dbsize() == before


async def test_a_tenant_of_the_services_own_asks_about_every_tenant(
    tmp_path: Path, redis_url: str, keys_file: Path, service_key: dict[str, str], async_store: Store
) -> None:
    await spend(async_store, "globex")
    settings = {"redis_url": redis_url, "api_keys_file": keys_file, "api_service_tenant": "platform"}
    with shim_process(tmp_path, **settings) as shim:
        async with session(shim, service_key["platform"]) as platform:
            status, body = await asked(platform, "GET", USAGE.format("globex"))
            assert (status, body["total"]["used"]["calls"]) == (200, 2)
            assert (await asked(platform, "POST", INVALIDATE, json={"tenant_id": "globex"}))[0] == 200
            assert (await asked(platform, "GET", USAGE.format("Glob%20ex")))[0] == 422
        async with session(shim, service_key["acme"]) as other:
            assert (await asked(other, "GET", USAGE.format("globex")))[0] == 403
