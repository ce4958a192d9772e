"""Executions in the canvas of a plain Celery orchestrator, which has a worker and a `tasks` package of its own.

Whatever stands behind an execution there runs when it ends, with its final response or its error, once: also when workers
are killed at any moment.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group
from celery import signature as celery_signature
from celery.canvas import Signature
from celery.exceptions import ChordError

from agent_exec import AgentExecClient, keys
from agent_exec.broker import fair_queue
from agent_exec.broker.fair_queue import DeadLetter
from agent_exec.store import BlockingStore
from tests.processes import wait_until
from tests.service.conftest import Service

DATABASE = 5
#: A second after which whatever were sent twice would have run.
QUIET_S = 1.0
CHAINS = 50

#: All that the orchestrator has: Celery, and nothing of ours.
ORCHESTRATOR = """
import json, os
from celery import Celery

app = Celery("orchestrator", broker=os.environ["ORCHESTRATOR_REDIS"], backend=os.environ["ORCHESTRATOR_REDIS"])
app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)


def ran(name, told):
    app.backend.client.rpush(f"ran:{name}", json.dumps(told))


@app.task(name="orchestrator.note")
def note(told, name):
    ran(name, told)
    return f"{name} was told"


@app.task(name="orchestrator.collect")
def collect(told, name):
    ran(name, told)
    return told


@app.task(name="orchestrator.failed")
def failed(task_id, name):
    ran(name, task_id)
"""


@dataclass
class Orchestrator:
    """The orchestrator's own process, and its application as this process sends by it."""

    service: Service
    app: Celery
    database: redis.Redis
    store: BlockingStore
    client: AgentExecClient

    def execute(self, query: str = "Hello there.", **options: Any) -> Signature:
        """Return an execution as a signature, told nothing of what stands before it."""
        message = a_message(query, **options)
        return self.sign("agent_exec.execute", kwargs={"message": message}, queue="agent_execution", immutable=True)

    def sign(self, task: str, **options: Any) -> Signature:
        """Return a signature of the application."""
        signature: Signature = celery_signature(task, app=self.app, **options)
        return signature

    def note(self, name: str) -> Signature:
        """Return a task of the orchestrator's that notes what it is told."""
        return self.sign("orchestrator.note", kwargs={"name": name})

    def collect(self, name: str) -> Signature:
        """Return one that returns what it is told, too."""
        return self.sign("orchestrator.collect", kwargs={"name": name})

    def failed(self, name: str) -> Signature:
        """Return one for errors."""
        return self.sign("orchestrator.failed", kwargs={"name": name})

    def ran(self, name: str) -> list[Any]:
        """Return what the task of a name was told, each time that it ran."""
        return [json.loads(told) for told in self.database.lrange(f"ran:{name}", 0, -1)]

    def told(self, name: str) -> Any:
        """Wait until the task of a name has run, and return what it was told; it must run once."""
        wait_until(lambda: self.ran(name), what=f"{name} to run", within_s=30)
        [told] = self.ran(name)
        return told

    def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters, newest first."""
        return self.store.run(fair_queue.dead_letters())


@pytest.fixture(scope="module")
def orchestrator(service: Service) -> Iterator[Orchestrator]:
    """A worker of ours and one of the orchestrator's, on a database of their own."""
    apart = service.apart(DATABASE, AGENT_EXEC_LEASE_S="2")
    url = apart.env["AGENT_EXEC_REDIS_URL"]
    home = apart.directory / "orchestrator"
    (home / "tasks").mkdir(parents=True)
    (home / "tasks" / "__init__.py").write_text(ORCHESTRATOR)
    (home / "tasks" / "celery.py").write_text("from tasks import app\n")
    there = ["-m", "celery", "-A", "tasks", "worker", "-n", "orchestrator@test", "-P", "threads", "-c", "4"]
    shell = ["sh", "-c", 'cd "$1" && shift && exec "$0" "$@"', sys.executable, str(home)]
    app = Celery("orchestrator", broker=url, backend=url, set_as_current=False)
    store = BlockingStore(url)
    with AgentExecClient(url) as client:
        try:
            apart.worker("of-the-canvas")
            theirs = apart.start("orchestrator", *shell, *there, "--loglevel", "INFO", ORCHESTRATOR_REDIS=url)
            wait_until(lambda: "ready." in theirs.output or not theirs.running, what="the orchestrator", within_s=30)
            assert "orchestrator.note" in theirs.output, theirs.output[-4_000:]
            yield Orchestrator(apart, app, store.redis, store, client)
        finally:
            apart.stop()
            close(app)
            store.redis.flushdb()
            store.close()


def close(app: Celery) -> None:
    """Close an application of Celery; results that are collected later find nothing to unsubscribe from."""
    backend = app.backend
    backend.remove_pending_result = lambda result: result
    backend.result_consumer.stop()
    backend.client.connection_pool.disconnect()
    app.close()


