"""A tool call that waits for a person: parked through a kill of the worker, resolved by each door, expired, cancelled."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from websockets.sync.client import connect

from agent_exec import AgentExecClient, EventName, ExecutionRequest, FinalResponse
from sandbox.app import sandbox_environment
from tests.processes import ROOT, answers, free_port, wait_until
from tests.service.conftest import TOKEN, Service

DATABASE = 15
QUESTION = "Publish a note to everybody saying the office is closed."
COMMAND = (sys.executable, "-c", "from agent_exec.cli import main; main()")


@dataclass
class Stage:
    """A service of its own, whose worker may be killed."""

    service: Service
    client: AgentExecClient

    def parked(self, **limits: float) -> tuple[str, str]:
        """Submit work whose tool needs approval; return the execution and the call, once that waits."""
        asked = {"agent_id": "editor", "query": QUESTION, **limits}
        execution_id = self.client.submit(ExecutionRequest.model_validate(asked), tenant_id="acme")
        [call] = wait_until(
            lambda: self.client.get("acme", execution_id).awaiting_approval, what="the call to wait", within_s=30
        )
        return execution_id, call

    def ends(self, execution_id: str) -> FinalResponse:
        """Wait for the end; the approval was asked for once."""
        final = self.client.wait("acme", execution_id, timeout_s=30)
        names = [frame.event for frame in self.client.events("acme", execution_id)]
        assert names.count(EventName.TOOL_APPROVAL_REQUESTED) == 1
        return final

    def runs(self, execution_id: str) -> int:
        """Count the requests that the registry got for an execution."""
        with self.service.neighbours() as http:
            calls = http.get("/registry/journal").raise_for_status().json()["calls"]
        return sum(call["execution_id"] == execution_id for call in calls)

    def worker(self, **env: str) -> None:
        """Start the worker anew."""
        self.service.processes["approving"].stop()
        self.service.worker("approving", **env)


@pytest.fixture(scope="module")
def stage(service: Service) -> Iterator[Stage]:
    neighbours, shim = free_port(), free_port()
    url = f"http://127.0.0.1:{neighbours}"
    apart = service.apart(DATABASE, **sandbox_environment(url, TOKEN), AGENT_EXEC_LEASE_S="2")
    apart.neighbours_url, apart.shim_url = url, f"http://127.0.0.1:{shim}"
    try:
        sandbox = ("-m", "sandbox", "neighbours", "--port", str(neighbours), "--pace", "0", "--token", TOKEN)
        apart.start("approval-neighbours", *sandbox)
        apart.start("approval-shim", "-m", "uvicorn", "api_shim.app:app", "--port", str(shim))
        apart.start("approval-notifier", "-m", "notifier")
        apart.worker("approving")
        for one in (f"{url}/health", f"{apart.shim_url}/health/ready"):
            wait_until(lambda one=one: answers(one), what=one, within_s=30)  # type: ignore[misc]
        with AgentExecClient(apart.env["AGENT_EXEC_REDIS_URL"]) as client:
            yield Stage(apart, client)
    finally:
        apart.stop()
        with redis.Redis.from_url(apart.env["AGENT_EXEC_REDIS_URL"]) as database:
            database.flushdb()


def by_http(stage: Stage, execution_id: str, call: str, *, approved: bool) -> str | None:
    with stage.service.http("acme") as http:
        body = {"approved": approved, "reason": "Because."}
        answer = http.post(f"/v1/executions/{execution_id}/tool-calls/{call}/approval", json=body).json()
    return str(answer["code"]) if "code" in answer else None


def by_socket(stage: Stage, execution_id: str, call: str, *, approved: bool) -> str | None:
    url = f"{stage.service.shim_url}/v1/executions/{execution_id}/ws?after=1".replace("http", "ws", 1)
    key = {"Authorization": f"Bearer {stage.service.keys['acme']}"}
    with connect(url, additional_headers=key, proxy=None) as socket:
        socket.send(json.dumps(_command(execution_id, call, approved=approved)))
        while (frame := json.loads(socket.recv(timeout=10)))["event"] != "command_result":
            pass
    return _said(frame)


def by_orchestrator(stage: Stage, execution_id: str, call: str, *, approved: bool) -> str | None:
    with stage.service.neighbours() as http:
        wait_until(lambda: http.get("/orchestrator/connections").json()["open"], what="the notifier")
        command = _command(execution_id, call, approved=approved)
        before = http.post("/orchestrator/_send", json=command).raise_for_status().json()["results_before"]
        told = http.get("/orchestrator/command-results", params={"after": before, "wait_s": 10}).json()
    return _said(told["results"][0]["result"])


def by_command(stage: Stage, execution_id: str, call: str, *, approved: bool) -> str | None:
    arguments = ("approve" if approved else "reject", execution_id, call, "--tenant", "acme", "--reason", "Because.")
    env = {"PATH": "", **stage.service.env}
    ended = subprocess.run([*COMMAND, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    return ended.stderr.split(":")[1].strip() if ended.returncode else None


def _command(execution_id: str, call: str, *, approved: bool) -> dict[str, Any]:
    ids = {"execution_id": execution_id, "tool_call_id": call}
    return {"command": "resolve_approval", **ids, "approved": approved, "reason": "Because."}


def _said(frame: dict[str, Any]) -> str | None:
    assert (frame["command"], frame["ok"]) == ("resolve_approval", "code" not in frame)
    return frame.get("code")


DOORS = [by_http, by_socket, by_orchestrator, by_command]
Door = Callable[..., str | None]


def test_a_parked_call_outlives_its_worker_and_runs_once_when_it_is_approved(stage: Stage) -> None:
    execution_id, call = stage.parked()
    stage.service.processes["approving"].kill()
    assert stage.runs(execution_id) == 0
    assert by_http(stage, execution_id, call, approved=True) is None
    stage.worker()
    final = stage.ends(execution_id)
    assert (final.status, final.output.text) == ("completed", "The note to everybody is published.")
    assert stage.runs(execution_id) == 1


@pytest.mark.parametrize("door", DOORS)
def test_each_door_approves_and_rejects_and_the_first_decision_stands(stage: Stage, door: Door) -> None:
    approved, rejected = stage.parked(), stage.parked()
    assert door(stage, approved[0], "call_unknown", approved=True) == "not_awaiting_approval"
    assert (door(stage, *approved, approved=True), door(stage, *rejected, approved=False)) == (None, None)
    for ids, decision in ((approved, True), (rejected, False)):
        again = [by_http(stage, *ids, approved=yes) for yes in (decision, not decision)]
        assert again == [None, "already_resolved"]
    assert stage.ends(approved[0]).tool_calls[0].result == {"delivered_to": "everybody", "characters": 20}
    error = stage.ends(rejected[0]).tool_calls[0].error
    assert error is not None
    assert (error.code, "Because." in error.message) == ("approval_rejected", True)
    assert (stage.runs(approved[0]), stage.runs(rejected[0])) == (1, 0)


def test_a_cancel_ends_a_parked_call_at_once_and_a_deadline_ends_it_too(stage: Stage) -> None:
    cancelled, _ = stage.parked()
    late, call = stage.parked(deadline_s=4.0)
    stage.client.cancel("acme", cancelled)
    codes = [final.error and final.error.code for final in (stage.ends(cancelled), stage.ends(late))]
    assert codes == ["cancelled", "timed_out"]
    assert by_http(stage, late, call, approved=True) == "not_awaiting_approval"
    assert (stage.runs(cancelled), stage.runs(late)) == (0, 0)


def test_an_approval_that_nobody_gives_expires_and_the_model_is_told(stage: Stage) -> None:
    stage.worker(AGENT_EXEC_APPROVAL_TIMEOUT_S="1.5")
    execution_id, call = stage.parked()
    final = stage.ends(execution_id)
    error = final.tool_calls[0].error
    assert error is not None
    assert (final.status, error.code) == ("completed", "approval_expired")
    assert by_http(stage, execution_id, call, approved=True) == "not_awaiting_approval"
    assert stage.runs(execution_id) == 0
    stage.worker()
