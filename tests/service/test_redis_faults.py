"""Redis in trouble under a running service, by the faults' numbers: what was accepted ends once, and nobody needs a restart.

One service serves all of these, by way of a proxy before a Redis of its own. A caller submits all the while (`Caller`), and
tries again what was refused, under the same key; afterwards each execution that was accepted has ended once, its events
have no gap, the orchestrator has them all, every process is the one that was started, and none has filled its log.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent_exec import EventName, keys
from agent_exec.embedded import EmbeddedServer
from agent_exec.notifier_state import notifier_state
from agent_exec.store import BlockingStore
from chaos.proxy import Proxy
from sandbox.app import sandbox_environment
from tests.processes import answers, free_port, wait_until
from tests.sentinels import MASTER_NAME, SENTINEL_PASSWORD, Sentinels
from tests.service.conftest import TOKEN, Service

#: The first test of them starts the service; the others take ten seconds or so.
pytestmark = pytest.mark.timeout(150)
TENANT = "initech"
QUESTION = "Summarise: the night was quiet, the lamps were lit, and all went well until the morning came."
#: What the promise gives: an answer of a store that is away, and the return of the service (faults, "Availability").
REFUSED_WITHIN_S = 3.0
BACK_WITHIN_S = 5.0
#: What a busy machine may add to either.
SLACK_S = 2.0
#: A fault is worth some lines in a log, and not one for each thing that it touched.
MAX_COMPLAINTS = 60
#: How much a process may grow that waits for a Redis.
MAX_GROWTH_BYTES = 8_000_000


class Server(EmbeddedServer):
    """A server that may be made slow to read its log back; it looks at its clients each 1,024 commands."""

    is_slow_to_load = False

    def _configuration(self) -> str:
        return super()._configuration() + ("key-load-delay 200\n" if self.is_slow_to_load else "")


@dataclass
class Troubled:
    """A service on its own Redis, behind a proxy."""

    service: Service
    redis: Server
    proxy: Proxy
    #: What it was like to start while nothing answered.
    start: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def direct(self) -> Iterator[redis.Redis]:
        """Open a connection past the proxy."""
        with redis.Redis.from_url(self.redis.url, retry=Retry(NoBackoff(), 0)) as client:
            yield client

    def get(self, path: str) -> tuple[int, float]:
        """Ask the shim something; return the status and the seconds that it took."""
        began = time.monotonic()
        status = httpx.get(f"{self.service.shim_url}{path}", timeout=30, trust_env=False).status_code
        return status, time.monotonic() - began

    def refuses(self, code: str) -> None:
        """A submission and the readiness, asked for together, are refused in time; and the process lives."""
        with self.service.http(TENANT) as http, ThreadPoolExecutor() as pool:
            began = time.monotonic()
            submitted = pool.submit(http.post, "/v1/executions", json={"agent_id": "summariser", "query": "x"})
            ready = pool.submit(http.get, "/health/ready")
            live = pool.submit(http.get, "/health/live")
            for answer in (submitted.result(), ready.result()):
                assert answer.status_code == 503, f"{answer.request.url}: {answer.text}"
                assert answer.json()["code"] == code
                assert int(answer.headers["Retry-After"]) >= 1
            assert time.monotonic() - began < REFUSED_WITHIN_S + SLACK_S
            assert live.result().status_code == 200

    def back(self) -> float:
        """Return how long it took until an execution that was submitted now has ended; the promise holds."""
        began = time.monotonic()
        with self.service.http(TENANT) as http:

            def accepted() -> Any:
                answer = http.post("/v1/executions", json={"agent_id": "summariser", "query": "Summarise: back."})
                return answer.status_code == 202 and answer.json()["execution_id"]

            execution_id = wait_until(accepted, what="an acceptance", within_s=20)
            accepted_s = time.monotonic() - began
            wait_until(
                lambda: http.get(f"/v1/executions/{execution_id}").json().get("status") == "completed",
                what="an end",
                within_s=20,
            )
        ended_s = time.monotonic() - began
        measured(accepts_again_s=accepted_s, ends_again_s=ended_s)
        assert accepted_s < BACK_WITHIN_S + SLACK_S
        assert ended_s < BACK_WITHIN_S + 2 * SLACK_S
        return ended_s


class Caller:
    """Submits executions from a thread of its own until stopped; what is refused is submitted again under its key."""

    def __init__(self, troubled: Troubled, *, every_s: float) -> None:
        self._troubled = troubled
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._submit)
        self._unanswered: list[str] = []
        self.accepted: list[str] = []
        self.refused: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._heard_before = 0
        self._heard_before = self._frames()["last"]

    def _submit(self) -> None:
        number = 0
        with self._troubled.service.http(TENANT) as http:
            while not self._stopping.is_set():
                self._unanswered.append(f"{id(self)}-{number}")
                number += 1
                self._try(http)
                self._stopping.wait(self._every_s)
            while self._unanswered:
                self._try(http)
                time.sleep(0.05)

    def _try(self, http: httpx.Client) -> None:
        key = self._unanswered[-1]
        began = time.monotonic()
        answer = http.post(
            "/v1/executions",
            json={"agent_id": "summariser", "query": f"{QUESTION} {key}"},
            headers={"Idempotency-Key": key},
        )
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        if answer.status_code == 202:
            self.accepted.append(answer.json()["execution_id"])
            self._unanswered.pop()
        else:
            assert answer.status_code == 503, answer.text
            self.refused[answer.json()["code"]] += 1

    def __enter__(self) -> Caller:
        self._thread.start()
        wait_until(lambda: self.accepted, what="the first acceptance")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def settled(self, *, within_s: float = 30) -> None:
        """All that was accepted ends once, without a gap, and the orchestrator hears of all of it."""
        service = self._troubled.service
        assert len(set(self.accepted)) == len(self.accepted), "each key is one execution"
        began = time.monotonic()
        last: dict[str, int] = {}
        with service.client() as client:
            for execution_id in self.accepted:
                left_s = max(0.1, within_s - (time.monotonic() - began))
                final = client.wait(TENANT, execution_id, timeout_s=left_s)
                assert final.status == "completed", final.error
                frames = list(client.events(TENANT, execution_id))
                assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
                names = Counter(frame.event for frame in frames)
                assert (names[EventName.COMPLETED], names[EventName.FAILED]) == (1, 0)
                assert frames[-1].event == EventName.COMPLETED
                last[execution_id] = frames[-1].sequence
        with self._telling_of_the_notifier():
            wait_until(lambda: self._heard(last), what="the orchestrator to hear of it all", within_s=within_s)
        measured(
            accepted=len(self.accepted),
            refused=dict(self.refused),
            slowest_answer_s=self.slowest_s,
            all_ended_s=time.monotonic() - began,
        )
        assert self.slowest_s < REFUSED_WITHIN_S + SLACK_S

    @contextmanager
    def _telling_of_the_notifier(self) -> Iterator[None]:
        """Add what it says of itself to a failure."""
        try:
            yield
        except AssertionError as error:
            with closing(BlockingStore(self._troubled.service.redis.url)) as store:
                error.add_note(str(store.run(notifier_state())))
            error.add_note(self._troubled.service.processes["notifier"].output[-4_000:])
            raise

    def _heard(self, last: dict[str, int]) -> bool:
        heard: dict[str, set[int]] = {execution_id: set() for execution_id in last}
        for one in self._frames()["frames"]:
            if one["frame"].get("execution_id") in heard:
                heard[one["frame"]["execution_id"]].add(one["frame"]["sequence"])
        return all(heard[execution_id] == set(range(1, count + 1)) for execution_id, count in last.items())

    def _frames(self) -> dict[str, Any]:
        """Return the frames that came to the orchestrator since this caller began."""
        with self._troubled.service.neighbours() as http:
            answer: dict[str, Any] = http.get("/orchestrator/frames", params={"after": self._heard_before}).json()
            return answer


def measured(**figures: object) -> None:
    """Say what it came to; seen with `pytest -s`."""
    sys.stdout.write(f"{figures}\n")


def complaints(service: Service) -> dict[str, int]:
    """How many lines of each process's log are warnings or worse."""
    return {
        name: sum(
            f'"level": "{level}"' in line for line in process.output.splitlines() for level in ("warning", "error")
        )
        for name, process in service.processes.items()
    }


