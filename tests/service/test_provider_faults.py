"""Providers that go wrong under a running service: what is waited for, and what another model answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import redis

from agent_exec import AgentExecClient, EventName, ExecutionRequest
from agent_exec.contract.event import Frame
from agent_exec.contract.execution import FinalResponse
from agent_exec.spending.usage import usage
from agent_exec.store import BlockingStore
from sandbox.app import sandbox_environment
from tests.processes import answers, free_port, wait_until
from tests.service.conftest import TOKEN, Service, streaming

pytestmark = pytest.mark.timeout(180)

PRICED = {"provider": "openai", "model": "gpt-4o-mini", "fallbacks": []}
WITH_FALLBACK = {**PRICED, "fallbacks": [{"provider": "groq", "model": "llama-3.3-70b-versatile"}]}
LONG = "Write 60 words about work."


@pytest.fixture
def faulty(service: Service) -> Iterator[Service]:
    """Workers on a database of their own, and a sandbox of their own whose models fail as they are told."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    apart = service.apart(11, **sandbox_environment(url, TOKEN), AGENT_EXEC_LEASE_S="2")
    apart.neighbours_url = url
    apart.start(
        "faulty-neighbours", "-m", "sandbox", "neighbours", "--port", str(port), "--pace", "0.2", "--token", TOKEN
    )
    try:
        wait_until(lambda: answers(f"{url}/health"), what="the faulty sandbox")
        yield apart
    finally:
        apart.stop()
        with redis.Redis.from_url(apart.env["AGENT_EXEC_REDIS_URL"]) as database:
            database.flushdb()


def order(at: Service, *faults: dict[str, Any], provider: str = "openai") -> None:
    """Have a provider's next answers go wrong."""
    with at.neighbours() as client:
        client.put(f"/{provider}/faults", json=faults).raise_for_status()


def calls(at: Service, provider: str = "openai") -> list[dict[str, Any]]:
    """Return the calls that a provider got."""
    with at.neighbours() as client:
        found: list[dict[str, Any]] = client.get(f"/{provider}/journal").raise_for_status().json()["calls"]
        return found


def submit(client: AgentExecClient, query: str = "hello", **config: Any) -> str:
    """Submit one to the desk's agent with another configuration."""
    request = ExecutionRequest.model_validate(
        {"agent_id": "desk", "query": query, "agent_config": {**PRICED, **config}}
    )
    return client.submit(request, tenant_id="acme")


def code_of(final: FinalResponse) -> str | None:
    """Return the code of its error, if it has one."""
    return final.error.code if final.error is not None else None


def valid_text(frames: list[Frame]) -> str:
    """Return the tokens that no restart has made void, joined."""
    restarts = [frame.sequence for frame in frames if frame.event == EventName.STEP_RESTARTED]
    return "".join(
        str(frame.data["token"])
        for frame in frames
        if frame.event == EventName.TOKEN and frame.sequence > max(restarts, default=0)
    )


def test_f31_a_429_is_waited_for_without_a_slot_and_as_long_as_it_says(faulty: Service) -> None:
    faulty.worker("narrow", AGENT_EXEC_WORKER_CONCURRENCY="1")
    order(faulty, {"status": 429, "retry_after_s": 3})
    with faulty.client() as client:
        limited = submit(client)
        wait_until(lambda: len(calls(faulty)) == 1, what="the refusal")
        began = time.monotonic()
        other = submit(client, provider="groq", model="llama-3.3-70b-versatile")
        assert client.wait("acme", other, timeout_s=20).status == "completed"
        assert time.monotonic() - began < 2.5, "the one slot was free"
        assert client.get("acme", limited).status == "processing"
        assert client.wait("acme", limited, timeout_s=30).status == "completed"
    refused, answered = calls(faulty)
    assert answered["at_ms"] - refused["at_ms"] >= 3_000


def test_f31_a_429_for_ever_ends_the_execution(faulty: Service) -> None:
    faulty.worker("limited", AGENT_EXEC_MAX_RETRIES="2")
    order(faulty, {"status": 429, "retry_after_s": 1, "times": None})
    with faulty.client() as client:
        final = client.wait("acme", submit(client), timeout_s=50)
    assert code_of(final) == "provider_rate_limited"
    assert final.error is not None
    assert final.error.retryable
    times = [call["at_ms"] for call in calls(faulty)]
    assert len(times) == 3
    assert all(after - before >= 1_000 for before, after in pairwise(times))


@pytest.mark.parametrize("status", [500, 502, 503])
def test_f32_trouble_that_passes_is_tried_again(faulty: Service, status: int) -> None:
    faulty.worker("patient")
    order(faulty, {"status": status, "times": 3})
    with faulty.client() as client:
        execution_id = submit(client)
        final = client.wait("acme", execution_id, timeout_s=40)
        frames = list(client.events("acme", execution_id))
    assert final.status == "completed"
    assert final.turns == 1
    assert len(calls(faulty)) == 4
    waits = [frame.data["detail"] for frame in frames if frame.data.get("stage") == "waiting"]
    assert [wait["code"] for wait in waits] == ["provider_overloaded"] * 3  # type: ignore[index,call-overload]


