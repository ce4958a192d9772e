"""The agent loop at its limits, with real processes: a model that never stops, an operation that takes long (faults S37)."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agent_exec import EventName, ExecutionRequest
from tests.processes import wait_until
from tests.service.conftest import Service

#: A worker takes seconds to start.
pytestmark = pytest.mark.timeout(180)

DATABASE = 14
CALLS_A_TURN = 3


class Runaway:
    """A provider whose model calls a tool three times in every turn, and says nothing else."""

    def __init__(self) -> None:
        """Listen on a free port."""
        self.asked: Counter[str] = Counter()
        runaway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                runaway.asked[body["model"]] += 1
                stream = _stream(runaway.asked[body["model"]])
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Content-Length", str(len(stream)))
                self.end_headers()
                self.wfile.write(stream)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def setting(self) -> str:
        """AGENT_EXEC_PROVIDERS, with it as `runaway`."""
        return json.dumps({"runaway": {"base_url": f"http://127.0.0.1:{self.server.server_port}/v1"}})


def _stream(turn: int) -> bytes:
    calls = [
        {"index": n, "id": f"call_{turn}_{n}", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
        for n in range(CALLS_A_TURN)
    ]
    chunks = [
        {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}]},
        {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {"id": "c", "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}},
    ]
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


@pytest.fixture
def runaway() -> Iterator[Runaway]:
    provider = Runaway()
    thread = threading.Thread(target=provider.server.serve_forever)
    thread.start()
    yield provider
    provider.server.shutdown()
    thread.join()
    provider.server.server_close()


def test_s37_a_runaway_model_ends_at_each_limit_and_makes_no_call_beyond_it(service: Service, runaway: Runaway) -> None:
    apart = service.apart(DATABASE, AGENT_EXEC_PROVIDERS=runaway.setting)
    limited: dict[str, dict[str, Any]] = {
        "by-turns": {"max_turns": 4},
        "by-calls": {"max_tool_calls": 7},
        "by-tokens": {"max_total_tokens": 400},
        "by-money": {"max_turns": 2, "max_cost_usd": 0.0},  # its price is unknown, so its turns end it
    }
    try:
        apart.worker("looping")
        with apart.client() as client:
            ids = {
                model: client.submit(
                    ExecutionRequest.model_validate(
                        {
                            "agent_id": "desk",
                            "query": "What time is it?",
                            "agent_config": {
                                "provider": "runaway",
                                "model": model,
                                "fallbacks": [],
                                "tools": ["clock"],
                                "max_output_tokens": 50,
                                "limits": limits,
                            },
                        }
                    ),
                    tenant_id="acme",
                )
                for model, limits in limited.items()
            }
            finals = {model: client.wait("acme", execution_id, timeout_s=40) for model, execution_id in ids.items()}
            frames = {model: list(client.events("acme", execution_id)) for model, execution_id in ids.items()}
    finally:
        apart.stop()
    for model, final in finals.items():
        assert final.error is not None
        assert (final.status, final.error.code) == ("failed", "limit_exceeded"), model
        names = Counter(frame.event for frame in frames[model])
        assert (names[EventName.FAILED], names[EventName.COMPLETED]) == (1, 0)
        assert final.turns == runaway.asked[model], "every call of the model is in the response"
        assert len(final.tool_calls) == names[EventName.TOOL_CALL_COMPLETED]
        assert all(call.error is None for call in final.tool_calls)
    assert (runaway.asked["by-turns"], len(finals["by-turns"].tool_calls)) == (4, 9)
    assert (runaway.asked["by-calls"], len(finals["by-calls"].tool_calls)) == (3, 6)
    assert runaway.asked["by-money"] == 2
    assert finals["by-tokens"].usage.total_tokens <= 400
    assert 1 < runaway.asked["by-tokens"] <= 400 // 30


def test_an_operation_that_takes_long_is_waited_for_without_a_slot(service: Service) -> None:
    """Its worker has one slot, and others' work goes through it meanwhile."""
    apart = service.apart(DATABASE)
    retrieving = {"retrieval": {"enabled": True}, "limits": {"deadline_s": 60}}
    with service.neighbours() as neighbours:
        neighbours.post("/orchestrator/_mode", json={"under_way": 3}).raise_for_status()
        try:
            apart.start("narrow", "-m", "celery", "-A", "tasks", "worker", "-n", "narrow@test", "-c", "1")
            with apart.client() as client:
                slow = client.submit(
                    ExecutionRequest.model_validate(
                        {"agent_id": "desk", "query": "What is the leave policy?", "agent_config": retrieving}
                    ),
                    tenant_id="acme",
                )
                wait_until(lambda: _waits(client, slow), what="the operation to be under way", within_s=30)
                quick = client.submit(ExecutionRequest(agent_id="desk", query="Hello!"), tenant_id="acme")
                assert client.wait("acme", quick, timeout_s=20).status == "completed"
                assert client.get("acme", slow).status == "processing"
                final = client.wait("acme", slow, timeout_s=40)
                waits = sum(_is_wait(frame) for frame in client.events("acme", slow))
            asked = neighbours.get("/orchestrator/operations").raise_for_status().json()
        finally:
            neighbours.post("/orchestrator/_mode", json={}).raise_for_status()
            apart.stop()
    assert final.status == "completed", final.error
    assert asked[f"{slow}.operation.query"] == 4
    assert waits == 3


def _waits(client: Any, execution_id: str) -> bool:
    last = client.get("acme", execution_id).last_sequence
    for frame in client.events("acme", execution_id):
        if _is_wait(frame):
            return True
        if frame.sequence >= last:
            return False
    return False


def _is_wait(frame: Any) -> bool:
    return bool(frame.data.get("stage") == "waiting" and frame.data["detail"]["code"] == "operation_under_way")
