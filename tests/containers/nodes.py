"""pytest-celery's nodes for this project: Redis, a worker and the played neighbours, each from the images that were built.

Owns how each container is started. Does not know any test.
"""

from __future__ import annotations

from typing import Any

import httpx
from pytest_celery import CeleryTestContainer, CeleryTestWorker, CeleryWorkerContainer, RedisContainer

from sandbox.app import sandbox_environment
from tests.processes import wait_until

NEIGHBOURS_PORT = 8701
#: Ours are started as compose.yaml starts them: the tests hold that nothing of the service needs more.
CONFINED: dict[str, Any] = {
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "pids_limit": 256,
    "mem_limit": "1g",
}
#: A container starts, and a worker ends, within this on a busy machine.
PATIENCE_S = 90


class RedisServer(RedisContainer):
    """Redis, with the command of its image."""

    @property
    def host_url(self) -> str:
        """Its address for the tests; the port is another one after a restart."""
        host, port = self.get_addr("6379/tcp")
        return f"{self.prefix()}{host}:{port}/{self.vhost}"


class Neighbours(CeleryTestContainer):
    """The four neighbours, played."""

    @property
    def url(self) -> str:
        """Their address on the containers' network."""
        return f"http://{self.attrs['Config']['Hostname']}:{NEIGHBOURS_PORT}"

    @property
    def ready_prompt(self) -> str:
        """What is printed when they answer."""
        return "The neighbours answer at"

    def calls(self) -> list[dict[str, Any]]:
        """Return the journal of the played OpenAI: every call that reached it."""
        host, port = self.get_addr(f"{NEIGHBOURS_PORT}/tcp")
        answer = httpx.get(f"http://{host}:{port}/openai/journal", trust_env=False, timeout=10).raise_for_status()
        journal: list[dict[str, Any]] = answer.json()["calls"]
        return journal


class WorkerContainer(CeleryWorkerContainer):
    """A worker, with the command of the image."""

    @classmethod
    def worker_name(cls) -> str:
        """Celery's own."""
        return "celery"

    @classmethod
    def environment(cls, cluster_config: dict[str, Any], neighbours_url: str) -> dict[str, str]:
        """Return the variables that a worker is configured by."""
        return {
            **sandbox_environment(neighbours_url),
            "AGENT_EXEC_REDIS_URL": cluster_config["celery_broker_cluster_config"]["urls"][0],
            "AGENT_EXEC_LEASE_S": "3",
            "AGENT_EXEC_LOG_LEVEL": "DEBUG",
        }


class Worker(CeleryTestWorker):
    """A worker node."""

    @property
    def short_id(self) -> str:
        """Its container's short id, which is the host name in it."""
        short: str = self.container.id[:12]
        return short

    def run(self, *command: str) -> str:
        """Run a command in the container and return what it printed; it must succeed."""
        code, output = self.container.exec_run(list(command))
        text: str = output.decode().strip()
        assert code == 0, text
        return text

    def stop(self) -> int:
        """Ask it to end, as `docker stop` does, and return its exit code."""
        self.kill(signal="SIGTERM")
        wait_until(self._exited, within_s=PATIENCE_S, what="the end of the worker")
        code: int = self.container.attrs["State"]["ExitCode"]
        return code

    def _exited(self) -> bool:
        self.container.reload()
        return bool(self.container.status == "exited")
