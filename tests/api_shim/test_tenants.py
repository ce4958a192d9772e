"""Nobody gets in without a key, and nobody sees another tenant: every operation of the table, so none is forgotten."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent_exec import api_keys
from agent_exec.contract.approval import Approval
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.ledger import ledger
from agent_exec.store import Store
from api_shim.app import OPERATIONS
from api_shim.internal import Invalidation
from api_shim.operation import Operation
from api_shim.problem import Problem
from tests.api_shim.conftest import Submitted, session
from tests.api_shim.played_worker import until
from tests.api_shim.shim_process import ShimProcess, shim_process

#: A body for each model that an operation takes; a new one fails here until it has one.
BODIES: dict[type, dict[str, Any]] = {
    ExecutionRequest: {"agent_id": "desk", "query": "hello"},
    Invalidation: {"tenant_id": "acme"},
    Approval: {"approved": True},
}
GUARDED = [operation for operation in OPERATIONS if operation.role is not None]
OF_ONE_EXECUTION = [operation for operation in GUARDED if "{execution_id}" in operation.path]


def named(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


async def ask(
    caller: aiohttp.ClientSession, operation: Operation, execution_id: str, **options: Any
) -> tuple[int, dict[str, str], Any]:
    """Send one request; return status, headers and the body's JSON."""
    path = operation.path.format(execution_id=execution_id, tenant_id="acme", tool_call_id="call_1")
    if operation.method == "WEBSOCKET":
        options["headers"] = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            **options.get("headers", {}),
        }
    body = None if operation.body is None else BODIES[operation.body]
    method = "GET" if operation.method == "WEBSOCKET" else operation.method
    async with caller.request(method, path, json=body, **options) as response:
        return response.status, dict(response.headers), await response.json(content_type=None)


@pytest.mark.parametrize("operation", OF_ONE_EXECUTION, ids=named)
async def test_anothers_execution_looks_exactly_like_a_missing_one(
    operation: Operation, globex: aiohttp.ClientSession, execution: Submitted, async_store: Store
) -> None:
    before = await async_store.run(ledger.look("acme", execution.id))
    foreign = await ask(globex, operation, execution.id, headers={"X-Request-Id": "same"})
    missing = await ask(globex, operation, str(uuid.uuid4()), headers={"X-Request-Id": "same"})
    shapeless = await ask(globex, operation, "no-uuid", headers={"X-Request-Id": "same"})
    for status, headers, body in (foreign, missing, shapeless):
        headers.pop("Date", None)
        assert status == 404
        assert Problem.model_validate(body).code == "not_found"
    assert foreign == missing == shapeless
    assert await async_store.run(ledger.look("acme", execution.id)) == before


async def test_a_list_holds_the_callers_executions_alone(
    acme: aiohttp.ClientSession, globex: aiohttp.ClientSession, execution: Submitted
) -> None:
    for caller, expected in ((acme, [execution.id]), (globex, [])):
        async with caller.get("/v1/executions") as response:
            assert [one["execution_id"] for one in (await response.json())["executions"]] == expected


@pytest.mark.parametrize("operation", GUARDED, ids=named)
@pytest.mark.parametrize(
    "credential",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic YWNtZTpzZWNyZXQ=",
        "Bearer nonsense",
        "Bearer aek_abcdefgh_" + "x" * 43,
        "Bearer aek_abcdefgh_" + "x" * 5_000,
        "Bearer {own}x",
        "bearer {other id}",
        "Bearer {own} {own}",
    ],
)
async def test_nobody_gets_in_without_a_key(
    operation: Operation, credential: str | None, shim: ShimProcess, api_key: dict[str, str], async_store: Store
) -> None:
    own = api_key["acme"]
    headers = {}
    if credential is not None:
        strange = own.replace(own[4:8], "zzzz", 1)
        headers["Authorization"] = credential.replace("{own}", own).replace("{other id}", strange)
    async with aiohttp.ClientSession(shim.url) as stranger:
        status, answered, body = await ask(stranger, operation, str(uuid.uuid4()), headers=headers)
    assert status == 401
    assert answered["WWW-Authenticate"].startswith("Bearer")
    assert Problem.model_validate(body).code == "unauthorized"
    assert own not in shim.output
    assert await async_store.redis.dbsize() == 0


async def test_a_key_made_or_revoked_counts_within_five_seconds(shim: ShimProcess, keys_file: Path) -> None:
    key = api_keys.create(keys_file, tenant_id="newcomer")

    async def status() -> int:
        async with session(shim, key) as caller, caller.get("/v1/executions") as response:
            return response.status

    async def is_let_in() -> bool:
        return await status() == 200

    async def is_refused() -> bool:
        return await status() == 401

    await until(is_let_in, within_s=5)
    api_keys.revoke(keys_file, key.split("_")[1])
    await until(is_refused, within_s=5)


async def test_a_shim_without_a_file_of_keys_lets_nobody_in_and_says_how_to_make_one(
    tmp_path: Path, redis_url: str
) -> None:
    with shim_process(tmp_path, redis_url=redis_url) as shim:
        async with aiohttp.ClientSession(shim.url) as stranger:
            async with stranger.get("/v1/executions") as response:
                assert response.status == 401
            async with stranger.get("/health/ready") as response:
                assert response.status == 200
        assert "agent-exec keys create --tenant T" in shim.output
