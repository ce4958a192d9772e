"""The whole service as processes: neighbours, worker, notifier, shim; once for all tests of this folder."""

from __future__ import annotations

import contextlib
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from agent_exec import AgentExecClient, EventName, api_keys
from agent_exec.embedded import EmbeddedServer
from sandbox.app import sandbox_environment
from tests.processes import Process, answers, free_port, wait_until

TOKEN = "service-token-of-the-tests"
#: There is no TLS here, and reading the world's authorities takes 20 ms a client.
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass
class Service:
    """Everything running, and ways to talk to it."""

    redis: EmbeddedServer
    directory: Path
    env: dict[str, str]
    neighbours_url: str
    shim_url: str
    keys: dict[str, str]
    processes: dict[str, Process] = field(default_factory=dict)

    def start(self, name: str, *command: str, **env: str) -> Process:
        """Start one more process under `name`."""
        process = Process(name, command, env={**self.env, **env}, log=self.directory / f"{name}.log")
        self.processes[name] = process
        return process

    def worker(self, name: str = "worker", *, app: str = "tasks", ulimit: str = "", **env: str) -> Process:
        """Start a worker and wait until it takes work; `ulimit` are a shell's words for what it may use."""
        command = ["-m", "celery", "-A", app, "worker", "-n", f"{name}@test", "--loglevel", "INFO"]
        if ulimit:
            command = ["sh", "-c", f'ulimit {ulimit}; exec "$0" "$@"', sys.executable, *command]
        process = self.start(name, *command, **env)
        wait_until(lambda: "ready." in process.output or not process.running, what=f"{name} to be ready", within_s=30)
        assert process.running, process.output[-4_000:]
        return process

    def client(self) -> AgentExecClient:
        """Return a client on the same store."""
        return AgentExecClient(self.env["AGENT_EXEC_REDIS_URL"])

    def http(self, tenant_id: str) -> httpx.Client:
        """Return an HTTP client with a tenant's key."""
        return httpx.Client(
            base_url=self.shim_url,
            headers={"Authorization": f"Bearer {self.keys[tenant_id]}"},
            timeout=30,
            trust_env=False,
            verify=NO_AUTHORITIES,
        )

    def neighbours(self) -> httpx.Client:
        """Return an HTTP client for the sandbox's own journals."""
        return httpx.Client(base_url=self.neighbours_url, timeout=10, trust_env=False, verify=NO_AUTHORITIES)

    def calls(self) -> list[dict[str, Any]]:
        """Return the calls that the provider got."""
        with self.neighbours() as client:
            calls: list[dict[str, Any]] = client.get("/openai/journal").raise_for_status().json()["calls"]
            return calls

    def frames(self, execution_id: str) -> list[dict[str, object]]:
        """Return the frames that the orchestrator received for an execution."""
        with self.neighbours() as client:
            answer = client.get("/orchestrator/frames", params={"execution": execution_id})
            return [one["frame"] for one in answer.raise_for_status().json()["frames"]]

    def apart(self, database: int, **env: str) -> Service:
        """Return the same service on a database of its own, with nothing running yet."""
        address = f"{self.redis.url.rsplit('/', 1)[0]}/{database}"
        return replace(self, env={**self.env, "AGENT_EXEC_REDIS_URL": address, **env}, processes={})

    def stop(self) -> None:
        """Stop everything that it started."""
        with contextlib.ExitStack() as stack:
            for process in self.processes.values():
                stack.callback(process.stop)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service, with one worker."""
    directory = tmp_path_factory.mktemp("service")
    with EmbeddedServer(directory / "redis") as redis:
        neighbours_port, shim_port = free_port(), free_port()
        neighbours_url = f"http://127.0.0.1:{neighbours_port}"
        keys_file = directory / "keys.json"
        keys = {
            tenant_id: api_keys.create(keys_file, tenant_id=tenant_id) for tenant_id in ("acme", "globex", "initech")
        }
        env = {
            **sandbox_environment(neighbours_url, TOKEN),
            "AGENT_EXEC_REDIS_URL": redis.url,
            "AGENT_EXEC_API_KEYS_FILE": str(keys_file),
        }
        running = Service(redis, directory, env, neighbours_url, f"http://127.0.0.1:{shim_port}", keys)
        try:
            running.start(
                "neighbours",
                "-m",
                "sandbox",
                "neighbours",
                "--port",
                str(neighbours_port),
                "--pace",
                "0",
                "--token",
                TOKEN,
            )
            running.start("shim", "-m", "uvicorn", "api_shim.app:app", "--port", str(shim_port))
            running.start("notifier", "-m", "notifier")
            running.worker()
            for url in (f"{neighbours_url}/health", f"{running.shim_url}/health/ready"):
                wait_until(lambda url=url: answers(url), what=url, within_s=30)  # type: ignore[misc]
            yield running
        finally:
            running.stop()


@pytest.fixture
def slow(service: Service) -> Iterator[Service]:
    """Workers on a database of their own, and a sandbox whose model takes seconds: there is a middle to break."""
    yield from _slow(service, pace=4)


@pytest.fixture
def paced(service: Service) -> Iterator[Service]:
    """As `slow`, at the pace of a real model."""
    yield from _slow(service, pace=1)


def _slow(service: Service, *, pace: float) -> Iterator[Service]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    apart = service.apart(9, **sandbox_environment(url, TOKEN), AGENT_EXEC_LEASE_S="2")
    apart.neighbours_url = url
    sandbox = ["-m", "sandbox", "neighbours", "--port", str(port), "--pace", str(pace), "--token", TOKEN]
    apart.start("slow-neighbours", *sandbox)
    try:
        wait_until(lambda: answers(f"{url}/health"), what="the slow sandbox")
        yield apart
    finally:
        apart.stop()
        with redis.Redis.from_url(apart.env["AGENT_EXEC_REDIS_URL"]) as database:
            database.flushdb()


def streaming(client: AgentExecClient, execution_id: str) -> bool:
    """Say whether the model has begun to speak."""
    last = client.get("acme", execution_id).last_sequence
    for frame in client.events("acme", execution_id):
        if frame.event == EventName.TOKEN:
            return True
        if frame.sequence >= last:
            break
    return False
