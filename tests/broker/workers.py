"""What the tests of real workers share: starting them, and a bench to work at."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from kombu import pools

from agent_exec import keys
from agent_exec.broker import fair_queue
from agent_exec.broker.transport import register
from agent_exec.hint import Hint
from agent_exec.script import Call
from agent_exec.store import BlockingStore

STOCK = "kombu.transport.redis:Transport"
#: The pools that people use. The application of the asyncio pool names it, for Celery's `-P` cannot.
POOLS = ["asyncio", "threads", "prefork"]

#: A prefork child whose last result nobody took waits for 30 s before it ends.
STOP_S = 40.0


def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Wait for a condition; returns what it returned."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)  # often enough for a test of a second, seldom enough to leave the processor to the workers
    return result


class Worker:
    """A `celery worker` process and its children."""

    def __init__(self, root: Path, url: str, log: Path, *, diary_url: str, pool: str, slots: int) -> None:
        self.name, self.log, self.pool = f"{log.stem}@test", log, pool
        self._stopping = False
        command = [
            "-b",
            url,
            "--result-backend",
            diary_url,
            "worker",
            "-c",
            str(slots),
            "-n",
            self.name,
            "-l",
            "INFO",
            "-E",
        ]
        command += ["-Q", "agent_execution,agent_tools,ordinary", "--without-mingle", "--without-gossip"]
        app = "fair_app"
        if pool == "asyncio":
            app = "fair_async_app"
        else:
            command += ["-P", pool]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", f"tests.broker.{app}", *command],
                cwd=root,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ready(self) -> Worker:
        until(lambda: "ready." in self.log.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def signal(self, number: int, *, children: bool = True) -> None:
        (os.killpg if children else os.kill)(self.process.pid, number)

    def begin_stop(self) -> None:
        """Ask it to end, once: a worker on its way out may have no more ears for a second signal, and die of it."""
        if not self._stopping and self.process.poll() is None:
            self.signal(signal.SIGTERM, children=False)
        self._stopping = True

    def stop(self) -> int:
        self.begin_stop()
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGUSR1, children=False)  # which Celery answers with where each thread stands
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
            self.signal(signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"{self.name} did not stop:\n{self.log.read_text()}") from None


def diary_of(url: str) -> str:
    """The diary is in another database than the broker."""
    return f"{url.rpartition('/')[0]}/9"


#: `start(pool, slots, url)` starts a worker.
Start = Callable[..., Worker]


class Bench:
    """What a test does to the workers' queue, and reads in their diary."""

    def __init__(self, url: str, diary_url: str) -> None:
        self.url, self.store = url, BlockingStore(url)
        self.pages: Any = redis.Redis.from_url(diary_url, decode_responses=True)
        register()
        self.app = Celery("producer", broker=url, set_as_current=False)
        self.app.conf.task_ignore_result = True

    def send(self, queue: str, name: str, for_s: float = 0.0, **options: Any) -> None:
        self.app.send_task("note", args=[name, for_s], queue=queue, **options)

    def note(self, queue: str, name: str) -> Call[bool]:
        """The call that `send` comes to, for use in one pipeline with others."""
        wire = json.loads(Hint(tenant_id="t", agent_id="a", execution_id="e", step="prompt", priority=0).message())
        wire["headers"].update(task="note", id=name)
        wire["body"] = base64.b64encode(json.dumps([[name], {}, {}]).encode()).decode()
        return fair_queue.push(queue, tag=name, priority=0, message=json.dumps(wire))

    def begun(self) -> list[str]:
        return [entry.split()[0] for entry in self.pages.lrange("begun", 0, -1)]

    def begun_at(self) -> dict[str, float]:
        return {name: float(at) for name, at in (entry.split() for entry in self.pages.lrange("begun", 0, -1))}

    def at_once_of_each(self) -> int:
        """How often the task that ran most often at once did so, for names that are groups of their own."""
        return max(self.at_once(name) for name in self.ended())

    def ended(self) -> set[str]:
        return set(self.pages.lrange("ended", 0, -1))

    def at_once(self, group: str) -> int:
        return max(int(number) for number in self.pages.lrange(f"at once:{group}", 0, -1))

    def depths(self) -> dict[str, fair_queue.FamilyDepth]:
        return self.store.run(fair_queue.depths())

    def idle(self) -> bool:
        """Nothing waits, nothing is in flight, and no key says otherwise: to be waited for while workers run."""
        return not self._left()

    def unsettled(self) -> set[str]:
        """The keys of what waits or is in flight. There are none from the moment that the last worker has stopped.

        What a tenant has used rests until a pop finds it without work, and no pop comes after that.
        """
        return {
            name for name in self._left() if name != keys.fair_virtual() and not name.startswith(keys.fair_ring(""))
        }

    def _left(self) -> set[str]:
        left = {name.decode() for name in self.store.redis.scan_iter("ax:queue:*")}
        return left - {keys.fair_clock(), keys.fair_dead(), keys.fair_share()}

    def close(self) -> None:
        self.app.close()
        pools.reset()
        self.store.close()
        self.pages.close()
