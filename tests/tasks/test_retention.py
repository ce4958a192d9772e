"""How long an execution stays readable after its end: by its tenant's plan, with all that tells of it."""

from __future__ import annotations

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
