"""The whole way of a callback: asked for at a door, sent when the execution has ended, verified by its receiver."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from celery import Celery

from sandbox.receiver import DEFAULT_SECRET
from tests.processes import wait_until
from tests.service.conftest import Service


def came(service: Service, path: str) -> list[dict[str, Any]]:
    with service.neighbours() as http:
        found: list[dict[str, Any]] = http.get("/receiver/callbacks").raise_for_status().json()["callbacks"]
    return [one for one in found if one["path"] == path]


@pytest.mark.parametrize("ends", ["completed", "cancelled"])
def test_the_end_of_an_execution_is_told_to_who_asked_for_it(service: Service, ends: str) -> None:
    path = uuid.uuid4().hex
    body = {
        "agent_id": "desk",
        "query": "What is 6 * 7?",
        "callback_url": f"{service.neighbours_url}/receiver/hooks/{path}",
    }
    if ends == "cancelled":
        body |= {"query": "Please wait 5 s.", "agent_config": {"tools": ["slow"]}}
    with service.http("acme") as http:
        execution_id = http.post("/v1/executions", json=body).raise_for_status().json()["execution_id"]
        assert not came(service, path)
        if ends == "cancelled":
            http.post(f"/v1/executions/{execution_id}/cancel").raise_for_status()
        [arrival] = wait_until(lambda: came(service, path), what="the callback", within_s=30)
        assert (arrival["webhook_id"], arrival["fault"]) == (execution_id, None)
        final = http.get(f"/v1/executions/{execution_id}").json()["response"]
        assert final["status"] == ("completed" if ends == "completed" else "failed")
        wait_until(lambda: http.get(f"/v1/callbacks/{execution_id}").json()["state"] == "delivered", what="its note")
    assert path not in json.dumps(service.frames(execution_id)), "its URL comes back nowhere"
    outputs = "".join(process.output for process in service.processes.values())
    assert DEFAULT_SECRET not in outputs.replace(f"export AGENT_EXEC_CALLBACK_SECRET={DEFAULT_SECRET}", "")


def test_a_message_with_a_callback_that_may_not_be_is_refused_like_any_other(service: Service) -> None:
    url = service.env["AGENT_EXEC_REDIS_URL"]
    app = Celery(broker=url, backend=url, set_as_current=False)
    message = {
        "task_id": "t",
        "tenant_id": "acme",
        "agent_id": "desk",
        "execution_id": str(uuid.uuid4()),
        "created_at": "2026-01-01T00:00:00Z",
        "metadata": {"callback_url": "http://169.254.169.254/s3cret"},
        "payload": {"query": "?"},
    }
    app.send_task("agent_exec.execute", kwargs={"message": message}, queue="agent_execution")
    with pytest.raises(Exception, match="invalid_callback_url") as refused:
        app.AsyncResult(str(message["execution_id"])).get(timeout=20)
    assert "s3cret" not in str(refused.value)
    app.close()