def a_message(query: str, *, agent_id: str = "desk", execution_id: str = "", **more: Any) -> dict[str, Any]:
    return {
        "task_id": str(uuid.uuid4()),
        "tenant_id": "acme",
        "agent_id": agent_id,
        "execution_id": execution_id or str(uuid.uuid4()),
        "created_at": "2026-01-01T00:00:00Z",
        "status": "pending",
        "type": "agent_execution",
        "priority": 5,
        "metadata": {"conversation_id": None, "session_id": None, "workflow_id": None, "source": "orchestrator"},
        "payload": {"query": query},
        **more,
    }


def named() -> str:
    return uuid.uuid4().hex


def id_of(execution: Signature) -> str:
    message: dict[str, Any] = execution.kwargs["message"]
    return str(message["execution_id"])


def test_a_chain_goes_on_with_the_final_response(orchestrator: Orchestrator) -> None:
    execution, name = orchestrator.execute(), named()
    sent = chain(execution, orchestrator.note(name)).apply_async()
    assert sent.get(timeout=30) == f"{name} was told"
    told = orchestrator.told(name)
    assert (told["execution_id"], told["status"]) == (id_of(execution), "completed")
    assert told == orchestrator.app.AsyncResult(id_of(execution)).get(timeout=5)
    assert told == sent.parent.get(timeout=5), "the Celery task has an id of its own"


def test_a_chain_may_hold_several_executions(orchestrator: Orchestrator) -> None:
    first, second, between, after = orchestrator.execute(), orchestrator.execute(), named(), named()
    sent = chain(first, orchestrator.note(between), second, orchestrator.note(after)).apply_async()
    sent.get(timeout=30)
    assert orchestrator.told(between)["execution_id"] == id_of(first)
    assert orchestrator.told(after)["execution_id"] == id_of(second)


def test_one_execution_may_stand_right_behind_another(orchestrator: Orchestrator) -> None:
    first, second, after = orchestrator.execute(), orchestrator.execute(), named()
    chain(first, second, orchestrator.note(after)).apply_async().get(timeout=30)
    assert orchestrator.told(after)["execution_id"] == id_of(second)
    assert orchestrator.client.get("acme", id_of(first)).status == "completed"


def test_an_app_with_the_fair_transport_has_its_canvas_too(orchestrator: Orchestrator) -> None:
    url, name = orchestrator.service.env["AGENT_EXEC_REDIS_URL"], named()
    app = Celery("fair", broker=url, backend=url, set_as_current=False)
    app.conf.broker_transport = "agent_exec.broker.transport:Transport"
    theirs = Orchestrator(orchestrator.service, app, orchestrator.database, orchestrator.store, orchestrator.client)
    first, second = (theirs.execute().set(queue="agent_execution:acme") for _ in range(2))
    sent = chain(first, second, theirs.note(name)).apply_async()
    assert orchestrator.told(name)["execution_id"] == id_of(second)
    assert sent.get(timeout=5) == f"{name} was told"
    close(app)


def test_a_group_gives_all_responses_in_their_order(orchestrator: Orchestrator) -> None:
    executions = [orchestrator.execute() for _ in range(3)]
    found = group(executions).apply_async().get(timeout=30)
    assert [response["execution_id"] for response in found] == [*map(id_of, executions)]


def test_the_body_of_a_chord_gets_all_responses_in_their_order(orchestrator: Orchestrator) -> None:
    executions, name = [orchestrator.execute() for _ in range(3)], named()
    found = chord(executions)(orchestrator.collect(name)).get(timeout=30)
    assert [response["execution_id"] for response in found] == [*map(id_of, executions)]
    assert orchestrator.told(name) == found


def test_executions_and_other_tasks_share_a_chord(orchestrator: Orchestrator) -> None:
    execution, inner, name = orchestrator.execute(), named(), named()
    other = orchestrator.sign("orchestrator.note", args=["x"], kwargs={"name": inner}, immutable=True)
    [response, note] = chord([execution, other])(orchestrator.collect(name)).get(timeout=30)
    assert (response["execution_id"], note) == (id_of(execution), f"{inner} was told")
    assert orchestrator.told(name) == [response, note]


def test_a_failed_execution_fails_its_chord(orchestrator: Orchestrator) -> None:
    name, error = named(), named()
    executions = [orchestrator.execute(), orchestrator.execute(agent_id="nobody")]
    sent = chord(executions)(orchestrator.collect(name).on_error(orchestrator.failed(error)))
    failure = sent.get(timeout=30, propagate=False)
    assert isinstance(failure, ChordError)
    assert "raised ExecutionFailed('agent_not_found'" in str(failure)
    assert orchestrator.told(error) == sent.id, "the body's, as ever"
    assert orchestrator.ran(name) == []


