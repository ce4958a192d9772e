"""Follow one execution through the whole service. Read this first: it is the tutorial.

Everything here is real: Redis, a Celery worker, the notifier, the shim, the SDKs, and a sandbox that speaks the wires of the
four neighbours. Only the model is scripted.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery

from agent_exec import EventName, ExecutionRequest, Frame
from agent_exec.errors import ExecutionFailed, NotFound
from tests.processes import wait_until
from tests.service.conftest import Service

QUESTION = "What is 17 * 23, and what time is it in Tokyo?"


def test_an_execution_submitted_over_http_is_followed_to_its_end(service: Service) -> None:
    # 1. Accept. The shim stores the execution and answers 202; the tenant comes from the key.
    with service.http("acme") as http:
        answer = http.post("/v1/executions", json={"agent_id": "desk", "query": QUESTION})
        assert answer.status_code == 202
        execution_id = answer.json()["execution_id"]
        assert answer.headers["Location"] == f"/v1/executions/{execution_id}"

        # 2. Follow. Each event comes as it happens; `id:` is the sequence, from 1 and without a gap.
        frames = read_sse(http, f"/v1/executions/{execution_id}/events")
        assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
        names = [frame.event for frame in frames]
        assert names[0] == EventName.STARTED

        # 3. The model asked for two tools, which ran in parallel, and then answered from their results.
        asked = [frame.data["name"] for frame in frames if frame.event == EventName.TOOL_CALL_REQUESTED]
        assert sorted(str(name) for name in asked) == ["calculator", "clock"]
        assert names.count(EventName.TOOL_CALL_COMPLETED) == 2
        tokens = [frame.data for frame in frames if frame.event == EventName.TOKEN]
        assert tokens[-1]["is_final"] is True

        # 4. Finish. One terminal event, the last; its text is the tokens joined.
        assert names[-1] == EventName.COMPLETED
        final = http.get(f"/v1/executions/{execution_id}").json()["response"]
        assert final["output"]["text"] == "".join(str(token["token"]) for token in tokens)
        assert "391" in final["output"]["text"]
        assert (final["turns"], final["usage"]["total_tokens"] > 0) == (2, True)

        # 5. A reader that was cut off resumes after the last event it saw.
        resumed = read_sse(http, f"/v1/executions/{execution_id}/events", last_event_id=3)
        assert [frame.sequence for frame in resumed] == [frame.sequence for frame in frames[3:]]

    # 6. The orchestrator got the same frames over its WebSocket.
    received = wait_until(
        lambda: len(got := service.frames(execution_id)) == len(frames) and got, what="all frames at the orchestrator"
    )
    assert [Frame.model_validate_json(json.dumps(frame)) for frame in received] == frames


def test_an_execution_enqueued_by_a_plain_celery_app(service: Service) -> None:
    # An orchestrator that has nothing of ours installed: Celery's own transport, and the contract's names.
    app = Celery(broker=service.redis.url, backend=service.redis.url, set_as_current=False)
    message = standard_message(
        "globex", "researcher", "What does the handbook say about holidays, and what is 12 * 12?"
    )
    app.send_task(
        "agent_exec.execute",
        kwargs={"message": message},
        task_id=message["execution_id"],
        queue="agent_execution",
    )
    final = app.AsyncResult(message["execution_id"]).get(timeout=30)
    assert (final["status"], final["tenant_id"], final["provider"]) == ("completed", "globex", "groq")
    assert sorted(call["name"] for call in final["tool_calls"]) == ["calculator", "search_documents"]
    assert "144" in final["output"]["text"]
    app.close()


def test_an_execution_submitted_through_the_client(service: Service) -> None:
    with service.client() as client:
        execution_id = client.submit(ExecutionRequest(agent_id="desk", query=QUESTION), tenant_id="acme")
        final = client.wait("acme", execution_id, timeout_s=30)
        assert final.status == "completed"
        assert "391" in final.output.text
        frames = list(client.events("acme", execution_id))
        assert frames[-1].event == EventName.COMPLETED
    celery = Celery(broker=service.redis.url, backend=service.redis.url, set_as_current=False)
    assert celery.AsyncResult(execution_id).get(timeout=5)["output"]["text"] == final.output.text
    celery.close()


def test_two_tenants_at_once_through_each_of_the_three_doors(service: Service) -> None:
    asked = {
        "acme": ("desk", QUESTION, "391"),
        "globex": ("researcher", "What is 12 * 12, and what does the handbook say about expenses?", "144"),
    }
    celery = Celery(broker=service.redis.url, backend=service.redis.url, set_as_current=False)
    begun: list[tuple[str, str, str]] = []
    with service.client() as client:
        for tenant_id, (agent_id, query, words) in asked.items():
            with service.http(tenant_id) as http:
                by_http = http.post("/v1/executions", json={"agent_id": agent_id, "query": query})
            begun.append((tenant_id, by_http.json()["execution_id"], words))
            by_client = client.submit(ExecutionRequest(agent_id=agent_id, query=query), tenant_id=tenant_id)
            begun.append((tenant_id, by_client, words))
            message = standard_message(tenant_id, agent_id, query)
            celery.send_task("agent_exec.execute", kwargs={"message": message}, queue="agent_execution")
            begun.append((tenant_id, message["execution_id"], words))
        for tenant_id, execution_id, words in begun:
            final = wait_until(lambda e=execution_id, t=tenant_id: _response(client, t, e), within_s=30)  # type: ignore[misc]
            assert final.status == "completed", final.error
            assert words in final.output.text
    celery.close()


def _response(client: Any, tenant_id: str, execution_id: str) -> Any:
    try:
        return client.get(tenant_id, execution_id).response
    except NotFound:  # the message is still on its way through the broker
        return None


def test_a_message_that_breaks_the_contract_is_a_dead_letter_and_an_error(service: Service) -> None:
    app = Celery(broker=service.redis.url, backend=service.redis.url, set_as_current=False)
    message = standard_message("acme", "desk", QUESTION) | {"surprise": 1}
    app.send_task("agent_exec.execute", kwargs={"message": message}, queue="agent_execution")
    with pytest.raises(Exception, match=r"invalid_message.*surprise") as refused:
        app.AsyncResult(message["execution_id"]).get(timeout=15)
    assert type(refused.value).__name__ == ExecutionFailed.__name__
    app.close()


def standard_message(tenant_id: str, agent_id: str, query: str) -> dict[str, Any]:
    return {
        "task_id": str(uuid.uuid4()),
        "tenant_id": tenant_id,
        "agent_id": agent_id,
        "execution_id": str(uuid.uuid4()),
        "created_at": datetime.now(UTC).isoformat(),
        "status": "pending",
        "type": "agent_execution",
        "priority": 5,
        "metadata": {"conversation_id": None, "session_id": None, "workflow_id": None, "source": "orchestrator"},
        "payload": {"query": query, "agent_config": {}, "context": {}, "tool_calls": []},
    }


def read_sse(http: Any, path: str, *, last_event_id: int | None = None) -> list[Frame]:
    """Read a stream of events to its end."""
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    with http.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        return [
            Frame.model_validate_json(line.removeprefix("data:").strip())
            for line in answer.iter_lines()
            if line.startswith("data:")
        ]
