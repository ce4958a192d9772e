"""A cancel, by every door and at every moment: what was answered is what happens, and soon."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from celery import Celery
from websockets.sync.client import connect

from agent_exec import AgentExecClient, EventName, ExecutionRequest, FinalResponse
from agent_exec.errors import NotFound, StorageUnavailable
from agent_exec.ledger.ledger import AlreadyOver, CancelRequested
from sandbox.app import sandbox_environment
from tests.processes import ROOT, answers, free_port, wait_until
from tests.service.conftest import TOKEN, Service
from tests.service.played_registry import PlayedRegistry

DATABASE = 11
AGENTS = {"acme": "desk", "globex": "researcher"}
#: An answer of half a minute: whatever is tried meanwhile, it has not come to its end by itself.
QUESTION = "Tell me what you can do for me, in 400 words."
#: A cancel reaches a running step with its worker's next heartbeat, and its socket is closed at once.
CLOSED_WITHIN_S = 1.0
#: Nothing is begun later than this after it, and where no step runs it is over by then.
OVER_WITHIN_S = 2.0
#: What a machine that does other things beside may add.
SLACK_S = 1.5
COMMAND = (sys.executable, "-c", "from agent_exec.cli import main; main()")


@dataclass
class Stage:
    """A service of its own, with a model that takes seconds and tools that never answer."""

    service: Service
    client: AgentExecClient
    registry: PlayedRegistry
    questions: dict[str, str] = field(default_factory=dict)

    def submit(self, query: str = QUESTION, *, tenant_id: str = "acme", tools: Sequence[str] = ()) -> str:
        """Submit work."""
        reference = "".join(letter for letter in uuid.uuid4().hex if letter.isalpha())
        question = f"{query} My reference is {reference}."
        asked = {"agent_id": AGENTS[tenant_id], "query": question, "agent_config": {"tools": list(tools)}}
        request = ExecutionRequest.model_validate(asked)
        execution_id = self.client.submit(request, tenant_id=tenant_id)
        self.questions[execution_id] = question
        return execution_id

    def streaming(self) -> str:
        """Submit work, and wait until its answer comes."""
        execution_id = self.submit()
        wait_until(lambda: self.has(execution_id, EventName.TOKEN), what="tokens", within_s=30)
        return execution_id

    def has(self, execution_id: str, name: EventName) -> bool:
        """Say whether an execution of acme has such an event yet."""
        last = self.client.get("acme", execution_id).last_sequence
        for frame in self.client.events("acme", execution_id):
            if frame.event == name or frame.sequence >= last:
                return frame.event == name
        return False

    def ends(self, execution_id: str, *, tenant_id: str = "acme", within_s: float = OVER_WITHIN_S) -> FinalResponse:
        """Wait for the end: the one that was asked for, the only one, and the last event."""
        final = self.client.wait(tenant_id, execution_id, timeout_s=within_s + SLACK_S)
        assert final.error is not None, final
        assert (final.status, final.error.code, final.error.retryable) == ("failed", "cancelled", False)
        frames = list(self.client.events(tenant_id, execution_id))
        assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
        assert [frame.event for frame in frames if frame.event in ENDS] == [EventName.FAILED]
        assert frames[-1].event == EventName.FAILED
        return final

    def calls(self, execution_id: str) -> list[dict[str, Any]]:
        """Return the calls that the provider got for an execution."""
        with self.service.neighbours() as http:
            calls: list[dict[str, Any]] = http.get("/openai/journal").raise_for_status().json()["calls"]
        return [call for call in calls if call["question"] == self.questions[execution_id]]

    def cap(self, tenant_id: str, steps: int) -> None:
        """Let a tenant have so many steps in flight."""
        with self.service.neighbours() as http:
            tenant = {"tenant_id": tenant_id, "plan": "pro", "weight": 1.0, "max_in_flight": steps}
            http.post("/management/_tenants", json=tenant).raise_for_status()


ENDS = (EventName.COMPLETED, EventName.FAILED)


@pytest.fixture(scope="module")
def empty_stage(service: Service) -> Iterator[Stage]:
    """The processes, but for the worker."""
    neighbours, shim = free_port(), free_port()
    with PlayedRegistry() as registry:
        environment = sandbox_environment(f"http://127.0.0.1:{neighbours}", TOKEN)
        environment |= {"AGENT_EXEC_TOOL_REGISTRY_URL": registry.url, "AGENT_EXEC_CONFIG_TTL_S": "0"}
        environment |= {"AGENT_EXEC_SHUTDOWN_GRACE_S": "1"}
        apart = service.apart(DATABASE, **environment)
        apart.neighbours_url, apart.shim_url = f"http://127.0.0.1:{neighbours}", f"http://127.0.0.1:{shim}"
        sandbox = ("-m", "sandbox", "neighbours", "--port", str(neighbours), "--pace", "4", "--token", TOKEN)
        apart.start("cancel-neighbours", *sandbox)
        apart.start("cancel-shim", "-m", "uvicorn", "api_shim.app:app", "--port", str(shim))
        apart.start("cancel-notifier", "-m", "notifier")
        for url in (f"{apart.neighbours_url}/health", f"{apart.shim_url}/health/ready"):
            wait_until(lambda url=url: answers(url), what=url, within_s=30)  # type: ignore[misc]
        with AgentExecClient(apart.env["AGENT_EXEC_REDIS_URL"]) as client:
            yield Stage(apart, client, registry)
        apart.stop()
    with redis.Redis.from_url(apart.env["AGENT_EXEC_REDIS_URL"]) as database:
        database.flushdb()


@pytest.fixture(scope="module")
def working_stage(empty_stage: Stage) -> Stage:
    """With a worker that stays."""
    empty_stage.service.worker("cancel-worker")
    return empty_stage


@pytest.fixture
def stage(working_stage: Stage) -> Iterator[Stage]:
    """With a registry that is there, and a tenant that may do as much as it likes."""
    working_stage.registry.away = False
    working_stage.cap("acme", 200)
    yield working_stage
    working_stage.registry.away = False


@pytest.fixture
def idle_stage(service: Service) -> Iterator[Stage]:
    """A database that no worker serves, with the fast sandbox of all."""
    apart = service.apart(DATABASE + 1, AGENT_EXEC_LEASE_S="2")
    with AgentExecClient(apart.env["AGENT_EXEC_REDIS_URL"]) as client, PlayedRegistry() as registry:
        yield Stage(apart, client, registry)
        apart.stop()
    with redis.Redis.from_url(apart.env["AGENT_EXEC_REDIS_URL"]) as database:
        database.flushdb()


def by_client(stage: Stage, execution_id: str, *, tenant_id: str = "acme") -> str:
    try:
        answer = stage.client.cancel(tenant_id, execution_id)
    except NotFound as error:
        return error.code
    return "cancel_requested" if isinstance(answer, CancelRequested) else answer.status


def by_http(stage: Stage, execution_id: str, *, tenant_id: str = "acme") -> str:
    with stage.service.http(tenant_id) as http:
        answer = http.post(f"/v1/executions/{execution_id}/cancel")
    told = answer.json()
    assert answer.status_code == (404 if "code" in told else 202)
    return str(told.get("code") or told["status"])


def by_socket(stage: Stage, execution_id: str, *, tenant_id: str = "acme") -> str:
    """Over the execution's socket, or that of another one of the tenant's where this is not its own."""
    own = execution_id if tenant_id == "acme" else stage.submit(tenant_id=tenant_id)
    url = f"{stage.service.shim_url}/v1/executions/{own}/ws?after=1".replace("http", "ws", 1)
    key = {"Authorization": f"Bearer {stage.service.keys[tenant_id]}"}
    with connect(url, additional_headers=key, proxy=None) as socket:
        socket.send(json.dumps({"command": "cancel_execution", "execution_id": execution_id}))
        while (frame := json.loads(socket.recv(timeout=10)))["event"] != "command_result":
            pass
    return said(frame)


def by_orchestrator(stage: Stage, execution_id: str, *, tenant_id: str = "acme") -> str:
    command = {"command": "cancel_execution", "execution_id": execution_id, "tenant_id": tenant_id}
    with stage.service.neighbours() as http:
        before = http.post("/orchestrator/_send", json=command).raise_for_status().json()["results_before"]
        told = http.get("/orchestrator/command-results", params={"after": before, "wait_s": 10}).json()
    return said(told["results"][0]["result"])


def said(frame: dict[str, Any]) -> str:
    """Both sockets say the same things with the same fields."""
    assert frame["service"] == "agent-execution"
    assert frame["command"] in ("cancel_execution", None)
    assert frame["ok"] is ("code" not in frame)
    if frame.get("code") == "already_over":
        assert frame["message"] == f"It had ended before, as {frame['status']}."
    return str(frame.get("status") or frame["code"])


def by_command(stage: Stage, execution_id: str, *, tenant_id: str = "acme") -> str:
    ended = command(stage, "cancel", execution_id, "--tenant", tenant_id, "--json")
    if ended.returncode:
        assert ended.returncode == 1
        return ended.stderr.split(":")[1].strip()
    return str(json.loads(ended.stdout)["status"])


def command(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "", **stage.service.env}
    return subprocess.run([*COMMAND, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, check=False)


DOORS = [by_client, by_http, by_socket, by_orchestrator, by_command]
Door = Callable[..., str]


def connected(stage: Stage) -> None:
    with stage.service.neighbours() as http:
        wait_until(lambda: http.get("/orchestrator/connections").json()["open"], what="the notifier's connection")


@pytest.mark.parametrize("door", DOORS)
def test_a_cancel_closes_the_providers_socket_whatever_door_it_came_by(stage: Stage, door: Door) -> None:
    connected(stage)
    execution_id = stage.streaming()
    assert door(stage, execution_id) == "cancel_requested"
    answered_ms = time.time() * 1000
    final = stage.ends(execution_id, within_s=CLOSED_WITHIN_S)
    told = "".join(
        str(f.data["token"]) for f in stage.client.events("acme", execution_id) if f.event == EventName.TOKEN
    )
    assert told
    assert final.output.text == told, "what had been said is kept"
    wait_until(lambda: stage.calls(execution_id)[0]["outcome"] != "open", what="the socket to close")
    [call] = stage.calls(execution_id)
    assert call["outcome"] == "disconnected"
    assert call["ended_at_ms"] - answered_ms < (CLOSED_WITHIN_S + SLACK_S) * 1000
    assert by_http(stage, execution_id) == "failed", "a second one says that it is over"


@pytest.mark.parametrize("door", DOORS)
def test_another_tenants_execution_is_as_good_as_missing_to_a_cancel(stage: Stage, door: Door) -> None:
    connected(stage)
    execution_id = stage.submit()
    assert door(stage, execution_id, tenant_id="globex") == "not_found"
    assert not stage.client.get("acme", execution_id).cancel_requested
    assert stage.client.cancel("acme", execution_id) == CancelRequested()


def test_the_celery_result_of_a_cancelled_execution_raises(stage: Stage) -> None:
    execution_id = stage.submit()
    assert [by_client(stage, execution_id) for _ in range(2)] == ["cancel_requested"] * 2
    final = stage.ends(execution_id)
    url = stage.service.env["AGENT_EXEC_REDIS_URL"]
    app = Celery(broker=url, backend=url, set_as_current=False)
    with pytest.raises(Exception, match="cancelled: ") as raised:
        app.AsyncResult(execution_id).get(timeout=5)
    code, _, response = raised.value.args
    assert (code, FinalResponse.model_validate_json(json.dumps(response))) == ("cancelled", final)
    app.close()


def test_what_is_queued_behind_a_cap_is_cancelled_while_the_cap_is_full(stage: Stage) -> None:
    stage.cap("acme", 1)
    long, queued = stage.streaming(), stage.submit()
    assert by_client(stage, queued) == "cancel_requested"
    stage.ends(queued)
    assert stage.client.get("acme", long).response is None, "the one that fills the cap still runs"
    assert stage.calls(queued) == []
    assert by_client(stage, long) == "cancel_requested"
    stage.ends(long)


def test_what_waits_for_a_retry_is_cancelled_before_it_is_due(stage: Stage) -> None:
    stage.registry.away = True
    execution_id = stage.submit(tools=["slow"])
    wait_until(lambda: stage.has(execution_id, EventName.PROGRESS), what="the wait")
    stage.registry.away = False
    assert by_http(stage, execution_id) == "cancel_requested"
    stage.ends(execution_id)
    assert stage.calls(execution_id) == []


@pytest.mark.parametrize("cap", [200, 2])
def test_tools_that_run_are_let_go_and_none_is_begun(stage: Stage, cap: int) -> None:
    """With a cap of two, the third call waits for its turn: it must not come."""
    stage.cap("acme", cap)
    query = "Please wait 21 s, then wait 22 s, and wait 23 s."
    execution_id = stage.submit(query, tools=["slow"])
    running = min(cap, 3)
    wait_until(lambda: len(stage.registry.calls_of(execution_id)) == running, what="the tools", within_s=30)
    assert by_client(stage, execution_id) == "cancel_requested"
    answered_s = time.time()
    final = stage.ends(execution_id)
    wait_until(
        lambda: all(call.closed_s for call in stage.registry.calls_of(execution_id)), what="the sockets to close"
    )
    wait_until(lambda: time.time() > answered_s + OVER_WITHIN_S + SLACK_S, what="the time in which none may begin")
    calls = stage.registry.calls_of(execution_id)
    assert len(calls) == running, "no call came after it"
    assert max(call.closed_s or 0 for call in calls) - answered_s < CLOSED_WITHIN_S + SLACK_S
    assert len(stage.calls(execution_id)) == 1
    assert (final.turns, final.usage.total_tokens > 0) == (1, True), "the turn before is paid for, and counted"
    assert final.tool_calls == []


def test_a_cancel_without_any_worker_is_done_when_one_comes(idle_stage: Stage) -> None:
    ids = [idle_stage.submit() for _ in range(3)]
    assert [by_client(idle_stage, execution_id) for execution_id in ids] == ["cancel_requested"] * 3
    assert idle_stage.client.get("acme", ids[0]).status == "pending"
    idle_stage.service.worker("late")
    for execution_id in ids:
        idle_stage.ends(execution_id)
        assert idle_stage.calls(execution_id) == []


def test_a_cancel_after_the_worker_was_killed_ends_with_its_lease(stage: Stage, idle_stage: Stage) -> None:
    slow = stage.service.env["OPENAI_BASE_URL"]
    lost = idle_stage.service.worker("lost", OPENAI_BASE_URL=slow)
    execution_id = idle_stage.streaming()
    lost.kill()
    assert by_client(idle_stage, execution_id) == "cancel_requested"
    idle_stage.service.worker("heir", OPENAI_BASE_URL=slow)
    final = idle_stage.ends(execution_id, within_s=2 + OVER_WITHIN_S)
    assert final.turns == 0
    stage.questions |= idle_stage.questions
    assert len(stage.calls(execution_id)) == 1, "the one that died with its worker"


def test_a_cancel_while_redis_is_away_is_refused_and_may_be_said_again(stage: Stage) -> None:
    execution_id = stage.streaming()
    stage.service.redis.kill()
    try:
        with stage.service.http("acme") as http:
            refused = http.post(f"/v1/executions/{execution_id}/cancel")
        assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
        assert int(refused.headers["Retry-After"]) > 0
        with pytest.raises(StorageUnavailable):
            stage.client.cancel("acme", execution_id)
        ended = command(stage, "cancel", execution_id, "--tenant", "acme")
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "storage_unavailable: Redis does not answer" in ended.stderr
    finally:
        stage.service.redis.restart()
    assert by_http(stage, execution_id) == "cancel_requested"
    stage.ends(execution_id)


def test_a_cancel_that_races_with_the_end_is_told_which_came_first(service: Service) -> None:
    """Two hundred of them, each cancelled at a moment between its beginning and a little after its end (F56)."""
    dice = random.Random(4)
    with service.client() as client:
        work = ExecutionRequest(agent_id="desk", query="What is 17 * 23?")

        def race(_: int) -> tuple[str, str]:
            execution_id = client.submit(work, tenant_id="acme")
            heard = dice.randint(1, 12)
            for frame in client.events("acme", execution_id):
                if frame.sequence >= heard:
                    break
            answer = client.cancel("acme", execution_id)
            final = client.wait("acme", execution_id, timeout_s=20)
            frames = list(client.events("acme", execution_id))
            assert [frame.event for frame in frames if frame.event in ENDS] == [frames[-1].event]
            assert client.get("acme", execution_id).status == final.status
            outcome = final.error.code if final.error is not None else final.status
            return answer.status if isinstance(answer, AlreadyOver) else "cancelled", outcome

        with ThreadPoolExecutor(8) as racers:
            ends = Counter(racers.map(race, range(200)))
    assert set(ends) == {("cancelled", "cancelled"), ("completed", "completed")}, ends
    assert min(ends.values()) >= 10, f"no race: {ends}"