def memory(service: Service) -> dict[str, int]:
    return {
        name: psutil.Process(process.pid).memory_info().rss
        for name, process in service.processes.items()
        if name != "neighbours"
    }


def running(service: Service, directory: Path, url: str, *, pace: str = "0.2", **env: str) -> Service:
    """Return the service on the Redis at `url`, with neighbours of its own, and its other processes just started."""
    neighbours_port, shim_port = free_port(), free_port()
    neighbours_url = f"http://127.0.0.1:{neighbours_port}"
    directory.mkdir(exist_ok=True)
    more = {"AGENT_EXEC_REDIS_URL": url, "AGENT_EXEC_LEASE_S": "3", "AGENT_EXEC_NOTIFIER_BACKOFF_CAP_S": "1", **env}
    apart = replace(
        service,
        directory=directory,
        env={**service.env, **sandbox_environment(neighbours_url, TOKEN), **more},
        neighbours_url=neighbours_url,
        shim_url=f"http://127.0.0.1:{shim_port}",
        processes={},
    )
    played = ["sandbox", "neighbours", "--port", str(neighbours_port), "--pace", pace, "--token", TOKEN]
    apart.start("neighbours", "-m", *played)
    apart.start("shim", "-m", "uvicorn", "api_shim.app:app", "--port", str(shim_port))
    apart.start("notifier", "-m", "notifier")
    apart.start("worker", "-m", "celery", "-A", "tasks", "worker", "-n", "worker@trouble", "--loglevel", "INFO")
    wait_until(lambda: answers(f"{neighbours_url}/health"), what="the neighbours", within_s=30)
    wait_until(lambda: answers(f"{apart.shim_url}/health/live"), what="the shim", within_s=30)
    return apart


