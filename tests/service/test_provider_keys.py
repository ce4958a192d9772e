"""A tenant's own provider key: used for its executions alone, changed under a running worker, and seen nowhere."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from agent_exec import AgentExecClient, ExecutionRequest, FinalResponse
from tests.processes import answers, free_port, wait_until
from tests.service.conftest import Service

pytestmark = pytest.mark.timeout(180)

DATABASE = 13
LOGIN = ("operator", "secret")
#: Not of any form by which logs know a key, so that nothing but our care keeps them out.
ACME_KEY = "CANARYKEYacme5d2f60c1e94b4a7f9e"
SECOND_KEY = "CANARYKEYacme8a01c7b3f25d4e6d1c"
SERVICE_KEY = "CANARYKEYservice0c9b8d7e6f5a4b3c"
CHATTY_KEY = "CANARYKEYchatty1f2e3d4c5b6a7988"


class Chatty(BaseHTTPRequestHandler):
    """A provider that repeats the key it was given: in a refusal, in an error amid the stream, in the text of its head."""

    protocol_version = "HTTP/1.1"
    told: list[str] = []  # noqa: RUF012 one server, one list

    def do_POST(self) -> None:
        """Refuse, or break off."""
        self.rfile.read(int(self.headers["content-length"]))
        key = self.headers["authorization"].removeprefix("Bearer ")
        self.told.append(key)
        error = json.dumps({"error": {"message": f"The key {key} is not ours", "code": key, "type": key}}).encode()
        if self.path.startswith("/refuses"):
            self._answer(401, error)
        else:
            self._answer(200, b'data: {"choices": [{"delta": {"content": "He"}}]}\n\ndata: ' + error + b"\n\n")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status, self.headers["authorization"])
        self.send_header("x-request-id", self.headers["authorization"])
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Keyed:
    """A worker, a notifier and Flower, with keys of tenants."""

    service: Service
    keys: Path
    flower: httpx.Client

    def put(self, tenant_id: str, provider: str, key: str) -> None:
        """Give a tenant a key, as a whole."""
        path = self.keys / tenant_id / provider
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".new").write_text(f"{key}\n")
        path.with_suffix(".new").rename(path)

    def run(self, client: AgentExecClient, tenant_id: str, provider: str) -> FinalResponse:
        """Run one execution, with no other model to fall back on."""
        config = {"agent_id": "keyed", "provider": provider, "model": "sandbox-1"}
        request = ExecutionRequest.model_validate({"agent_id": "keyed", "query": "hello", "agent_config": config})
        return client.wait(tenant_id, client.submit(request, tenant_id=tenant_id), timeout_s=40)

    def key_of_last_call(self) -> str:
        """Return the fingerprint of the key that the sandbox's model was last asked with."""
        return str(self.service.calls()[-1]["key_fingerprint"])


@pytest.fixture
def chatty() -> Iterator[str]:
    """Return the settings of two providers that give away what they get."""
    Chatty.told.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Chatty) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield json.dumps({way: {"base_url": f"{url}/{way}", "api_key": CHATTY_KEY} for way in ("refuses", "breaks")})
        server.shutdown()
        thread.join()


@pytest.fixture
def keyed(service: Service, tmp_path: Path, chatty: str) -> Iterator[Keyed]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    alone = service.apart(
        DATABASE,
        OPENAI_API_KEY=SERVICE_KEY,
        AGENT_EXEC_PROVIDER_KEYS_DIR=str(tmp_path),
        AGENT_EXEC_PROVIDERS=chatty,
        AGENT_EXEC_MAX_RETRIES="1",
        AGENT_EXEC_LOG_LEVEL="DEBUG",
        OPENAI_LOG="debug",
        GROQ_LOG="debug",
    )
    alone.directory = tmp_path / "logs"
    alone.directory.mkdir()
    flags = ("--address=127.0.0.1", f"--port={port}", f"--basic-auth={':'.join(LOGIN)}")
    with contextlib.ExitStack() as stack:
        stack.callback(alone.stop)
        alone.start("notifier", "-m", "notifier")
        alone.worker("keyed")
        alone.start("flower", "-m", "celery", "-A", "tasks", "flower", *flags)
        wait_until(lambda: answers(url), what="flower")
        flower = stack.enter_context(httpx.Client(base_url=url, auth=LOGIN, timeout=10, trust_env=False))
        wait_until(lambda: flower.get("/api/workers").json(), what="flower to see the worker", within_s=30)
        yield Keyed(alone, tmp_path, flower)
    with redis.Redis.from_url(alone.env["AGENT_EXEC_REDIS_URL"]) as database:
        database.flushdb()


