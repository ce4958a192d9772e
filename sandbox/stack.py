"""The whole local stack: the service's processes, the neighbours around them, and one address and key for each.

Owns which processes there are, what each is told by its environment, when each is ready, and in which order they stop. Does
not know how processes are run (supervised.py), nor what is shown (up.py, demo.py).
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_exec import api_keys
from agent_exec.embedded import free_port
from sandbox.app import sandbox_environment
from sandbox.management import SEED_AGENTS, SEED_TENANTS
from sandbox.supervised import Supervised

#: Two tools at once, for the scripted model as for a real one.
QUESTION = "What is 17 * 23, and what time is it in Tokyo?"

ROOT = Path(__file__).parent.parent
#: A cold start of everything at once on two busy cores takes some ten seconds.
READY_S = 60.0
POLL_S = 0.05
#: On a developer's machine nobody waits half a minute for a Ctrl-C.
SHUTDOWN_GRACE_S = 5
#: Intake first, then those who work, then those who report it, and at last those whom they talk to.
FLOWER_USER = "sandbox"
STOP_ORDER = (("shim", "flower"), ("worker",), ("notifier",), ("neighbours",))

STOP_UNUSED = (
    "import sys; from pathlib import Path; from agent_exec.embedded import EmbeddedServer, stop_unused; "
    "stop_unused(EmbeddedServer(Path(sys.argv[1])))"
)

#: Straight to this machine, whatever proxy the environment names.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class PortTaken(Exception):
    """A port of the stack belongs to another program."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the stack listens, all on 127.0.0.1."""

    shim: int
    neighbours: int
    flower: int

    @classmethod
    def free(cls) -> Ports:
        """Return ports that nobody holds."""
        return cls(shim=free_port(), neighbours=free_port(), flower=free_port())

    def check(self) -> None:
        """Look whether they are free.

        Raises:
            PortTaken: names the one that is not.
        """
        for what, port in (("the shim", self.shim), ("Flower", self.flower), ("the neighbours", self.neighbours)):
            if _is_taken(port):
                raise PortTaken(f"Port {port}, for {what}, is taken by another program")


