"""Faults of workers, by their numbers: steps that kill or hold them, the machine's limits, two releases at once, the end."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from agent_exec import AgentExecClient, EventName, ExecutionRequest, FinalResponse, keys
from agent_exec.broker import fair_queue
from agent_exec.embedded import EmbeddedServer
from agent_exec.hint import HINT_VERSION, Hint
from agent_exec.ledger import ledger
from agent_exec.settings import read_settings
from agent_exec.store import BlockingStore
from tests.processes import Process, answers, free_port, wait_until
from tests.service.conftest import Service, streaming
from tests.service.odd_provider import OddProvider, odd_provider

#: A worker takes seconds to start, and some of these tests need four.
pytestmark = pytest.mark.timeout(180)

FAULTY = "tests.service.faulty_worker"
EXIT_HELD, EXIT_BY_TIMER = 70, 1
QUESTION = "Tell me at some length what you can do for me."
#: What Celery takes to end, beside what is waited for: consumer, connections, loop; on a machine that has much to do.
CLOSING_S = 12.0
#: Celery's own calls to a Redis that says nothing: five seconds each, a few one after the other.
BROKER_S = 30.0
#: Ten seconds past the grace for what is to be handed back, five for what is cancelled then, and the closing.
GIVING_UP_S = 15.0 + CLOSING_S


def submit(client: AgentExecClient, query: str = QUESTION, **request: Any) -> str:
    work = ExecutionRequest.model_validate({"agent_id": "desk", "query": query, **request})
    return client.submit(work, tenant_id="acme")


def by(provider: str) -> dict[str, Any]:
    """The part of a request that has another provider answer."""
    return {"agent_config": {"provider": provider, "fallbacks": []}}


def is_waiting(client: AgentExecClient, execution_id: str) -> bool:
    """Say whether the last that was told is that a step waits."""
    last = client.get("acme", execution_id).last_sequence
    [frame] = itertools.islice(client.events("acme", execution_id, after=last - 1), 1)
    return frame.data.get("stage") == "waiting"


def code_of(final: FinalResponse) -> str | None:
    return None if final.error is None else final.error.code


@pytest.fixture
def alone(service: Service) -> Iterator[Service]:
    """Workers on a database of their own, beside the sandbox that answers at once."""
    apart = service.apart(11, AGENT_EXEC_LEASE_S="2")
    yield apart
    apart.stop()
    with redis.Redis.from_url(apart.env["AGENT_EXEC_REDIS_URL"]) as database:
        database.flushdb()


@pytest.fixture
def odd() -> Iterator[OddProvider]:
    """A provider that never gives an answer."""
    with odd_provider() as provider:
        yield provider


class Supervisor:
    """Starts a worker, and another one whenever it has died, as an init system would."""

    def __init__(self, service: Service, **options: str) -> None:
        self.service = service
        self.options = options
        self.codes: list[int] = []
        self.worker = self._start()

    def _start(self) -> Process:
        return self.service.worker(f"supervised-{len(self.codes)}", app=FAULTY, **self.options)

    def look(self) -> None:
        """Start another worker if this one has ended."""
        if not self.worker.running:
            self.codes.append(self.worker.stop())
            self.worker = self._start()

    def until_over(self, client: AgentExecClient, execution_id: str, *, within_s: float) -> FinalResponse:
        """Keep a worker running until an execution has ended."""

        def over() -> FinalResponse | None:
            self.look()
            return client.get("acme", execution_id).response

        response = wait_until(over, what=execution_id, within_s=within_s)
        assert response is not None
        return response


def test_f06_a_step_that_kills_its_workers_is_poisoned_and_those_beside_it_are_not(paced: Service) -> None:
    with paced.client() as client:
        supervisor = Supervisor(paced)
        beside = [submit(client, f"What are your {number} best sides? Say it in 80 words.") for number in range(3)]
        for one in beside:
            wait_until(lambda one=one: streaming(client, one), what="tokens")  # type: ignore[misc]
        guilty = submit(client, "DIE now")
        final = supervisor.until_over(client, guilty, within_s=120)
        others = [supervisor.until_over(client, one, within_s=60) for one in beside]
    assert code_of(final) == "step_poisoned"
    assert supervisor.codes == [9, 9, 9], "one claim, one death"
    assert [one.status for one in others] == ["completed"] * 3


def test_f10_a_step_that_wants_more_memory_than_there_is_is_poisoned_and_its_worker_lives(alone: Service) -> None:
    worker = alone.worker("limited", app=FAULTY, ulimit="-v 4000000")
    with alone.client() as client:
        greedy = submit(client, "EAT it all")
        assert client.wait("acme", submit(client, "hello"), timeout_s=20).status == "completed"
        final = client.wait("acme", greedy, timeout_s=45)
    assert code_of(final) == "step_poisoned"
    assert worker.running
    assert worker.output.count("out of memory; the step is left to its lease") == 3


def test_f11_a_full_log_disk_stops_no_work(alone: Service) -> None:
    """The limit is on the size of any file that the worker writes, and its log is the one."""
    worker = alone.worker("chatty", ulimit="-f 24", AGENT_EXEC_LOG_LEVEL="INFO")
    with alone.client() as client:

        def full() -> bool:
            before = worker.log.stat().st_size
            assert client.wait("acme", submit(client, "hello"), timeout_s=20).status == "completed"
            return worker.log.stat().st_size == before

        wait_until(full, what="the log to be full", within_s=30)
        for _ in range(5):
            assert client.wait("acme", submit(client, "hello"), timeout_s=20).status == "completed"
    assert worker.running
    assert worker.output.count("Logging error") <= 1


@pytest.mark.parametrize("way", ["silent", "trickling"])
def test_f12_a_provider_that_hangs_ends_at_the_deadline_of_the_execution(
    alone: Service, odd: OddProvider, way: str
) -> None:
    alone.worker("patient", AGENT_EXEC_PROVIDERS=odd.setting)
    with alone.client() as client:
        began = time.monotonic()
        final = client.wait("acme", submit(client, deadline_s=3, **by(way)), timeout_s=30)
        assert code_of(final) == "timed_out"
        assert 2.5 <= time.monotonic() - began <= 10
        wait_until(lambda: odd.open == 0, what="the provider's socket to be closed", within_s=5)
    assert odd.asked[way] == 1


@pytest.mark.parametrize("way", ["silent", "trickling"])
def test_f12_a_provider_that_hangs_ends_at_the_limit_of_its_step(alone: Service, odd: OddProvider, way: str) -> None:
    alone.worker(
        "impatient",
        AGENT_EXEC_PROVIDERS=odd.setting,
        AGENT_EXEC_PROVIDER_TOTAL_TIMEOUT_S="1.5",
        AGENT_EXEC_MAX_RETRIES="1",
    )
    with alone.client() as client:
        final = client.wait("acme", submit(client, **by(way)), timeout_s=30)
    assert code_of(final) == "provider_timeout"
    assert odd.asked[way] == 2


def test_f12_an_execution_that_waits_for_a_retry_ends_at_its_deadline(alone: Service, odd: OddProvider) -> None:
    alone.worker("waiting", AGENT_EXEC_PROVIDERS=odd.setting)
    with alone.client() as client:
        began = time.monotonic()
        final = client.wait("acme", submit(client, deadline_s=3, **by("limited")), timeout_s=40)
        assert code_of(final) == "timed_out"
        assert 2.5 <= time.monotonic() - began <= 15
    assert odd.asked["limited"] == 1


@pytest.mark.parametrize(("fault", "exit_codes"), [("SPIN", {EXIT_HELD, EXIT_BY_TIMER}), ("HOLD", {EXIT_BY_TIMER})])
def test_f12_a_step_that_holds_the_loop_costs_its_worker_and_is_poisoned(
    alone: Service, fault: str, exit_codes: set[int]
) -> None:
    """`HOLD` keeps the interpreter's lock too, so that no thread of Python's is left to notice.

    On a machine that has too much to do, that thread is late for `SPIN` as well.
    """
    with alone.client() as client:
        supervisor = Supervisor(alone, AGENT_EXEC_LOOP_HARD_LIMIT_S="2.5")
        guilty = submit(client, f"{fault} for ever")
        final = supervisor.until_over(client, guilty, within_s=120)
        assert supervisor.until_over(client, submit(client, "hello"), within_s=40).status == "completed"
        last_words = [(alone.directory / f"supervised-{number}.log").read_text() for number in range(3)]
    assert code_of(final) == "step_poisoned"
    assert set(supervisor.codes) <= exit_codes
    assert len(supervisor.codes) == 3
    assert all("_spin" in words or "_hold_the_lock" in words for words in last_words), "the stack is told"


def test_f12_a_busy_loop_ends_at_the_executions_deadline(alone: Service) -> None:
    with alone.client() as client:
        supervisor = Supervisor(alone, AGENT_EXEC_LOOP_HARD_LIMIT_S="4")
        began = time.monotonic()
        final = supervisor.until_over(client, submit(client, "SPIN for ever", deadline_s=3), within_s=50)
        assert code_of(final) == "timed_out"
        assert time.monotonic() - began <= 33
    assert len(supervisor.codes) == 1


@pytest.mark.parametrize("version", [HINT_VERSION + 1, HINT_VERSION - 1])
def test_f13_hints_of_another_release_are_understood_or_left(alone: Service, version: int) -> None:
    """A newer one may have arguments that this release does not know; an older one has those of today."""
    newer = version > HINT_VERSION
    with alone.client() as client, contextlib.closing(BlockingStore(alone.env["AGENT_EXEC_REDIS_URL"])) as store:
        execution_id = submit(client)
        hint = Hint(tenant_id="acme", agent_id="desk", execution_id=execution_id, step="prompt", priority=5)
        assert store.run(fair_queue.purge(hint.queue)) == 1
        arguments = {**hint.arguments(), "version": version, **({"shard": 7} if newer else {})}
        store.run(fair_queue.push(hint.queue, tag=hint.task_id, priority=5, message=_with(hint, arguments)))
        worker = alone.worker("of-today")
        if newer:
            wait_until(lambda: "hint left to a newer worker" in worker.output, what="the hint to be left")
        # The due-time set sends another one: of this release, as it stands in for the newer worker here.
        assert client.wait("acme", execution_id, timeout_s=20).status == "completed"
    assert "Traceback" not in worker.output


def test_f13_records_of_another_release_are_understood_or_left(alone: Service) -> None:
    with alone.client() as client, redis.Redis.from_url(alone.env["AGENT_EXEC_REDIS_URL"]) as database:
        older, newer = submit(client), submit(client)
        database.hset(keys.execution("acme", older), "v", 0)
        database.hset(keys.execution("acme", newer), "v", 2)
        worker = alone.worker("of-today")
        assert client.wait("acme", older, timeout_s=20).status == "completed"
        wait_until(lambda: worker.output.count("step left to a newer worker") >= 2, what="it to be offered again")
        assert client.get("acme", newer).status == "pending", "left, not lost"
        database.hset(keys.execution("acme", newer), "v", 1)
        assert client.wait("acme", newer, timeout_s=20).status == "completed"


def test_f13_arguments_of_no_release_are_a_dead_letter(alone: Service) -> None:
    worker = alone.worker("of-today")
    with contextlib.closing(BlockingStore(alone.env["AGENT_EXEC_REDIS_URL"])) as store:
        right = Hint(tenant_id="acme", agent_id="desk", execution_id="e", step="prompt", priority=5).arguments()
        wrong: list[dict[str, Any]] = [
            {},
            {**right, "shard": 7},
            {**right, "version": "1"},
            {**right, "step": "completion.1"},
        ]
        for number, arguments in enumerate(wrong):
            hint = Hint(tenant_id="acme", agent_id="desk", execution_id=f"e{number}", step="prompt", priority=5)
            store.run(fair_queue.push(hint.queue, tag=f"wrong-{number}", priority=5, message=_with(hint, arguments)))
        wait_until(lambda: len(store.run(fair_queue.dead_letters())) == len(wrong), what="the dead letters")
        reasons = {letter.reason for letter in store.run(fair_queue.dead_letters())}
    assert reasons == {"arguments that are none of a prompt step's"}
    assert "Traceback" not in worker.output


def test_f14_what_was_accepted_without_any_worker_runs_when_they_return(alone: Service) -> None:
    port, cap = free_port(), 120
    limited = replace(alone, shim_url=f"http://127.0.0.1:{port}", env={**alone.env, "AGENT_EXEC_MAX_QUEUED": str(cap)})
    limited.start("limited-shim", "-m", "uvicorn", "api_shim.app:app", "--port", str(port))
    wait_until(lambda: answers(f"{limited.shim_url}/health/ready"), what="the shim", within_s=30)
    settings = read_settings(max_queued=cap)
    with AgentExecClient(alone.env["AGENT_EXEC_REDIS_URL"], settings=settings) as client, limited.http("acme") as http:
        work = ExecutionRequest(agent_id="desk", query="hello")
        accepted = [str(one) for one in client.submit_many([work] * (cap - 1), tenant_id="acme")]
        body = {"agent_id": "desk", "query": "hello"}
        last = http.post("/v1/executions", json=body)
        refused = http.post("/v1/executions", json=body)
        assert (last.status_code, refused.status_code) == (202, 429)
        assert refused.json()["code"] == "queue_full"
        alone.worker("returned-1")
        alone.worker("returned-2")
        for one in [*accepted, last.json()["execution_id"]]:
            assert client.wait("acme", one, timeout_s=40).status == "completed"
        assert http.post("/v1/executions", json=body).status_code == 202


def test_f26_clocks_that_are_an_hour_off_change_nothing(slow: Service) -> None:
    """Of two workers one is early, the other late; the one that runs the step dies, and its lease ends by Redis's clock."""
    early = slow.worker("early", app=FAULTY, TESTS_CLOCK_OFF_S="3600")
    slow.worker("late", app=FAULTY, TESTS_CLOCK_OFF_S="-3600")
    with slow.client() as client:
        while True:  # until one is the early worker's
            execution_id = submit(client, f"{QUESTION} {time.monotonic()}")
            wait_until(lambda: streaming(client, execution_id), what="tokens")  # noqa: B023 used at once
            if f"{execution_id}.completion.1" in early.output:
                break
        asked = slow.calls()[-1]["question"]
        early.kill()
        killed = time.monotonic()

        def asked_again() -> bool:
            return sum(call["question"] == asked for call in slow.calls()) == 2

        wait_until(asked_again, what="the other worker to ask", within_s=20)
        assert time.monotonic() - killed < 12
        final = client.wait("acme", execution_id, timeout_s=40)
        frames = list(client.events("acme", execution_id))
    assert final.status == "completed"
    assert final.finished_at is not None
    assert abs((final.finished_at - final.created_at).total_seconds()) < 60
    assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))