def named(key: str) -> str:
    """Return the sandbox's name for a key."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def stored(database: Any) -> str:
    """Return every value of a database."""
    readers = {
        b"string": database.get,
        b"hash": database.hgetall,
        b"list": lambda key: database.lrange(key, 0, -1),
        b"set": database.smembers,
        b"zset": lambda key: database.zrange(key, 0, -1, withscores=True),
        b"stream": database.xrange,
    }
    return "\n".join(f"{key} {readers[database.type(key)](key)}" for key in database.scan_iter(count=1_000))


def test_a_tenant_s_key_is_used_for_it_alone_and_seen_nowhere(keyed: Keyed) -> None:
    """S26."""
    service = keyed.service
    keyed.put("acme", "openai", ACME_KEY)
    keyed.put("acme", "refuses", ACME_KEY)
    keyed.put("acme", "breaks", ACME_KEY)
    shown: list[str] = []
    with service.client() as client:
        runs = [
            keyed.run(client, tenant_id, provider)
            for tenant_id, provider in [
                ("acme", "openai"),
                ("acme", "refuses"),
                ("acme", "breaks"),
                ("globex", "openai"),
                ("globex", "refuses"),
            ]
        ]
        assert [run.error.code if run.error else run.status for run in runs] == [
            "completed",
            "provider_auth",
            "provider_overloaded",
            "completed",
            "provider_auth",
        ]
        assert [call["key_fingerprint"] for call in service.calls()[-2:]] == [named(ACME_KEY), named(SERVICE_KEY)]
        assert set(Chatty.told) == {ACME_KEY, CHATTY_KEY}
        for run in runs:
            shown += [
                run.model_dump_json(),
                *(frame.model_dump_json() for frame in client.events(run.tenant_id, run.execution_id)),
            ]
            wait_until(
                lambda run=run: str(service.frames(run.execution_id)).count("execution_" + run.status),  # type: ignore[misc]
                what="the orchestrator to know of the end",
            )
            shown.append(str(service.frames(run.execution_id)))

        keyed.put("acme", "openai", SECOND_KEY)

        def changed() -> bool:
            return keyed.run(client, "acme", "openai").status == "completed" and keyed.key_of_last_call() == named(
                SECOND_KEY
            )

        wait_until(changed, what="the new key to be used", within_s=15)

    shown += [keyed.flower.get(path).text for path in ("/api/tasks", "/tasks", "/api/workers?refresh=1", "/metrics")]
    shown += [keyed.flower.get(f"/api/task/info/{task_id}").text for task_id in keyed.flower.get("/api/tasks").json()]
    with redis.Redis.from_url(service.env["AGENT_EXEC_REDIS_URL"]) as database:
        shown.append(stored(database))
        assert runs[0].execution_id in shown[-1]
    shown += [path.read_text(errors="replace") for path in service.directory.glob("*.log")]
    # Every write that was ever made, also of what is gone by now.
    shown += [path.read_text(errors="replace") for path in service.redis.directory.rglob("*.aof")]
    assert runs[0].execution_id in shown[-1]
    found = [text[max(0, at - 200) : at + 60] for text in shown if (at := text.find("CANARYKEY")) >= 0]
    assert found == []


def test_a_key_that_cannot_be_used_is_told_without_a_path(keyed: Keyed) -> None:
    keyed.put("acme", "openai", "")
    before = len(keyed.service.calls())
    with keyed.service.client() as client:
        final = keyed.run(client, "acme", "openai")
    assert final.error is not None
    assert final.error.code == "provider_key_unusable"
    assert "tenant 'acme' for provider 'openai' cannot be used: it is empty" in final.error.message
    assert str(keyed.keys) not in final.model_dump_json()
    assert len(keyed.service.calls()) == before, "nobody's key is used in its place"