@pytest.fixture(scope="module")
def started(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Troubled]:
    """A service that was started while its Redis said nothing (F21), and then did."""
    directory = tmp_path_factory.mktemp("trouble")
    with Server(directory / "redis") as server, Proxy.before(server.url) as proxy:
        proxy.black_hole(True)
        apart = running(service, directory / "service", proxy.url)
        try:
            troubled = Troubled(replace(apart, redis=server), server, proxy)
            others = [process for name, process in apart.processes.items() if name != "neighbours"]
            wait_until(
                lambda: all("does not answer" in one.output for one in others),
                what="all to say what they wait for",
                within_s=30,
            )
            before = memory(apart)
            ready, took_s = troubled.get("/health/ready")
            troubled.start.update(ready=ready, took_s=took_s, live=troubled.get("/health/live")[0])
            time.sleep(2)  # nothing comes true here: it is the time in which nothing may happen
            troubled.start.update(
                growth={name: size - before[name] for name, size in memory(apart).items()},
                running=[one.running for one in others],
                complaints=complaints(apart),
                worker=apart.processes["worker"].output,
            )
            proxy.heal()
            began = time.monotonic()
            wait_until(lambda: troubled.get("/health/ready")[0] == 200, what="readiness", within_s=30)
            troubled.start.update(ready_s=time.monotonic() - began)
            worker = apart.processes["worker"]
            wait_until(lambda: "ready." in worker.output, what="the worker", within_s=30)
            troubled.start.update(worker_s=time.monotonic() - began)
            yield troubled
        finally:
            apart.stop()


@pytest.fixture
def troubled(started: Troubled) -> Iterator[Troubled]:
    """The service, well before and after: the same processes, their logs no longer than the fault deserves."""
    before, pids = complaints(started.service), {name: one.pid for name, one in started.service.processes.items()}
    yield started
    started.proxy.heal()
    more = {name: count - before[name] for name, count in complaints(started.service).items()}
    measured(complaints=more)
    ended = [name for name, one in started.service.processes.items() if not one.running or one.pid != pids[name]]
    assert not ended, {name: started.service.processes[name].output[-2_000:] for name in ended}
    assert max(more.values()) <= MAX_COMPLAINTS, more


def test_f21_a_redis_that_says_nothing_at_the_start_is_waited_for(started: Troubled) -> None:
    measured(**{name: value for name, value in started.start.items() if name != "worker"})
    assert (started.start["ready"], started.start["live"]) == (503, 200)
    assert started.start["took_s"] < REFUSED_WITHIN_S + SLACK_S
    assert all(started.start["running"]), "no process ends, so no supervisor starts it anew"
    assert "ready." not in started.start["worker"]
    assert max(started.start["growth"].values()) < MAX_GROWTH_BYTES
    assert max(started.start["complaints"].values()) <= MAX_COMPLAINTS
    assert started.start["ready_s"] < BACK_WITHIN_S + SLACK_S
    started.back()