@pytest.mark.parametrize("agent_id", ["desk", "nobody"])
def test_a_link_or_an_error_link_runs_by_the_end(orchestrator: Orchestrator, agent_id: str) -> None:
    execution, good, bad = orchestrator.execute(agent_id=agent_id), named(), named()
    sent = execution.apply_async(
        task_id=id_of(execution), link=[orchestrator.note(good)], link_error=[orchestrator.failed(bad)]
    )
    runs, rests = (good, bad) if agent_id == "desk" else (bad, good)
    told = orchestrator.told(runs)
    if agent_id == "desk":
        assert told == sent.get(timeout=5)
        [child] = sent.children
        assert child.get(timeout=5) == f"{good} was told"
    else:
        assert told == sent.id
        with pytest.raises(Exception, match="agent_not_found") as failed:
            sent.get(timeout=5)
        assert type(failed.value).__name__ == "ExecutionFailed"
    time.sleep(QUIET_S)
    assert (len(orchestrator.ran(runs)), orchestrator.ran(rests)) == (1, [])


def test_a_failed_execution_ends_its_chain(orchestrator: Orchestrator) -> None:
    name, error = named(), named()
    work = chain(orchestrator.execute(agent_id="nobody"), orchestrator.note(name), orchestrator.note(name))
    sent = work.apply_async(link_error=orchestrator.failed(error))
    with pytest.raises(Exception, match="agent_not_found"):
        sent.get(timeout=30)
    assert orchestrator.told(error) == sent.parent.parent.id
    assert orchestrator.ran(name) == []


def test_a_cancelled_execution_is_a_failed_one(orchestrator: Orchestrator) -> None:
    execution = orchestrator.execute()
    execution.kwargs["message"]["payload"] |= {"query": "Please wait 9 s.", "agent_config": {"tools": ["slow"]}}
    good, bad = named(), named()
    execution.apply_async(
        task_id=id_of(execution), link=[orchestrator.note(good)], link_error=[orchestrator.failed(bad)]
    )
    wait_until(lambda: known(orchestrator, id_of(execution)), what="the execution")
    orchestrator.client.cancel("acme", id_of(execution))
    assert orchestrator.told(bad) == id_of(execution)
    assert orchestrator.ran(good) == []


def known(orchestrator: Orchestrator, execution_id: str) -> bool:
    with contextlib.suppress(Exception):
        return orchestrator.client.get("acme", execution_id).status == "processing"
    return False


def test_canvases_nest(orchestrator: Orchestrator) -> None:
    inner, outer, last = named(), named(), named()
    one, two, three = (orchestrator.execute() for _ in range(3))
    work = chain(
        group(one, chain(two, orchestrator.collect(inner))), orchestrator.collect(outer), three, orchestrator.note(last)
    )
    work.apply_async().get(timeout=30)
    assert orchestrator.told(inner)["execution_id"] == id_of(two)
    assert [response["execution_id"] for response in orchestrator.told(outer)] == [id_of(one), id_of(two)]
    assert orchestrator.told(last)["execution_id"] == id_of(three)


def test_an_execution_is_followed_by_a_whole_canvas(orchestrator: Orchestrator) -> None:
    execution, one, two, name = orchestrator.execute(), named(), named(), named()
    behind = chord(
        [orchestrator.note(one), chain(orchestrator.note(two), orchestrator.collect(two))], orchestrator.collect(name)
    )
    chain(execution, behind).apply_async().get(timeout=30)
    assert orchestrator.told(name) == [f"{one} was told", f"{two} was told"]
    assert orchestrator.told(one)["execution_id"] == id_of(execution)


def test_a_group_follows_an_execution(orchestrator: Orchestrator) -> None:
    execution, one, two = orchestrator.execute(), named(), named()
    sent = chain(execution, group(orchestrator.note(one), orchestrator.note(two))).apply_async()
    assert sent.get(timeout=30) == [f"{one} was told", f"{two} was told"]
    assert orchestrator.told(one) == orchestrator.told(two)


def test_a_link_goes_to_the_queue_and_priority_that_it_names(orchestrator: Orchestrator) -> None:
    execution, queue = orchestrator.execute(), f"queue-{named()}"
    execution.apply_async(link=[orchestrator.note("nobody").set(queue=queue, priority=7)])
    wait_until(lambda: orchestrator.database.llen(f"{queue}\x06\x166"), what="the message", within_s=30)
    orchestrator.database.delete(f"{queue}\x06\x166")


def test_a_message_that_comes_twice_is_followed_once(orchestrator: Orchestrator) -> None:
    execution, name = orchestrator.execute(), named()
    for _ in range(2):
        execution.apply_async(task_id=id_of(execution), link=[orchestrator.note(name)])
    assert orchestrator.told(name)["execution_id"] == id_of(execution)
    time.sleep(QUIET_S)
    assert len(orchestrator.ran(name)) == 1


