"""One real `celery worker` process of the pool's test application, with a queue of its own."""

import contextlib
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
from celery.result import AsyncResult

from tests.tasks.pool_app import app

APP = "tests.tasks.pool_app"
START_S = 30.0
END_S = 10.0
POLL_S = 0.02


def eventually(holds: Callable[[], Any], *, within_s: float = 10.0) -> Any:
    """Return what `holds()` returns once that is true; fail when it is not within `within_s`."""
    until_s = time.monotonic() + within_s
    while not (outcome := holds()):
        assert time.monotonic() < until_s, f"not within {within_s} s: {outcome!r}"
        time.sleep(POLL_S)
    return outcome


class PoolWorker:
    """A running worker; what it printed is in `log`."""

    def __init__(self, url: str, log_path: Path, arguments: Sequence[str], *, queue: str, app_name: str) -> None:
        self.queue = queue
        self.name = f"{queue}@test"
        self.log_path = log_path
        self.redis = redis.Redis.from_url(url, decode_responses=True)
        self._url = url
        command = ["-A", app_name, "-b", url, "--result-backend", url, "worker", "-Q", queue, "-n", self.name]
        quiet = ["-l", "INFO", "--without-gossip", "--without-mingle"]
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", *command, *quiet, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=log_path.parent,
                start_new_session=True,  # an interrupt of the test run reaches the workers through their fixture
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_until_ready(self) -> None:
        eventually(lambda: " ready." in self.log or self.process.poll() is not None, within_s=START_S)
        assert self.process.poll() is None, self.log

    def send(self, task: Any, *args: Any, **options: Any) -> AsyncResult:
        """Send `task` to this worker's queue."""
        return task.apply_async(args, queue=self.queue, **options)

    def diary(self, name: str) -> list[str]:
        """Return what the task that was given `name` wrote so far."""
        return list(self.redis.lrange(name, 0, -1))

    def tell(self, name: str) -> None:
        """Let the task `until_told` that was given `name` go on."""
        self.redis.rpush(f"{name} go", "go")

    def waiting(self) -> int:
        """Return how many messages are in the queue."""
        return int(self.redis.llen(self.queue))

    def unacknowledged(self) -> int:
        """Return how many messages of this queue are with a worker."""
        return sum(f'"{self.queue}"' in entry for entry in self.redis.hvals("unacked"))

    def stats(self) -> dict[str, Any]:
        """Return what `inspect stats` says of the pool."""
        replies = app.control.inspect([self.name], timeout=5, limit=1).stats()
        assert replies, "no answer"
        return dict(replies[self.name]["pool"])

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self, *, within_s: float = 20.0) -> int:
        """Wait for the end of the process and return its exit code."""
        return self.process.wait(within_s)


def diary_name() -> str:
    return f"diary {uuid.uuid4()}"


@contextlib.contextmanager
def pool_worker(
    url: str,
    directory: Path,
    *arguments: str,
    queue: str | None = None,
    app_name: str = APP,
    ready: bool = True,
) -> Iterator[PoolWorker]:
    """Run a worker with these extra `arguments` of `celery worker`, and end it."""
    queue = queue or f"q{uuid.uuid4().hex}"
    log_path = directory / f"{uuid.uuid4().hex}.log"
    worker = PoolWorker(url, log_path, arguments, queue=queue, app_name=app_name)
    try:
        if ready:
            worker.wait_until_ready()
        yield worker
    finally:
        worker.redis.close()
        worker.process.terminate()
        try:
            worker.process.wait(END_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


@contextlib.contextmanager
def sending_app(url: str) -> Iterator[None]:
    """Let the test process send tasks to the server at `url`, and read results."""
    app.conf.update(broker_url=url, result_backend=url)
    # kombu keeps its pools for all apps of a process, and other tests close them; what this app remembers of them is stale.
    app.amqp._producer_pool = None
    app._pool = None
    yield
    app.backend.result_consumer.stop()
    app.backend.client.close()
    app.close()