def test_f15_replies_that_are_lost_after_their_effect_lose_and_double_nothing(troubled: Troubled) -> None:
    calls = len(troubled.service.calls())
    troubled.proxy.cut_on(b"EVALSHA", every=20)
    troubled.proxy.cut_on(b"BLMOVE", every=5)
    troubled.proxy.cut_on(b"BRPOP", every=5)
    with Caller(troubled, every_s=0.05) as caller:
        wait_until(lambda: len(caller.accepted) >= 60, what="sixty acceptances", within_s=40)
    lost = troubled.proxy.dropped
    troubled.proxy.heal()
    caller.settled()
    assert lost >= 20, "else nothing was tested"
    assert len(troubled.service.calls()) - calls == len(caller.accepted), "a lost reply repeats no provider call"


def test_f16_redis_killed_and_restarted_again_and_again(troubled: Troubled) -> None:
    with Caller(troubled, every_s=0.2) as caller:
        for _ in range(2):
            accepted = len(caller.accepted)
            wait_until(lambda accepted=accepted: len(caller.accepted) > accepted + 5, what="work")  # type: ignore[misc]
            troubled.redis.kill()
            wait_until(lambda: caller.refused["storage_unavailable"], what="a refusal")
            troubled.redis.start()
            troubled.back()
    caller.settled()


def test_f18_connections_killed_each_second(troubled: Troubled) -> None:
    with Caller(troubled, every_s=0.2) as caller, troubled.direct() as direct:
        for _ in range(6):
            for kind in ("normal", "pubsub"):
                direct.execute_command("CLIENT", "KILL", "TYPE", kind)
            time.sleep(1)
    caller.settled()
    assert caller.slowest_s < 2, "no stall"


@pytest.mark.parametrize("what", ["ALL", "WRITE"])
def test_f19_a_paused_redis_is_told_of_in_time(troubled: Troubled, what: str) -> None:
    with Caller(troubled, every_s=0.2) as caller:
        with troubled.direct() as direct:
            direct.execute_command("CLIENT", "PAUSE", 4_000, what)
        troubled.refuses("storage_unavailable")
        with troubled.direct() as direct:
            direct.set("ax:after", "1", px=1)  # answered when the pause is over
        troubled.back()
    caller.settled()


def test_f20_a_redis_that_stands_still_is_noticed_and_its_return_too(troubled: Troubled) -> None:
    with Caller(troubled, every_s=0.2) as caller:
        stopped = psutil.Process(troubled.redis.pid)
        stopped.send_signal(signal.SIGSTOP)
        try:
            troubled.refuses("storage_unavailable")
            time.sleep(5)  # past every time-out of a command
            troubled.refuses("storage_unavailable")
        finally:
            stopped.send_signal(signal.SIGCONT)
        troubled.back()
    caller.settled()


def test_f20_connections_whose_other_end_has_vanished_are_given_up(troubled: Troubled) -> None:
    with Caller(troubled, every_s=0.2) as caller:
        troubled.proxy.black_hole(True)
        troubled.refuses("storage_unavailable")
        time.sleep(2)
        troubled.proxy.black_hole(False)  # for new connections: those that met it stay silent
        troubled.back()
    caller.settled()


def test_f22_a_full_redis_accepts_nothing_and_finishes_all_afterwards(troubled: Troubled) -> None:
    with Caller(troubled, every_s=0.2) as caller, troubled.direct() as direct:
        direct.config_set("maxmemory", 1)
        try:
            wait_until(lambda: caller.refused["storage_full"], what="a refusal")
            troubled.refuses("storage_full")
            status, _ = troubled.get("/openapi.json")
            assert status == 200
            time.sleep(2)
        finally:
            direct.config_set("maxmemory", 0)
        troubled.back()
    caller.settled()


def test_a_redis_that_became_a_replica_accepts_nothing(troubled: Troubled) -> None:
    with Caller(troubled, every_s=0.2) as caller, troubled.direct() as direct:
        direct.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            wait_until(lambda: caller.refused["storage_full"], what="a refusal")
            troubled.refuses("storage_full")
            time.sleep(1)
        finally:
            direct.execute_command("REPLICAOF", "NO", "ONE")
        troubled.back()
    caller.settled()


