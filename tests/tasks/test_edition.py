"""What is cached of a configuration is void once somebody has said so: the next prompt is made of what is current."""

from __future__ import annotations

from typing import Any

from agent_exec import configuration, keys
from agent_exec.store import BlockingStore
from tasks.journal import Journal
from tasks.neighbours.http import Neighbour
from tasks.neighbours.management import AgentManagement
from tasks.neighbours.registry import ToolRegistry
from tasks.neighbours.tools import Tools
from tasks.prompt import prepare
from tasks.shares import Shares
from tests.tasks.conftest import Bench, Played, saying

TENANT = {"tenant_id": "acme", "budget": {"usd_per_day": 5.0}}
LISTED = {"tools": [{"name": "clock"}]}


def agent(model: str) -> dict[str, Any]:
    return {"agent_id": "desk", "provider": "openai", "model": model, "tools": ["clock"]}


async def model_of_the_next(bench: Bench) -> str:
    await bench.accept()
    await bench.run("prompt", prepare)
    return Journal(await bench.record()).fixed.config.model


async def test_a_voided_configuration_is_asked_for_anew_and_once(
    bench: Bench, neighbour: Neighbour, played: Played
) -> None:
    bench.others |= {
        "management": AgentManagement(neighbour, ttl_s=60),
        "tools": Tools(ToolRegistry(neighbour, ttl_s=60), {}),
        "shares": Shares(bench.store, keep_s=60),
    }
    played.answers = [saying(TENANT), saying(agent("m1")), saying(LISTED)]
    assert [await model_of_the_next(bench) for _ in range(2)] == ["m1", "m1"]
    assert len(played.requests) == 3
    assert await bench.store.redis.get(keys.spending_limit("acme")) == b"5000000", "the budget is passed on"

    await bench.store.run(configuration.invalidate("acme", "other"))
    await bench.store.run(configuration.invalidate("globex"))
    assert await model_of_the_next(bench) == "m1", "what concerns others changes nothing"
    assert len(played.requests) == 3

    played.answers = [saying(agent("m2")), saying(LISTED)]
    await bench.store.run(configuration.invalidate("acme", "desk"))
    assert [await model_of_the_next(bench) for _ in range(2)] == ["m2", "m2"]
    assert len(played.requests) == 5, "the agent and its tools; the tenant is as it was"

    played.answers = [saying(TENANT), saying(agent("m3")), saying(LISTED)]
    await bench.store.run(configuration.invalidate("acme"))
    assert [await model_of_the_next(bench) for _ in range(2)] == ["m3", "m3"]
    assert len(played.requests) == 8


def test_a_mark_goes_by_itself_no_sooner_than_a_cache(store: BlockingStore) -> None:
    store.run(configuration.invalidate("acme", "desk"))
    assert 86_390 < store.redis.ttl(keys.configuration("acme")) <= configuration.KEEP_S == 86_400
