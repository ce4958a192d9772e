"""Flower, as operators see it: the steps by name, as a chain, and nothing of what they are about."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from celery import Celery

from tests.processes import answers, free_port, wait_until
from tests.service.conftest import Service
from tests.service.test_follow_one_execution import standard_message

LOGIN = ("operator", "secret")


@pytest.fixture
def flower(service: Service) -> Iterator[httpx.Client]:
    """Flower, connected and logged in."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ("--address=127.0.0.1", f"--port={port}", f"--basic-auth={':'.join(LOGIN)}")
    process = service.start("flower", "-m", "celery", "-A", "tasks", "flower", *arguments)
    wait_until(lambda: answers(url), what="flower")
    with httpx.Client(base_url=url, auth=LOGIN, timeout=10, trust_env=False) as client:
        wait_until(lambda: client.get("/api/workers").json(), what="flower to see the worker", within_s=30)
        yield client
    assert process.stop() == 0


def test_an_execution_is_a_chain_of_named_steps_and_shows_no_prompt(service: Service, flower: httpx.Client) -> None:
    """S25."""
    celery = Celery(broker=service.redis.url, backend=service.redis.url, set_as_current=False)
    message = standard_message("acme", "desk", "CANARY: what is 17 * 23, and what time is it in Tokyo?")
    execution_id = message["execution_id"]
    celery.send_task("agent_exec.execute", kwargs={"message": message}, task_id=execution_id, queue="agent_execution")
    assert celery.AsyncResult(execution_id).get(timeout=30)["status"] == "completed"
    celery.close()

    def seen() -> dict[str, dict[str, object]]:
        tasks: dict[str, dict[str, object]] = flower.get("/api/tasks").json()
        return {task_id: task for task_id, task in tasks.items() if task_id.startswith(execution_id)}

    wait_until(
        lambda: len(seen()) == 6 and all(task["state"] == "SUCCESS" for task in seen().values()), what="six tasks"
    )
    by_step = {task_id.removeprefix(execution_id): task for task_id, task in seen().items()}
    assert {step: task["name"] for step, task in by_step.items()} == {
        "": "agent_exec.execute",
        ".prompt.0": "agent_exec.prompt",
        ".completion.1.0": "agent_exec.completion",
        ".tool_call.1.0.0": "agent_exec.tool_call",
        ".tool_call.1.1.0": "agent_exec.tool_call",
        ".completion.2.0": "agent_exec.completion",
    }
    parents = {
        ".completion.1.0": [".prompt.0"],
        ".tool_call.1.0.0": [".completion.1.0"],
        ".tool_call.1.1.0": [".completion.1.0"],
        ".completion.2.0": [".tool_call.1.0.0", ".tool_call.1.1.0"],
    }
    for step, possible in parents.items():
        details = flower.get(f"/api/task/info/{execution_id}{step}").json()
        assert details["parent_id"] in [execution_id + parent for parent in possible]
        assert details["root_id"] == execution_id
    shown = str(seen()) + flower.get("/tasks").text + flower.get("/api/workers", params={"refresh": "1"}).text
    assert "CANARY" not in shown
    assert "is 391" not in shown, "no result either"


def test_flower_lets_nobody_in_without_the_password(flower: httpx.Client) -> None:
    """S25."""
    for path in ("/", "/api/tasks", "/api/workers"):
        assert httpx.get(str(flower.base_url) + path, trust_env=False).status_code == 401
