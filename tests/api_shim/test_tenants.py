"""Nobody gets in without a key, and nobody sees another tenant: every operation of the table, so none is forgotten."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from agent_exec import api_keys
from agent_exec.contract.approval import Approval
from agent_exec.contract.batch import BatchRequest
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.schedule import ScheduleRequest
from agent_exec.store import Store
from api_shim.app import OPERATIONS
from api_shim.chat_wire import ChatRequest
from api_shim.internal import Invalidation
from api_shim.operation import OWNED_IDS, Operation
from tests.api_shim.conftest import Submitted, session
from tests.api_shim.played_worker import until
from tests.api_shim.shim_process import ShimProcess, shim_process

#: A body for each model that an operation takes; a new one fails here until it has one.
BODIES: dict[type, dict[str, Any]] = {
    ExecutionRequest: {"agent_id": "desk", "query": "hello"},
    Invalidation: {"tenant_id": "acme"},
    Approval: {"approved": True},
    BatchRequest: {"requests": [{"agent_id": "desk", "query": "hello"}]},
    ScheduleRequest: {"cron": "0 7 * * *", "request": {"agent_id": "desk", "query": "hello"}},
    ChatRequest: {"model": "desk", "messages": []},  # with one it would wait for the answer
}
#: What a path may name that is a tenant's.
OWNED = set(OWNED_IDS)
#: What else it may name.
NAMED = {"tool_call_id": "call_1", "tenant_id": "acme"}
GUARDED = [operation for operation in OPERATIONS if operation.role is not None]


def parts_of(operation: Operation) -> set[str]:
    """Return what an operation's path names."""
    return set(re.findall(r"\{(\w+)\}", operation.path))


OF_ONE_THING = [operation for operation in GUARDED if parts_of(operation) & OWNED]


def stored(database: Any) -> dict[bytes, bytes]:
    """Return every key and its content."""
    return {key: database.dump(key) for key in database.scan_iter(count=1_000)}


def code_of(operation: Operation, body: Any) -> str:
    """Return the code that an operation was refused with, in the form in which it tells of that."""
    refusal = operation.form.body.model_validate(body).model_dump()
    return str(refusal.get("code") or refusal["error"]["code"])


def named(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


async def ask(
    caller: aiohttp.ClientSession, operation: Operation, owned: str | dict[str, str], **options: Any
) -> tuple[int, dict[str, str], Any]:
    """Send one request; return status, headers and the body, which is text where it is not JSON."""
    path = operation.path.format(**NAMED, **(dict.fromkeys(OWNED, owned) if isinstance(owned, str) else owned))
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
        body = await (response.json(content_type=None) if "json" in response.content_type else response.text())
        return response.status, dict(response.headers), body


def test_whatever_a_path_names_is_known_here() -> None:
    """A new kind of thing has to be made by `things`, below, so that somebody else can ask for it."""
    assert {part for operation in OPERATIONS for part in parts_of(operation)} == OWNED | set(NAMED)


@pytest.fixture
async def things(acme: aiohttp.ClientSession, async_store: Store) -> dict[str, str]:
    """Ids of what acme has: an execution that has ended, the callback that tells of it, a batch, a schedule."""
    ids = {}
    for path, name, body in (("batches", "batch_id", BatchRequest), ("schedules", "schedule_id", ScheduleRequest)):
        async with acme.post(f"/v1/{path}", json=BODIES[body]) as response:
            ids[name] = (await response.json())[name]
    request = {"agent_id": "desk", "query": "hello", "callback_url": "https://receiver.example/hook"}
    async with acme.post("/v1/executions", json=request) as response:
        assert response.status == 202, await response.text()
        execution = Submitted(async_store, await response.json())
    await execution.finish()
    return {**ids, "execution_id": execution.id, "callback_id": execution.id}


@pytest.mark.parametrize("operation", OF_ONE_THING, ids=named)
async def test_anothers_thing_looks_exactly_like_a_missing_one(
    operation: Operation,
    acme: aiohttp.ClientSession,
    globex: aiohttp.ClientSession,
    things: dict[str, str],
    redis_url: str,
) -> None:
    """S01, for every operation of the table."""
    with redis.Redis.from_url(redis_url) as database:
        before = stored(database)
        foreign = await ask(globex, operation, things, headers={"X-Request-Id": "same"})
        missing = await ask(globex, operation, str(uuid.uuid4()), headers={"X-Request-Id": "same"})
        shapeless = await ask(globex, operation, "no-uuid", headers={"X-Request-Id": "same"})
        for status, headers, body in (foreign, missing, shapeless):
            headers.pop("Date", None)
            assert status == 404
            assert code_of(operation, body) == "not_found"
        assert foreign == missing == shapeless
        assert stored(database) == before
    if operation.method != "WEBSOCKET":
        status, _, _ = await ask(acme, operation, things)
        assert status in (*operation.answers, 409), "whose it is finds it"


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
    """S01."""
    own = api_key["acme"]
    headers = {}
    if credential is not None:
        strange = own.replace(own[4:8], "zzzz", 1)
        headers["Authorization"] = credential.replace("{own}", own).replace("{other id}", strange)
    async with aiohttp.ClientSession(shim.url) as stranger:
        status, answered, body = await ask(stranger, operation, str(uuid.uuid4()), headers=headers)
    assert status == 401
    assert answered["WWW-Authenticate"].startswith("Bearer")
    assert code_of(operation, body) == "unauthorized"
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