def test_executions_that_wait_for_a_retry_hold_no_slot(alone: Service, odd: OddProvider) -> None:
    """A worker with one slot, and eight executions whose provider asked for ten minutes."""
    alone.worker("narrow", AGENT_EXEC_PROVIDERS=odd.setting, AGENT_EXEC_WORKER_CONCURRENCY="1")
    with alone.client() as client:
        waiting = [submit(client, **by("limited")) for _ in range(8)]
        wait_until(lambda: all(is_waiting(client, one) for one in waiting), what="all to wait", within_s=20)
        for _ in range(3):
            assert client.wait("acme", submit(client, "hello"), timeout_s=20).status == "completed"
        assert [client.get("acme", one).status for one in waiting] == ["processing"] * len(waiting)
        for one in waiting:
            client.cancel("acme", one)
        assert [code_of(client.wait("acme", one, timeout_s=20)) for one in waiting] == ["cancelled"] * len(waiting)
    assert odd.asked["limited"] == 1, "the refusal of the first one is everybody's"


class Load:
    """Submits a question every now and then, no two alike, until it is stopped."""

    EVERY_S = 0.12

    def __init__(self, service: Service) -> None:
        self.ids: list[str] = []
        self._service = service
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with self._service.client() as client:
            for number in itertools.count():
                self.ids.append(submit(client, f"Question {number}: say in 90 words what you are."))
                if self._over.wait(self.EVERY_S):
                    return


