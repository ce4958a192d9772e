"""Workers in containers of the project's own image: taken out of service in every way, and nothing is lost or doubled."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from pytest_celery import CeleryTestSetup

from agent_exec import AgentExecClient, ExecutionRequest
from tests.containers.nodes import Neighbours
from tests.containers.watching import QUESTION, held_by, restarts, streaming, whole
from tests.processes import wait_until


def test_an_execution_of_a_plain_celery_app_runs_through_the_image(
    celery_setup: CeleryTestSetup, client: AgentExecClient, neighbours: Neighbours
) -> None:
    execution_id = str(uuid.uuid4())
    message = {
        "task_id": str(uuid.uuid4()),
        "tenant_id": "acme",
        "agent_id": "desk",
        "execution_id": execution_id,
        "created_at": datetime.now(UTC).isoformat(),
        "status": "pending",
        "type": "agent_execution",
        "priority": 5,
        "metadata": {"conversation_id": None, "session_id": None, "workflow_id": None, "source": "orchestrator"},
        "payload": {"query": "What is 17 * 23?", "agent_config": {}, "context": {}, "tool_calls": []},
    }
    celery_setup.app.send_task(
        "agent_exec.execute", kwargs={"message": message}, task_id=execution_id, queue="agent_execution"
    )
    final = celery_setup.app.AsyncResult(execution_id).get(timeout=60)
    assert (final["status"], final["turns"]) == ("completed", 2)
    assert "391" in final["output"]["text"]
    assert [call["name"] for call in final["tool_calls"]] == ["calculator"]
    assert len(neighbours.calls()) == 2
    whole(client, execution_id)


def test_what_a_killed_container_was_doing_is_finished_by_the_other(
    celery_setup: CeleryTestSetup, client: AgentExecClient, neighbours: Neighbours
) -> None:
    execution_id = client.submit(ExecutionRequest(agent_id="desk", query=QUESTION), tenant_id="acme")
    wait_until(lambda: streaming(client, execution_id), within_s=30, what="tokens")
    victim, heir = held_by(celery_setup, execution_id)
    victim.kill()
    assert client.wait("acme", execution_id, timeout_s=60).status == "completed"
    frames = whole(client, execution_id)
    assert restarts(frames) == 1
    assert len(neighbours.calls()) == 2, "the call that was in flight, and its repetition"
    assert heir.container.status == "running"
    assert f"{execution_id}.completion.1" in heir.logs()


def test_a_container_that_is_stopped_finishes_its_stream(
    celery_setup: CeleryTestSetup, client: AgentExecClient, neighbours: Neighbours
) -> None:
    execution_id = client.submit(ExecutionRequest(agent_id="desk", query=QUESTION), tenant_id="acme")
    wait_until(lambda: streaming(client, execution_id), within_s=30, what="tokens")
    leaving, _ = held_by(celery_setup, execution_id)
    assert leaving.stop() == 0, leaving.logs()[-4_000:]
    assert client.get("acme", execution_id).status == "completed"
    assert restarts(whole(client, execution_id)) == 0
    assert len(neighbours.calls()) == 1


def test_a_worker_is_nobody_and_holds_nothing_that_is_not_for_running(celery_setup: CeleryTestSetup) -> None:
    worker = celery_setup.worker
    assert worker.run("id", "-u") == "10001"
    assert worker.run("celery", "-A", "tasks", "inspect", "ping", "--destination", worker.hostname()).count("pong") == 1
    shipped = worker.run("ls", "/app").split()
    assert not {"tests", "benchmarks", "chaos", "docs", "Makefile", "Dockerfile"} & set(shipped)
    installed = worker.run(
        "python", "-c", "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    )
    assert not {"pytest", "mypy", "ruff", "pip", "hatchling"} & set(installed.split())