def test_f34_a_stream_that_breaks_is_void_and_another_provider_answers(faulty: Service) -> None:
    """The first attempts of both kinds have streamed tokens; what counts is what the last one says, alone."""
    faulty.worker("falling-back", AGENT_EXEC_TOKEN_FLUSH_MS="0")
    order(faulty, {"cut_after_tokens": 5, "times": None})
    with faulty.client() as client:
        execution_id = submit(client, LONG, **WITH_FALLBACK)
        final = client.wait("acme", execution_id, timeout_s=40)
        frames = list(client.events("acme", execution_id))
    assert (final.status, final.provider, final.model) == ("completed", "groq", "llama-3.3-70b-versatile")
    names = Counter(frame.event for frame in frames)
    assert names[EventName.STEP_RESTARTED] == len(calls(faulty)) == 2
    assert valid_text(frames) == final.output.text
    assert len(final.output.text.split()) >= 60
    [change] = [frame.data["detail"] for frame in frames if "from" in dict(frame.data.get("detail") or {})]  # type: ignore[call-overload]
    assert change == {"from": "openai/gpt-4o-mini", "to": "groq/llama-3.3-70b-versatile", "code": "provider_protocol"}
    with BlockingStoreOf(faulty) as store:
        spent = store.run(usage("acme")).total
    assert (spent.used.calls, spent.waste.calls, spent.reserved.calls) == (3, 2, 0)
    assert spent.waste.prompt_tokens > 0
    assert 0 < spent.waste.completion_tokens < 20
    assert 0 < spent.waste.cost_usd < spent.used.cost_usd
    assert final.usage.total_tokens == calls_tokens(spent.used) - calls_tokens(spent.waste)


def test_f38_a_refused_key_is_not_asked_with_again_and_shows_nowhere(faulty: Service) -> None:
    worker = faulty.worker("refused")
    order(faulty, {"status": 401, "times": None})
    with faulty.client() as client:
        execution_id = submit(client)
        final = client.wait("acme", execution_id, timeout_s=20)
        frames = list(client.events("acme", execution_id))
    assert code_of(final) == "provider_auth"
    assert len(calls(faulty)) == 1
    key = faulty.env["OPENAI_API_KEY"]
    assert key not in worker.output
    assert all(key not in frame.model_dump_json() for frame in frames)


def test_the_fleet_stops_asking_a_provider_that_is_down_and_finds_it_again(faulty: Service) -> None:
    for name in ("one", "two"):
        faulty.worker(name)
    order(faulty, {"status": 503, "times": None})
    with faulty.client() as client:
        hit = [submit(client, **WITH_FALLBACK) for _ in range(12)]
        finals = [client.wait("acme", one, timeout_s=40) for one in hit]
        assert {(final.status, final.provider) for final in finals} == {("completed", "groq")}
        asked = len(calls(faulty))
        assert asked < 2 * len(hit), "each would have asked twice by itself"
        for _ in range(3):
            assert client.wait("acme", submit(client, **WITH_FALLBACK), timeout_s=20).provider == "groq"
        order(faulty)

        def healed() -> bool:
            return client.wait("acme", submit(client, **WITH_FALLBACK), timeout_s=20).provider == "openai"

        wait_until(healed, what="the breaker to close", within_s=40)


def test_a_budget_refuses_before_the_call(faulty: Service) -> None:
    with faulty.neighbours() as neighbours:
        tenant = {
            "tenant_id": "acme",
            "plan": "pro",
            "weight": 1.0,
            "max_in_flight": 0,
            "budget": {"usd_per_day": 1e-06},
        }
        auth = {"Authorization": f"Bearer {TOKEN}"}
        neighbours.post("/management/_tenants", json=tenant, headers=auth).raise_for_status()
    faulty.worker("poor")
    with faulty.client() as client:
        final = client.wait("acme", submit(client, **WITH_FALLBACK), timeout_s=20)
    assert code_of(final) == "budget_exceeded"
    assert calls(faulty) == calls(faulty, "groq") == []


def test_what_a_killed_worker_had_reserved_comes_free(faulty: Service) -> None:
    victim = faulty.worker("victim")
    with faulty.client() as client, BlockingStoreOf(faulty) as store:
        execution_id = submit(client, "Write 400 words about work.", max_output_tokens=2_000)
        wait_until(lambda: streaming(client, execution_id), what="tokens")
        assert store.run(usage("acme")).total.reserved.calls == 1
        victim.kill()
        faulty.worker("heir")
        assert client.wait("acme", execution_id, timeout_s=50).status == "completed"
        spent = store.run(usage("acme")).total
    assert (spent.reserved.calls, spent.reserved.cost_usd) == (0, 0)
    assert (spent.used.calls, spent.lapsed.calls) == (1, 1)


def test_a_cancelled_call_is_counted_as_waste(faulty: Service) -> None:
    faulty.worker("cancelled")
    with faulty.client() as client, BlockingStoreOf(faulty) as store:
        execution_id = submit(client, "Write 400 words about work.", max_output_tokens=2_000)
        wait_until(lambda: streaming(client, execution_id), what="tokens")
        client.cancel("acme", execution_id)
        final = client.wait("acme", execution_id, timeout_s=20)
        spent = store.run(usage("acme")).total
    assert code_of(final) == "cancelled"
    assert spent.waste == spent.used
    assert (spent.used.calls, spent.reserved.calls) == (1, 0)
    assert final.usage.total_tokens == calls_tokens(spent.used) > 0


def calls_tokens(used: Any) -> int:
    """Return all tokens of what was used."""
    return int(used.prompt_tokens + used.completion_tokens)


class BlockingStoreOf:
    """A store on a service's database, for a `with`."""

    def __init__(self, at: Service) -> None:
        self._store = BlockingStore(at.env["AGENT_EXEC_REDIS_URL"])

    def __enter__(self) -> BlockingStore:
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()
