"""An agent that asks another one, as processes: seen by all who watch, through a killed worker, a cancel and a deadline."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from agent_exec import AgentExecClient, EventName, ExecutionRequest, FinalResponse, Frame
from agent_exec.spending.usage import usage
from agent_exec.store import BlockingStore
from sandbox.app import sandbox_environment
from tests.processes import answers, free_port, wait_until
from tests.service.conftest import TOKEN, Service, streaming

DATABASE = 4
#: The desk's answer to it takes a quarter of a minute at the slow model's pace.
LONG = "Ask the desk to tell me what you can do for me, in 400 words."
#: A cancel reaches a running step with its worker's next heartbeat, and its socket is closed at once.
CLOSED_WITHIN_S = 1.0
#: Nothing is begun later than this after it.
OVER_WITHIN_S = 2.0
#: What a machine that does other things beside may add.
SLACK_S = 1.5


@dataclass
class Stage:
    """A service of its own, with a model that takes its time, and a worker that may be killed."""

    service: Service
    client: AgentExecClient

    def long(self, query: str = LONG, **asked: Any) -> tuple[str, str]:
        """Submit work for the concierge, and wait until the desk speaks; return both executions."""
        request = {"agent_id": "concierge", "query": f"{query} My reference is {word()}.", **asked}
        execution_id = self.client.submit(ExecutionRequest.model_validate(request), tenant_id="acme")
        [child] = wait_until(lambda: self.client.get("acme", execution_id).awaiting_executions, what="the child")
        wait_until(lambda: streaming(self.client, child), what="the child to speak", within_s=30)
        return execution_id, child

    def calls(self, execution_id: str) -> list[dict[str, Any]]:
        """Return the calls that the provider got for it and for its child, which was asked the same."""
        frames = list(frames_so_far(self.client, execution_id))
        asked: Any = next(frame.data["arguments"] for frame in frames if frame.event == EventName.TOOL_CALL_REQUESTED)
        return [call for call in self.service.calls() if call["question"] == asked["query"][:200]]


@pytest.fixture(scope="module")
def stage(service: Service) -> Iterator[Stage]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    apart = service.apart(DATABASE, **sandbox_environment(url, TOKEN), AGENT_EXEC_LEASE_S="2")
    apart.neighbours_url = url
    try:
        apart.start(
            "asked-neighbours", "-m", "sandbox", "neighbours", "--port", str(port), "--pace", "2", "--token", TOKEN
        )
        apart.worker("asking")
        wait_until(lambda: answers(f"{url}/health"), what=url, within_s=30)
        with AgentExecClient(apart.env["AGENT_EXEC_REDIS_URL"]) as client:
            yield Stage(apart, client)
    finally:
        apart.stop()
        with redis.Redis.from_url(apart.env["AGENT_EXEC_REDIS_URL"]) as database:
            database.flushdb()


def word() -> str:
    return "".join(letter for letter in uuid.uuid4().hex if letter.isalpha())


def frames_so_far(client: AgentExecClient, execution_id: str) -> Iterator[Frame]:
    last = client.get("acme", execution_id).last_sequence
    for frame in client.events("acme", execution_id):
        yield frame
        if frame.sequence >= last:
            return


def run(client: AgentExecClient, query: str, *, agent_id: str = "concierge", **asked: Any) -> FinalResponse:
    request = ExecutionRequest.model_validate(
        {"agent_id": agent_id, "query": f"{query} My reference is {word()}.", **asked}
    )
    return client.wait("acme", client.submit(request, tenant_id="acme"), timeout_s=30)


def code(final: FinalResponse) -> str | None:
    return final.error.code if final.error is not None else None


def test_an_agent_asks_another_one_and_whoever_watches_can_follow(service: Service) -> None:
    with service.client() as client:
        final = run(client, "Ask the desk what 12 * 12 is.", metadata={"session_id": "s1", "global_task_id": "g1"})
        assert (final.status, final.output.text) == ("completed", "Desk says: 12 * 12 is 144.")
        [call] = final.tool_calls
        child = call.child_execution_id
        assert child is not None
        frames = list(client.events("acme", final.execution_id))
        told = [frame for frame in frames if "child_execution_id" in frame.data]
        assert [frame.event for frame in told] == [EventName.TOOL_CALL_REQUESTED, EventName.TOOL_CALL_COMPLETED]
        assert {frame.data["child_execution_id"] for frame in told} == {child}
        below = client.wait("acme", child, timeout_s=5)
        assert (below.parent_execution_id, below.agent_id, below.output.text) == (
            final.execution_id,
            "desk",
            "12 * 12 is 144.",
        )
        assert (below.metadata.session_id, below.metadata.global_task_id) == ("s1", None)
        assert final.usage.total_tokens > below.usage.total_tokens > 0
        wait_until(lambda: service.frames(child)[-1:] and service.frames(child)[-1]["event"] == EventName.COMPLETED)
        with service.http("acme") as http:
            view = http.get(f"/v1/executions/{child}").json()
            assert view["parent_execution_id"] == final.execution_id
        with service.http("globex") as http:
            assert http.get(f"/v1/executions/{child}").status_code == 404


def test_the_tenants_day_counts_what_a_child_used_once(service: Service) -> None:
    store = BlockingStore(service.env["AGENT_EXEC_REDIS_URL"])
    try:
        before = store.run(usage("acme")).total.used
        with service.client() as client:
            final = run(client, "Ask the desk what 12 * 12 is.")
        after = store.run(usage("acme")).total.used
    finally:
        store.close()
    used = (after.prompt_tokens - before.prompt_tokens, after.completion_tokens - before.completion_tokens)
    assert used == (final.usage.prompt_tokens, final.usage.completion_tokens)


def test_several_agents_are_asked_at_once_and_keep_to_one_budget(service: Service) -> None:
    agents = [{"agent_id": "desk", "name": f"ask_{name}"} for name in ("anna", "bert", "carl")]
    asked = {"agents": agents, "limits": {"max_total_tokens": 4_000, "max_turns": 9, "max_tool_calls": 9}}
    with service.client() as client:
        final = run(client, "Ask anna, bert and carl what 6 * 7 is.", agent_config=asked)
        assert len({call.child_execution_id for call in final.tool_calls}) == 3
        children = [client.wait("acme", str(call.child_execution_id), timeout_s=5) for call in final.tool_calls]
    assert final.status == "completed", final.error
    assert all(child.parent_execution_id == final.execution_id for child in children)
    assert sum(child.usage.total_tokens for child in children) < final.usage.total_tokens <= 4_000
    with service.client() as client:
        asked["limits"]["max_total_tokens"] = 700  # type: ignore[index]
        short = run(client, "Ask anna, bert and carl what 6 * 7 is.", agent_config=asked)
    assert {call.error.code for call in short.tool_calls if call.error is not None} == {"limit_exceeded"}
    assert short.usage.total_tokens <= 700


def test_a_cycle_ends_with_an_error_that_the_model_reads(service: Service) -> None:
    with service.neighbours() as http:
        for agent_id, other in (("pingo", "pongo"), ("pongo", "pingo")):
            agent = {"tenant_id": "acme", "agent_id": agent_id, "agents": [{"agent_id": other}]}
            http.post("/management/_agents", json=agent).raise_for_status()
    with service.client() as client:
        final = run(client, "Let pingo and pongo find out.", agent_id="pingo")
        [asked] = final.tool_calls
        below = client.wait("acme", str(asked.child_execution_id), timeout_s=5)
    [refused] = below.tool_calls
    assert refused.error is not None
    assert (refused.error.code, refused.child_execution_id) == ("agent_cycle", None)
    assert (final.status, below.status) == ("completed", "completed")


def test_an_agent_that_is_not_there_is_an_error_that_the_model_reads(service: Service) -> None:
    with service.client() as client:
        final = run(client, "Ask nobody about it.", agent_config={"agents": [{"agent_id": "nobody"}]})
    [call] = final.tool_calls
    assert call.error is not None
    assert (final.status, call.error.code) == ("completed", "agent_not_found")


def test_a_killed_worker_in_the_middle_makes_no_second_child(stage: Stage) -> None:
    execution_id, child = stage.long(LONG.replace("400", "60"))
    stage.service.processes["asking"].kill()
    stage.service.worker("asking")
    below = stage.client.wait("acme", child, timeout_s=50)
    final = stage.client.wait("acme", execution_id, timeout_s=40)
    assert (below.status, final.status) == ("completed", "completed")
    assert [call.child_execution_id for call in final.tool_calls] == [child]
    frames = list(stage.client.events("acme", child))
    assert [frame.event for frame in frames].count(EventName.STEP_RESTARTED) == 1
    assert final.usage.total_tokens > below.usage.total_tokens


def test_a_cancel_of_the_parent_ends_the_child_and_closes_its_socket(stage: Stage) -> None:
    execution_id, child = stage.long()
    stage.client.cancel("acme", execution_id)
    answered_ms = time.time() * 1000
    for one in (execution_id, child):
        assert code(stage.client.wait("acme", one, timeout_s=OVER_WITHIN_S + SLACK_S)) == "cancelled"
    calls = wait_until(
        lambda: all(call["ended_at_ms"] for call in stage.calls(execution_id)) and stage.calls(execution_id),
        what="the sockets to close",
    )
    assert max(call["ended_at_ms"] for call in calls) - answered_ms < (CLOSED_WITHIN_S + SLACK_S) * 1000
    assert [call["outcome"] for call in calls].count("disconnected") == 1
    wait_until(lambda: time.time() * 1000 > answered_ms + (OVER_WITHIN_S + SLACK_S) * 1000, what="what must not come")
    assert len(stage.calls(execution_id)) == len(calls), "none was begun after it"


def test_a_cancel_of_the_child_alone_is_an_error_that_the_model_reads(stage: Stage) -> None:
    execution_id, child = stage.long()
    stage.client.cancel("acme", child)
    final = stage.client.wait("acme", execution_id, timeout_s=30)
    [call] = final.tool_calls
    assert call.error is not None
    assert (final.status, call.error.code, call.child_execution_id) == ("completed", "cancelled", child)


def test_a_child_ends_at_the_deadline_of_its_parent(stage: Stage) -> None:
    execution_id, child = stage.long(deadline_s=7.0)
    ends = [stage.client.wait("acme", one, timeout_s=20) for one in (execution_id, child)]
    assert code(ends[0]) == "timed_out"
    assert code(ends[1]) in ("timed_out", "cancelled")
    apart_s = (ends[1].finished_at - ends[0].finished_at).total_seconds()
    assert apart_s < 0.5 + SLACK_S, "no longer than a heartbeat"