@pytest.mark.parametrize("task", ["agent_exec.completion", "agent_exec.prompt", "agent_exec.anything"])
@pytest.mark.parametrize("where", ["link", "link_error", "chain", "chord", "deep"])
def test_a_link_that_names_a_task_of_ours_is_refused(orchestrator: Orchestrator, task: str, where: str) -> None:
    execution, ours = orchestrator.execute(), orchestrator.sign(task, kwargs={"tenant_id": "acme"})
    result = execution.clone().set(task_id=id_of(execution))
    match where:
        case "link" | "link_error":
            result.apply_async(**{where: [ours]})
        case "chain":
            chain(result, orchestrator.note("x"), ours).apply_async()
        case "chord":
            chord([result])(ours)
        case _:
            chain(
                result, chord([orchestrator.note("x"), orchestrator.note("x")], chain(orchestrator.note("x"), ours))
            )()
    with pytest.raises(Exception, match=f"invalid_message.*{task}"):
        orchestrator.app.AsyncResult(id_of(execution)).get(timeout=30)
    wait_until(lambda: [one for one in orchestrator.dead_letters() if id_of(execution) in one.message], what="a letter")
    [letter] = [one for one in orchestrator.dead_letters() if id_of(execution) in one.message]
    assert f"names the task '{task}'" in letter.reason


def test_a_hint_with_links_is_refused(orchestrator: Orchestrator) -> None:
    """Nobody but the service sends hints, and its own have none."""
    name, hint = named(), {"tenant_id": "acme", "execution_id": str(uuid.uuid4()), "step": "prompt", "version": 1}
    sent = orchestrator.sign("agent_exec.prompt", kwargs=hint, queue="agent_execution").apply_async(
        link=[orchestrator.note(name)], link_error=[orchestrator.note(name)]
    )
    wait_until(lambda: [one for one in orchestrator.dead_letters() if sent.id in one.message], what="a letter")
    [letter] = [one for one in orchestrator.dead_letters() if sent.id in one.message]
    assert "a hint with links" in letter.reason
    time.sleep(QUIET_S)
    assert orchestrator.ran(name) == []


@pytest.mark.parametrize("queue", ["agent_execution", "agent_tools:acme:desk", "ax:pending", "unacked"])
def test_a_link_to_a_queue_of_ours_is_refused(orchestrator: Orchestrator, queue: str) -> None:
    execution = orchestrator.execute()
    execution.apply_async(task_id=id_of(execution), link=[orchestrator.note("x").set(queue=queue)])
    with pytest.raises(Exception, match=f"invalid_message.*'{queue}'"):
        orchestrator.app.AsyncResult(id_of(execution)).get(timeout=30)


def test_a_refused_message_fails_the_canvas_that_waits_for_it(orchestrator: Orchestrator) -> None:
    name, error, good = named(), named(), orchestrator.execute()
    bad = orchestrator.execute()
    bad.kwargs["message"]["surprise"] = 1
    sent = chord([good, bad])(orchestrator.collect(name).on_error(orchestrator.failed(error)))
    failure = sent.get(timeout=30, propagate=False)
    assert isinstance(failure, ChordError)
    assert "invalid_message" in str(failure)
    assert orchestrator.told(error) == sent.id
    assert orchestrator.ran(name) == []


def test_whatever_workers_die_each_chain_goes_on_once(orchestrator: Orchestrator) -> None:
    """Two workers are killed in the middle of it, one after the other, and a third takes over."""
    service, executions, names = orchestrator.service, [orchestrator.execute() for _ in range(CHAINS)], []

    def done() -> int:
        return sum(bool(orchestrator.ran(name)) for name in names)

    third = service.processes["of-the-canvas"]
    victims = [service.worker(f"victim-{number}", AGENT_EXEC_WORKER_CONCURRENCY="8") for number in range(2)]
    third.send(signal.SIGSTOP)
    for execution in executions:
        names.append(named())
        chain(execution, orchestrator.note(names[-1])).apply_async()
    for victim, at in zip(victims, (CHAINS // 10, CHAINS // 2), strict=True):
        wait_until(lambda at=at: done() >= at, what="some of them", within_s=30)  # type: ignore[misc]
        victim.kill()
    third.send(signal.SIGCONT)
    wait_until(lambda: done() == CHAINS, what="all of them", within_s=30)
    time.sleep(QUIET_S)
    assert Counter(len(orchestrator.ran(name)) for name in names) == {1: CHAINS}
    assert [orchestrator.told(name)["execution_id"] for name in names] == [*map(id_of, executions)]
    assert orchestrator.database.zcard(keys.unsent_links()) == 0