def test_f25_a_redis_whose_disk_is_full_accepts_nothing(troubled: Troubled) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with Caller(troubled, every_s=0.2) as caller:
        written = max(path.stat().st_size for path in (troubled.redis.directory / "appendonlydir").glob("*.aof"))
        resource.prlimit(troubled.redis.pid, resource.RLIMIT_FSIZE, (written + 4_000, resource.RLIM_INFINITY))
        try:
            wait_until(lambda: caller.refused["storage_full"], what="a refusal", within_s=20)
            troubled.refuses("storage_full")
        finally:
            resource.prlimit(troubled.redis.pid, resource.RLIMIT_FSIZE, unlimited)
        troubled.back()
    caller.settled()


def test_f23_queues_that_were_flushed_are_filled_again_from_the_ledger(troubled: Troubled) -> None:
    worker = troubled.service.processes["worker"]
    worker.send(signal.SIGSTOP)
    try:
        with Caller(troubled, every_s=0.02) as caller:
            wait_until(lambda: len(caller.accepted) >= 20, what="twenty acceptances")
        with troubled.direct() as direct:
            flushed = list(direct.scan_iter(f"{keys.fair_queue()}:*"))
            assert flushed
            direct.delete(*flushed, "agent_execution", "agent_tools", "unacked", "unacked_index")
    finally:
        worker.send(signal.SIGCONT)
    caller.settled(within_s=40)


def test_f29_a_redis_that_reads_its_log_back_is_away(troubled: Troubled) -> None:
    with Caller(troubled, every_s=0.2) as caller:
        with troubled.direct() as direct, direct.pipeline(transaction=False) as pipeline:
            direct.bgrewriteaof()  # what the other tests wrote is not read back command by command
            wait_until(lambda: _is_rewritten(direct), what="the rewrite")
            for number in range(20_000):
                pipeline.set("ax:filler", number, px=60_000)
            pipeline.execute()
        troubled.redis.is_slow_to_load = True
        troubled.redis.kill()
        loading = threading.Thread(target=troubled.redis.start)
        loading.start()
        wait_until(lambda: _is_loading(troubled), what="the loading")
        troubled.refuses("storage_unavailable")
        loading.join(30)
        troubled.redis.is_slow_to_load = False
        troubled.back()
    caller.settled()


def _is_rewritten(direct: redis.Redis) -> bool:
    told: dict[str, Any] = direct.info("persistence")
    return not told["aof_rewrite_in_progress"] and not told["aof_rewrite_scheduled"]


def _is_loading(troubled: Troubled) -> bool:
    try:
        with troubled.direct() as direct:
            direct.ping()
    except redis.BusyLoadingError:
        return True
    except redis.RedisError:
        return False
    return False


def test_a_primary_that_dies_is_followed_to_its_replica_by_every_process(service: Service, tmp_path: Path) -> None:
    """Over sentinels: worker, shim and notifier, and Celery's broker beside the ledger, by the same settings."""
    with Sentinels(tmp_path) as cell:
        sentinel = {
            "AGENT_EXEC_REDIS_SENTINEL_MASTER": MASTER_NAME,
            "AGENT_EXEC_REDIS_SENTINEL_PASSWORD": SENTINEL_PASSWORD,
        }
        apart = running(service, tmp_path / "service", cell.url, **sentinel)
        try:
            troubled = Troubled(apart, service.redis, None)  # type: ignore[arg-type]  # no proxy here
            worker = apart.processes["worker"]
            wait_until(lambda: "ready." in worker.output, what="the worker", within_s=30)
            troubled.back()
            cell.kill_primary()
            wait_until(lambda: cell.primary_port() == cell.ports[1], what="the fail-over", within_s=20)
            troubled.back()
            assert all(process.running for process in apart.processes.values())
            assert max(complaints(apart).values()) <= MAX_COMPLAINTS
            lines = [json.loads(line) for line in apart.processes["shim"].output.splitlines() if line.startswith("{")]
            assert SENTINEL_PASSWORD not in json.dumps(lines)
        finally:
            apart.stop()
