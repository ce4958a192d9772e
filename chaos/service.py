"""The service under fire: every process of it on a private server behind a proxy, and a supervisor that restarts what dies.

Owns the processes, their names and L-nemesis's list of deaths and outages. Does not know when a fault is due (nemesis.py).

A worker's name is that of its incarnation, `worker-0.3`: each has an API key of its own, so the provider's journal tells
whose a call was. The neighbours are never killed: their journals are the ledgers outside.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent_exec import api_keys
from agent_exec.client import AgentExecClient
from agent_exec.embedded import EmbeddedServer, free_port
from agent_exec.settings import read_settings
from chaos.evidence import Death, Outage, Shift, canary
from chaos.neighbours import Neighbours
from chaos.proxy import Proxy
from sandbox.app import sandbox_environment
from sandbox.supervised import Failed, Member, Supervised

ROOT = Path(__file__).parent.parent
TENANTS = ("amber", "birch", "cedar", "dune")
AGENT = "desk"
#: After three kills a step would count as the poison; at one every few seconds it is not.
MAX_ATTEMPTS = 20
#: A cold start of everything on two busy cores.
READY_S = 120.0
#: What a process that is asked to end gets beyond the grace time of its steps.
STOP_S = 60.0
LOOK_S = 0.05
#: Python's code for "ended by this signal" is its negative.
KILLED = -signal.SIGKILL


class Service:
    """Everything, running. A context manager: nothing of it outlives the block."""

    def __init__(self, directory: Path, *, workers: int, pace: float, settings: dict[str, str]) -> None:
        """Take where data and logs go, how many workers there are, what stretches the model's pauses, and more settings."""
        self.directory = directory
        self.workers = workers
        self.deaths: list[Death] = []
        self.outages: list[Outage] = []
        self.redis = EmbeddedServer(directory / "redis")
        self.keys: dict[str, str] = {}
        #: Whose an API key's fingerprint in the provider's journal is.
        self.worker_of_key: dict[str, str] = {}
        self._pace = pace
        self._settings = settings
        self._stack = ExitStack()
        #: What runs in each place: `worker-0`, `notifier`, and so on.
        self._members: dict[str, Member] = {}
        self._incarnations: dict[str, int] = {}
        #: Why a member is to end, by its name: noted before it is told to.
        self._doomed: dict[str, Death] = {}
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        #: Since when each worker takes work, until it does no more.
        self._ready_ms: dict[str, int] = {}
        self._waves: list[list[str]] = [[], [], [], []]

    def __enter__(self) -> Self:
        """Start it all, and wait until it does its work."""
        with ExitStack() as stack:
            stack.enter_context(self.redis)
            self.proxy = stack.enter_context(Proxy.before(self.redis.url))
            self._address = self.redis.url
            ports = free_port(), free_port()
            self.shim_url, neighbours_url = (f"http://127.0.0.1:{port}" for port in ports)
            self.neighbours = Neighbours(neighbours_url)
            keys_file = self.directory / "keys.json"
            self.keys = {tenant: api_keys.create(keys_file, tenant_id=tenant) for tenant in TENANTS}
            environment = {
                **sandbox_environment(neighbours_url),
                "AGENT_EXEC_REDIS_URL": self.proxy.url,
                "AGENT_EXEC_API_KEYS_FILE": str(keys_file),
                "AGENT_EXEC_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
                "PYTHONUNBUFFERED": "1",
                **self._settings,
            }
            self._supervised = stack.enter_context(
                Supervised(
                    logs=self.directory / "logs",
                    environment=environment,
                    directory=ROOT,
                    echo=False,
                    stop_order=self._waves,
                )
            )
            self._start_all(ports)
            stack.callback(self._stopping.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End whatever still runs."""
        self._stack.close()

    def client(self) -> AgentExecClient:
        """Return a client that reaches the store as the service does, faults and all."""
        settings = read_settings(callback_allow_http=True, callback_allowed_networks="127.0.0.0/8")
        return AgentExecClient(self.proxy.url, settings=settings)

    def kill_worker(self, number: int) -> bool:
        """Kill the worker in a place; where it is still starting, the next that works. Say whether there was one.

        To kill what has not begun to work proves nothing, and on a slow machine would leave nobody who does.
        """
        with self._lock:
            places = [f"worker-{(number + further) % self.workers}" for further in range(self.workers)]
            working = [place for place in places if self._works(place)]
            if working:
                self.kill(working[0])
            return bool(working)

    def kill(self, place: str) -> None:
        """Kill what runs in a place, with all its children. The supervisor starts another."""
        with self._lock:
            member = self._members[place]
            self._doomed[member.name] = Death(name=member.name, at_ms=now_ms(), cause="killed")
            member.send(signal.SIGKILL)

    def replace_worker(self, number: int) -> None:
        """Ask the worker in a place to end, another already beside it: a rolling restart."""
        place = f"worker-{number}"
        self._await(lambda: self._works(place), f"{place} to be ready")
        with self._lock:
            old = self._members[place]
            new = self._start(place)
        self._await(new.is_ready.is_set, f"{new.name} to be ready")
        self._doomed[old.name] = Death(name=old.name, at_ms=now_ms(), cause="asked")
        _ask_to_end(old)
        self._await(lambda: old.exit_code is not None, f"{old.name} to end", within_s=STOP_S)
        self._bury(old)

    def restart_redis(self, *, away_s: float) -> None:
        """Kill Redis, and start it again on its data."""
        began_ms = now_ms()
        self.redis.kill()
        time.sleep(away_s)
        self.redis.start()
        assert self.redis.url == self._address, "another program took Redis's port"
        self.outages.append(Outage(from_ms=began_ms, until_ms=now_ms()))

    def hold_redis(self, seconds: float) -> None:
        """Let nothing pass between Redis and the service for a while; returns at once."""
        self.proxy.hold(seconds)
        self.outages.append(Outage(from_ms=now_ms(), until_ms=now_ms() + round(seconds * 1000)))

    def abandon(self) -> None:
        """Wait for nothing any more: somebody asked for the end of it all."""
        self._stopping.set()

    def stop(self) -> list[str]:
        """Ask the service, not the neighbours, to end; return the names of what does not."""
        self._stopping.set()
        with self._lock:
            left = [member for place, member in self._members.items() if place != "neighbours"]
            for member in left:
                self._doomed[member.name] = Death(name=member.name, at_ms=now_ms(), cause="asked")
                _ask_to_end(member)
        give_up_at = time.monotonic() + STOP_S
        for member in left:
            member.await_end(until=give_up_at)
        for member in left:
            if member.exit_code is not None:
                self._bury(member)
        return [member.name for member in left if member.exit_code is None]

    @property
    def shifts(self) -> list[Shift]:
        """When which worker took work."""
        ended_ms = {death.name: death.at_ms for death in self.deaths}
        return [
            Shift(name=name, from_ms=ready_ms, until_ms=ended_ms[name])
            for name, ready_ms in self._ready_ms.items()
            if ready_ms < ended_ms.get(name, 0)
        ]

    def stragglers(self) -> list[str]:
        """Return the processes, of all that ever were, whose groups are not empty."""
        running = {member.name for member in self._members.values() if member.exit_code is None}
        return [name for name, member in self._supervised.members.items() if name not in running and _lives(member)]

    def _start_all(self, ports: tuple[int, int]) -> None:
        shim_port, neighbours_port = [str(port) for port in ports]
        self._commands = {
            "neighbours": ["-m", "sandbox", "neighbours", "--port", neighbours_port, "--pace", str(self._pace)],
            "shim": ["-m", "uvicorn", "api_shim.app:app", "--port", shim_port, "--log-level", "warning"],
            "notifier": ["-m", "notifier"],
            **{f"worker-{place}": ["-m", "celery", "-A", "tasks", "worker"] for place in range(self.workers)},
        }
        for place in self._commands:
            self._start(place)
        self._await(lambda: _answers(f"{self.neighbours.url}/health"), "the neighbours")
        self.neighbours.expect(agent_id=AGENT, prompts={tenant: f"I am {canary(tenant)}." for tenant in TENANTS})
        self._await(lambda: _answers(f"{self.shim_url}/health/ready"), "the shim")
        for number in range(self.workers):
            self._await(self._members[f"worker-{number}"].is_ready.is_set, f"worker-{number}")
        threading.Thread(target=self._supervise, name="supervisor", daemon=True).start()

    def _start(self, place: str) -> Member:
        """Start a place's process, under the name of its next incarnation."""
        with self._lock:
            number = self._incarnations[place] = self._incarnations.get(place, 0) + 1
            name = f"{place}.{number}"
            command, environment, ready = list(self._commands[place]), {}, None
            if place.startswith("worker"):
                key = f"sk-sandbox-{name}"
                self.worker_of_key[sha256(key.encode()).hexdigest()[:12]] = name
                environment, ready = {"OPENAI_API_KEY": key}, " ready."
                command += ["-n", f"{name}@chaos", "--loglevel", "INFO"]
            wave = {"shim": 0, "notifier": 2, "neighbours": 3}.get(place, 1)
            self._waves[wave].append(name)
            member = self._supervised.start(name, sys.executable, *command, environment=environment, ready_words=ready)
            self._members[place] = member
            return member

    def _supervise(self) -> None:
        """Start anew what has ended, as any supervisor does."""
        while not self._stopping.wait(LOOK_S):
            with self._lock:
                if self._stopping.is_set():
                    return
                for member in self._supervised.members.values():
                    if member.is_ready.is_set():
                        self._ready_ms.setdefault(member.name, now_ms())
                for place, member in list(self._members.items()):
                    if member.exit_code is not None:
                        self._bury(member)
                        self._start(place)

    def _works(self, place: str) -> bool:
        member = self._members[place]
        return member.exit_code is None and member.is_ready.is_set() and member.name not in self._doomed

    def _bury(self, member: Member) -> None:
        """Note how a process ended."""
        assert member.exit_code is not None, "only the dead are buried"
        doom = self._doomed.pop(member.name, None)
        if doom is None or (doom.cause == "killed" and member.exit_code != KILLED):
            doom = Death(name=member.name, at_ms=now_ms(), cause="itself")
        self.deaths.append(Death(name=doom.name, at_ms=doom.at_ms, cause=doom.cause, exit_code=member.exit_code))

    def _await(self, condition: Any, what: str, *, within_s: float = READY_S) -> None:
        give_up_at = time.monotonic() + within_s
        while not condition():
            if self._stopping.is_set():
                raise Failed(f"Gave up waiting for {what}: it is over.")
            if time.monotonic() > give_up_at:
                raise Failed(f"Waited {within_s:.0f} s in vain for {what}. The logs: {self.directory / 'logs'}")
            time.sleep(LOOK_S)


def now_ms() -> int:
    """Return the moment, in ms."""
    return time.time_ns() // 1_000_000


def _ask_to_end(member: Member) -> None:
    """Send SIGTERM to the process itself, as a supervisor does."""
    if member.exit_code is None:
        os.kill(member.pid, signal.SIGTERM)


def _lives(member: Member) -> bool:
    try:
        os.killpg(member.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2):
            return True
    except OSError:
        return False