def test_f08_a_rolling_restart_under_load_repeats_no_call(paced: Service) -> None:
    workers = [paced.worker(f"first-{number}") for number in range(2)]
    with paced.client() as client:
        with Load(paced) as load:
            for number, leaving in enumerate(workers):
                wait_until(lambda: sum(call["outcome"] == "open" for call in paced.calls()) >= 12, what="a load")
                assert leaving.stop(within_s=30 + CLOSING_S) == 0
                paced.worker(f"second-{number}")
        finals = [client.wait("acme", one, timeout_s=60) for one in load.ids]
    assert [final.status for final in finals] == ["completed"] * len(finals)
    asked = Counter(call["question"] for call in paced.calls())
    assert len(asked) == len(finals)
    assert set(asked.values()) == {1}, "no call was repeated"
    assert not any("step handed back" in worker.output for worker in workers)


def test_f09_a_cold_shutdown_hands_every_step_back_at_once(slow: Service) -> None:
    leaving = slow.worker("cold", AGENT_EXEC_LEASE_S="60")
    with slow.client() as client, contextlib.closing(BlockingStore(slow.env["AGENT_EXEC_REDIS_URL"])) as store:
        ids = [submit(client) for _ in range(5)]
        for one in ids:
            wait_until(lambda one=one: streaming(client, one), what="tokens")  # type: ignore[misc]
        leaving.send(signal.SIGQUIT)

        def handed_back() -> bool:
            steps = [store.run(ledger.look("acme", one)).steps["completion.1"] for one in ids]
            return not any('"state":"running"' in step for step in steps)

        wait_until(handed_back, what="every lease of a minute to be released", within_s=5)
        wait_until(lambda: not leaving.running, what="the worker to end", within_s=CLOSING_S)
        assert leaving.stop() == 0
        slow.worker("heir")
        for one in ids:
            assert client.wait("acme", one, timeout_s=40).status == "completed"
            names = Counter(frame.event for frame in client.events("acme", one))
            assert (names[EventName.STEP_RESTARTED], names[EventName.COMPLETED]) == (1, 1)


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGTERM, signal.SIGQUIT], 0),
        ([signal.SIGINT, signal.SIGINT], 1),
        ([signal.SIGTERM, signal.SIGTERM], 0),
    ],
)
def test_f09_a_second_signal_ends_a_warm_shutdown_in_good_order(
    slow: Service, signals: list[signal.Signals], code: int
) -> None:
    leaving = slow.worker("twice", AGENT_EXEC_LEASE_S="60", AGENT_EXEC_SHUTDOWN_GRACE_S="60")
    with slow.client() as client:
        execution_id = submit(client)
        wait_until(lambda: streaming(client, execution_id), what="tokens")
        leaving.send(signals[0])
        wait_until(lambda: "tasks waited for" in leaving.output, what="the warm shutdown")
        leaving.send(signals[1])
        wait_until(lambda: not leaving.running, what="the worker to end", within_s=CLOSING_S)
        assert leaving.stop() == code
        slow.worker("heir")
        assert client.wait("acme", execution_id, timeout_s=40).status == "completed"