class Stack:
    """Everything, running."""

    def __init__(self, supervised: Supervised, ports: Ports, *, keys: Mapping[str, str], flower_password: str) -> None:
        """Take what `running` made."""
        self.supervised = supervised
        self.ports = ports
        #: The API key of each tenant of the sandbox.
        self.keys = keys
        self.flower_password = flower_password
        self.shim_url = f"http://127.0.0.1:{ports.shim}"
        self.neighbours_url = f"http://127.0.0.1:{ports.neighbours}"
        self.flower_url = f"http://127.0.0.1:{ports.flower}"

    def await_ready(self, *, ready: Callable[[str], None]) -> None:
        """Return when every process does its work; `ready` hears of each by its name.

        Raises:
            Failed: one ended, or is not ready in time.
        """
        waiting = self._conditions()
        give_up_at = time.monotonic() + READY_S
        while waiting:
            self.supervised.check()
            for name in [name for name, condition in waiting.items() if condition()]:
                del waiting[name]
                ready(name)
            if waiting and time.monotonic() > give_up_at:
                raise self.supervised.members[next(iter(waiting))].failure(f"is not ready after {READY_S:.0f} s")
            time.sleep(POLL_S)

    def neighbour(self, path: str, *, body: Any = None) -> Any:
        """Return what the sandbox answers to a GET, such as `/orchestrator/frames`; with a `body`, to a POST of it."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(  # noqa: S310 an address of our own
            f"{self.neighbours_url}{path}", data, {"Content-Type": "application/json"}
        )
        with _open(asked, timeout=10) as answer:
            return json.load(answer)

    def _conditions(self) -> dict[str, Callable[[], bool]]:
        return {
            "neighbours": lambda: _answers(f"{self.neighbours_url}/health"),
            "worker": self.supervised.members["worker"].is_ready.is_set,
            "notifier": self._is_notifier_connected,
            "shim": lambda: _answers(f"{self.shim_url}/health/ready"),
            "flower": lambda: _answers(f"{self.flower_url}/healthcheck"),
        }

    def _is_notifier_connected(self) -> bool:
        try:
            return bool(self.neighbour("/orchestrator/connections")["open"])
        except OSError:
            return False


@contextmanager
def running(
    *,
    state_dir: Path,
    environment: Mapping[str, str],
    ports: Ports,
    echo: bool,
    redis: Path | None,
    real_provider: str | None = None,
) -> Iterator[Stack]:
    """Start the stack, and stop it in order.

    `environment` goes to every process of the service, under what points it at the sandbox; `real_provider` is the one
    whose own address and key stay as they are there. `redis` is the embedded server's directory, if there is one: should
    all its users be killed, it is stopped too.

    Raises:
        PortTaken: a port is.
    """
    ports.check()
    keys_file = state_dir / "sandbox-keys.json"
    keys_file.unlink(missing_ok=True)
    keys = {tenant.tenant_id: api_keys.create(keys_file, tenant_id=tenant.tenant_id) for tenant in SEED_TENANTS}
    points = sandbox_environment(f"http://127.0.0.1:{ports.neighbours}")
    if real_provider is not None:
        points = {name: value for name, value in points.items() if not name.startswith(real_provider.upper())}
    told = {
        "AGENT_EXEC_LOG_FORMAT": "console",
        "AGENT_EXEC_SHUTDOWN_GRACE_S": str(SHUTDOWN_GRACE_S),
        **environment,
        **points,
        "AGENT_EXEC_STATE_DIR": str(state_dir.absolute()),
        "AGENT_EXEC_API_KEYS_FILE": str(keys_file.absolute()),
        "PYTHONUNBUFFERED": "1",
    }
    with Supervised(
        logs=state_dir.absolute() / "logs",
        environment=told,
        directory=ROOT,
        echo=echo,
        stop_order=STOP_ORDER,
        if_killed=() if redis is None else (sys.executable, "-c", STOP_UNUSED, str(redis)),
    ) as supervised:
        stack = Stack(supervised, ports, keys=keys, flower_password=secrets.token_urlsafe(12))
        _start(stack)
        yield stack


def _start(stack: Stack) -> None:
    start, python, ports = stack.supervised.start, sys.executable, stack.ports
    start("neighbours", python, "-m", "sandbox", "neighbours", "--port", str(ports.neighbours))
    start(
        "worker",
        # One worker alone has nobody to ask what it missed; asking takes a second of every start.
        *[python, "-m", "celery", "-A", "tasks", "worker", "--loglevel=INFO", "--without-mingle", "--without-gossip"],
        ready_words=" ready.",
    )
    start("notifier", python, "-m", "notifier")
    shim = ["api_shim.app:app", "--host", "127.0.0.1", "--port", str(ports.shim), "--ws-per-message-deflate", "false"]
    start("shim", python, "-m", "uvicorn", *shim)
    start(
        "flower",
        *[python, "-m", "celery", "-A", "tasks", "flower", "--address=127.0.0.1", f"--port={ports.flower}"],
        "--logging=warning",
        # Not on the command line, which shows it to everyone.
        environment={"FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{stack.flower_password}"},
    )


def agents_by_tenant() -> dict[str, list[str]]:
    """Return the agents that the sandbox's Agent Management knows."""
    return {
        tenant.tenant_id: [agent.agent_id for owner, agent in SEED_AGENTS if owner == tenant.tenant_id]
        for tenant in SEED_TENANTS
    }


def _answers(url: str) -> bool:
    try:
        with _open(url, timeout=2):
            return True
    except OSError:  # urllib's errors, an answer such as 503 among them
        return False


def _is_taken(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
