"""How long an execution stays readable after its end: by its tenant's plan, with all that tells of it."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from agent_exec import keys
from agent_exec.contract.agent import Tenant
from agent_exec.errors import AgentNotFound
from tasks.step import Done
from tests.tasks.conftest import Bench, raising, returning
from tests.tasks.test_step import ANSWERED, PREPARED, SNAPSHOT

BY_PLAN: dict[str, Any] = {"retention_s": 5_000, "retention_by_plan_s": {"free": 3_600, "enterprise": 500_000}}


async def left_s(bench: Bench) -> set[int]:
    """Return how long each key of the execution is kept, to the nearest hundred seconds."""
    kept = [
        keys.execution("acme", bench.execution_id),
        keys.streaming("acme", bench.execution_id),
        keys.responses("acme", bench.execution_id),
        keys.celery_result(bench.execution_id),
        keys.tenant_of(bench.execution_id),
    ]
    return {round(await bench.store.redis.ttl(key), -2) for key in kept}


@pytest.mark.parametrize(("plan", "expected"), [("free", 3_600), ("pro", 5_000), ("enterprise", 500_000)])
async def test_what_is_left_of_an_execution_goes_at_once_and_when_its_plan_says(
    bench: Bench, plan: Any, expected: int
) -> None:
    """S28."""
    bench.settings = bench.settings.model_copy(update=BY_PLAN)
    fixed = SNAPSHOT.model_copy(update={"tenant": Tenant(tenant_id="acme", plan=plan)})
    prepared: Done = dataclasses.replace(PREPARED, result=fixed.model_dump_json(), snapshot=fixed)
    await bench.run("prompt", returning(prepared))
    await bench.run("completion.1", returning(ANSWERED))
    assert await left_s(bench) == {expected}


async def test_who_ends_before_the_plan_is_known_is_kept_as_by_default(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update=BY_PLAN)
    await bench.run("prompt", raising(AgentNotFound("no such agent")))
    assert await left_s(bench) == {5_000}


#: How each kind of value is read whole.
WHOLE: dict[bytes, list[Any]] = {
    b"string": ["GET"],
    b"hash": ["HGETALL"],
    b"set": ["SMEMBERS"],
    b"list": ["LRANGE", 0, -1],
    b"zset": ["ZRANGE", 0, -1],
    b"stream": ["XRANGE", "-", "+"],
}


async def is_held(bench: Bench, word: bytes) -> bool:
    """Return whether any value of the whole database holds a word."""
    redis: Any = bench.store.redis
    for key in [key async for key in redis.scan_iter()]:
        kind = await redis.type(key)
        if kind == b"none":
            continue  # it has expired since
        command, *rest = WHOLE[kind]
        if word in repr(await redis.execute_command(command, key, *rest)).encode():
            return True
    return False


async def test_once_it_has_expired_no_key_holds_a_word_of_it(bench: Bench) -> None:
    """S28: what was said goes by itself, as no call deletes it sooner; its id stays in lists until they are read."""
    bench.settings = bench.settings.model_copy(update={"retention_s": 1})
    await bench.accept(query="CANARY, what is 6 * 7?")
    assert await is_held(bench, b"CANARY")
    await bench.run("prompt", raising(AgentNotFound("no such agent")))
    async with asyncio.timeout(10):
        while await is_held(bench, b"CANARY"):
            await asyncio.sleep(0.05)