@pytest.mark.parametrize("trouble", ["killed", "stopped"])
def test_a_worker_that_is_to_stop_while_redis_is_away_ends_all_the_same(
    slow: Service, tmp_path: Path, trouble: str
) -> None:
    """`killed` refuses connections, `stopped` takes them and says nothing."""
    with EmbeddedServer(tmp_path / "redis") as server:
        apart = replace(slow, env={**slow.env, "AGENT_EXEC_REDIS_URL": server.url}, processes={})
        worker = apart.worker("cut-off", AGENT_EXEC_SHUTDOWN_GRACE_S="1")
        with apart.client() as client:
            execution_id = submit(client)
            wait_until(lambda: streaming(client, execution_id), what="tokens")
        try:
            with _away(server, trouble):
                worker.send(signal.SIGTERM)
                wait_until(lambda: not worker.running, what="the worker to end", within_s=1 + BROKER_S + GIVING_UP_S)
                assert worker.stop() == 0
            apart.worker("heir")
            with apart.client() as client:
                assert client.wait("acme", execution_id, timeout_s=40).status == "completed"
        finally:
            apart.stop()


@contextlib.contextmanager
def _away(server: EmbeddedServer, trouble: str) -> Iterator[None]:
    if trouble == "killed":
        server.kill()
        yield
        server.restart()
    else:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(server.pid, signal.SIGCONT)


def _with(hint: Hint, arguments: dict[str, Any]) -> str:
    """Return a hint's message with other arguments."""
    body = json.dumps([[], arguments, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    return json.dumps({**json.loads(hint.message()), "body": base64.b64encode(body.encode()).decode()})
