"""A process dies at each boundary between two effects, by its name; the others finish what it had begun.

The table below has every script that changes something, and every request that does: a new script without a row fails the
first test. Rows say how often the provider is asked again for it (faults F01 to F04); nothing else may differ from a life
without the crash. What a worker leaves behind is taken up when its leases have ended: the clock is set forward for that,
and is the one thing here that is not real.
"""

from __future__ import annotations

import base64
import json
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import redis
from celery import Celery, signature

from agent_exec import AgentExecClient, EventName, ExecutionRequest, FinalResponse, Frame, keys
from agent_exec.batches.item import BatchRef
from agent_exec.broker import fair_queue
from agent_exec.callbacks import callbacks
from agent_exec.callbacks.callbacks import CallbackRef
from agent_exec.contract.callback import CallbackState
from agent_exec.contract.message import Message
from agent_exec.contract.schedule import ScheduleRequest
from agent_exec.errors import AgentExecError, ExecutionFailed
from agent_exec.store import BlockingStore
from tests.callbacks.played_end import time_passes
from tests.processes import Process, answers, free_port, wait_until
from tests.service.conftest import Service
from tests.service.crashing import SCRIPTS
from tests.service.nursery import Fork, Nursery

DATABASE = 10
MINUTE_MS = 60_000
#: A worker without what Celery workers tell each other, which costs a second at its start.
ALONE = ("--without-gossip", "--without-mingle", "--without-heartbeat")

#: Scripts that change nothing, or nothing that a crash beside them could lose, and why.
NO_BOUNDARY = {
    "ledger.look": "reads",
    "ledger.read": "reads",
    "ledger.list": "reads",
    "broker.size": "reads",
    "broker.depths": "reads",
    "broker.dead_letters": "reads",
    "broker.purge": "an operator's, who may say it again",
    "broker.wake": "passes on a wake-up; whoever waits for one looks by itself every second",
    "broker.requeue": "a message whose worker died before it comes back with its lease, as after broker.pop",
    "broker.release": "as broker.requeue",
    "agent_exec.observe": "reads",
    "ledger.due_links": "puts a look off by seconds; whoever dies with it is followed by the next look",
    "agent_exec.info": "reads",
    "agent_exec.writable": "a probe",
    "agent_exec.edition": "reads",
    "agent_exec.invalidate": "a command; who gets no answer says it again",
    "ledger.send_word": "a command; said again it is answered with the word that stands",
    "spending.usage": "reads",
    "agent_exec.notifier_state": "reads",
    "callbacks.look": "reads",
    "callbacks.page": "reads",
    "callbacks.backlog": "reads",
    "callbacks.redeliver": "a command; said again it changes nothing more",
    "batches.create": "who gets no answer says all of it again: nothing of it runs before it is sealed",
    "batches.add": "as batches.create",
    "batches.cancel": "a command; said again it changes nothing more",
    "batches.look": "reads",
    "batches.page": "reads",
    "batches.results": "reads",
    "batches.refuse": "who dies beside it is followed by another feeder, which refuses the item again",
    "schedules.create": "a command; said again with its key it changes nothing more",
    "schedules.pause": "a command; said again it changes nothing more",
    "schedules.resume": "as schedules.pause",
    "schedules.delete": "as schedules.pause",
    "schedules.look": "reads",
    "schedules.page": "reads",
    "notifier.left": "reads",
    "notifier.tenant_of": "reads",
    "notifier.replay": "a command; who gets no answer says it again",
    "notifier.let_go": "says goodbye; who dies before it is missed after its lease",
}


@dataclass(frozen=True)
class Row:
    """An effect, the story that reaches it, and how often the provider is asked again for a crash on either side of it."""

    story: str
    effect: str
    #: None: the side of another effect's row.
    before: int | None = 0
    after: int | None = 0

    @property
    def points(self) -> Iterator[tuple[str, str, int]]:
        """Each side that is a boundary: the story, the point, and the calls repeated."""
        for side, repeated in (("before", self.before), ("after", self.after)):
            if repeated is not None:
                yield self.story, f"{side}:{self.effect}", repeated


ROWS = [
    # An execution from the queue of a plain Celery app to its end: retrieval, two tools at once, two turns.
    Row("told", "broker.pop:plain", before=None),  # before it, nothing has begun
    Row("told", "ledger.accept"),
    Row("told", "broker.push:prompt"),
    Row("told", "broker.ack:plain"),
    Row("told", "broker.pop:prompt", before=None),
    Row("told", "ledger.claim:prompt"),
    Row("told", "broker.set_share"),
    Row("told", "ledger.note_tenant"),
    Row("told", "spending.note_limit"),
    Row("told", "ledger.record:prompt"),
    Row("told", "broker.push:operation"),
    Row("told", "broker.ack:prompt"),
    Row("told", "orchestrator.post"),
    Row("told", "ledger.record:operation"),
    Row("told", "broker.push:completion"),
    Row("told", "ledger.claim:completion"),
    Row("told", "spending.reserve:completion"),
    Row("told", "providers.admit:completion"),
    Row("told", "ledger.tell:completion"),
    Row("told", "provider.stream", after=1),  # F02
    Row("told", "provider.head", before=None, after=1),  # F01
    Row("told", "providers.answered", before=1, after=1),
    Row("told", "providers.settle:completion", before=1, after=1),
    Row("told", "spending.settle:completion", before=1, after=1),
    Row("told", "ledger.record:completion", before=1),  # F02, F03
    Row("told", "broker.push:tool_call"),
    Row("told", "broker.ack:completion"),  # F04
    Row("told", "ledger.claim:tool_call"),
    Row("told", "tool_registry.post"),
    Row("told", "ledger.join:tool_call"),
    Row("told", "ledger.join:tool_call@2"),
    Row("told", "broker.push:completion@2"),
    Row("told", "ledger.tell_pieces", before=1, after=1),
    Row("told", "ledger.finish:completion", before=1),
    Row("told", "broker.ack:completion@2"),
    # The provider refuses the first call: the step waits, and is due again.
    Row("refused by the provider", "ledger.wait:completion"),
    Row("refused by the provider", "ledger.due", before=None),
    Row("refused by the provider", "broker.push:completion@2"),
    # The worker is asked to stop while a tool runs, and has no time.
    Row("handed back", "ledger.release:tool_call"),
    Row("handed back", "broker.ack:tool_call"),
    # A tool that may be run once: what was not sent for certain is sent, all else is in doubt.
    Row("with an effect", "ledger.claim:tool_call"),
    Row("with an effect", "ledger.mark:tool_call"),
    Row("with an effect", "tool_registry.post"),
    Row("with an effect", "ledger.join:tool_call"),
    # A tool that takes its time, and heartbeats meanwhile.
    Row("slow", "ledger.renew"),
    Row("slow", "broker.renew"),
    # A task of the sender's own stands behind it.
    Row("in a chain", "ledger.accept"),
    Row("in a chain", "ledger.finish:completion", before=1),
    Row("in a chain", "agent_exec.commit"),
    Row("in a chain", "broker.ack:completion@2"),
    # An agent asks another one: the child is begun, its parent waits, it ends, its parent goes on.
    Row("asks another agent", "ledger.accept"),
    Row("asks another agent", "broker.push:prompt"),
    Row("asks another agent", "ledger.wait:tool_call"),
    Row("asks another agent", "broker.ack:tool_call"),
    Row("asks another agent", "ledger.finish:completion", before=1),
    Row("asks another agent", "broker.push:tool_call@3"),
    Row("asks another agent", "ledger.join:tool_call@2"),
    Row("asks another agent", "ledger.finish:completion@2", before=1),
    # Cancelled before any worker came.
    Row("cancelled", "ledger.finish:prompt"),
    # Written by a newer release.
    Row("newer", "ledger.put_off:prompt"),
    # A message that breaks the contract.
    Row("malformed", "ledger.refuse"),
    Row("malformed", "broker.dead_letter"),
    # What happened is told to the orchestrator, which acknowledges it.
    Row("notified", "notifier.hold"),
    Row("notified", "notifier.rewind"),
    Row("notified", "notifier.take", before=None),
    Row("notified", "notifier.sent"),
    Row("notified", "notifier.received"),
    Row("notified", "notifier.acked"),
    # The end is told to whoever asked for a callback, who takes it, refuses it, wants no more of it, or takes too long.
    Row("called back", "ledger.accept"),
    Row("called back", "ledger.finish:completion", before=1),
    Row("called back", "callbacks.take", before=None),
    Row("called back", "callback.post"),
    Row("called back", "callbacks.delivered"),
    Row("called back in vain", "callbacks.put_off"),
    Row("called back and gone", "callbacks.bury"),
    Row("called back too slowly", "callbacks.release"),
    # A batch of two is handed in, and fed by a worker; and a schedule is due.
    Row("in a batch", "batches.seal"),
    Row("in a batch", "batches.due", before=None),
    Row("in a batch", "batches.feed", before=None),
    Row("in a batch", "ledger.accept"),
    Row("in a batch", "ledger.accept@2"),
    Row("in a batch", "broker.push:prompt"),
    Row("in a batch", "batches.fed"),
    Row("in a batch", "ledger.finish:completion", before=2, after=1),  # the other one is in flight, too
    Row("on schedule", "schedules.due", before=None),
    Row("on schedule", "ledger.accept"),
    Row("on schedule", "broker.push:prompt"),
    Row("on schedule", "schedules.begun"),
    # The other doors.
    Row("shim accepts", "ledger.accept"),
    Row("shim accepts", "broker.push:prompt"),
    Row("shim cancels", "ledger.cancel"),
    Row("command submits", "ledger.accept"),
    Row("command submits", "broker.push:prompt"),
    Row("command prioritises", "ledger.prioritise"),
    Row("command prioritises", "broker.reprioritise:prompt"),
]
POINTS = [point for row in ROWS for point in row.points]


def test_every_script_has_a_row_or_a_reason() -> None:
    rows = {row.effect.partition(":")[0].partition("@")[0] for row in ROWS}
    assert set(SCRIPTS.values()) - rows == set(NO_BOUNDARY)
    assert not rows & set(NO_BOUNDARY)


@dataclass
class Stage:
    """A service of its own, whose one whole worker stands still until it is told to go on."""

    service: Service
    heir: Process
    nursery: Nursery
    store: BlockingStore
    client: AgentExecClient
    shim_url: str

    def dies(self, point: str, *command: str, **env: str) -> Fork:
        """Start a process that dies at the point."""
        return self.nursery.fork(point, *command, env={**self.service.env, **env})

    def worker_dies(self, point: str, **env: str) -> Fork:
        """Start a worker that dies at the point."""
        name = f"crash-{uuid.uuid4().hex[:8]}@test"
        return self.dies(point, "celery", "-A", "tasks", "worker", "-n", name, "--loglevel", "INFO", *ALONE, **env)

    def died(self, process: Fork, point: str) -> None:
        """Wait until it has; it must not have ended in another way."""
        wait_until(lambda: not process.running, what=f"the crash {point}", within_s=30)
        assert f"died {point}\n" in process.output, process.output[-4_000:]

    def go_on(self) -> None:
        """A minute has passed since the crash: no lease and no wait outlasts it. The whole worker goes on."""
        for zset in (keys.pending(), keys.unsent_links(), keys.fair_lease(), keys.due_batches()):
            for member in self.store.redis.zrange(zset, 0, -1):
                self.store.redis.zincrby(zset, -MINUTE_MS, member)
        for key in self.store.redis.scan_iter(f"{keys.execution_prefix()}*"):
            for field, packed in self.store.redis.hgetall(key).items():
                if field.startswith(b"step:"):
                    state = json.loads(packed)
                    moments = {name: state[name] - MINUTE_MS for name in ("lease_ms", "due_ms") if state.get(name)}
                    self.store.redis.hset(key, field.decode(), json.dumps(state | moments))
        self.heir.send(signal.SIGCONT)

    def over(self, message: Message) -> FinalResponse:
        """Wait for the end of an execution, and until nothing of it is left to do."""
        wait_until(lambda: self._response(message), what="the end", within_s=30)
        wait_until(self.is_idle, what="nothing left in any queue, lease or due-time set")
        final = self._response(message)
        assert final is not None
        return final

    def is_idle(self) -> bool:
        """Say whether nothing waits, runs or is due."""
        depths = self.store.run(fair_queue.depths()).values()
        counts = [self.store.redis.zcard(key) for key in (keys.pending(), keys.fair_lease(), keys.queued("acme"))]
        return not any([*counts, *[depth.waiting + depth.in_flight for depth in depths]])

    def _response(self, message: Message) -> FinalResponse | None:
        try:
            return self.client.get(message.tenant_id, message.execution_id).response
        except AgentExecError:  # the message is still on its way through the broker
            return None

    def send(self, message: Any) -> None:
        """Send a standard message as a Celery app does that has nothing of ours."""
        app = Celery(broker=self.service.env["AGENT_EXEC_REDIS_URL"], set_as_current=False)
        app.send_task("agent_exec.execute", kwargs={"message": message}, queue="agent_execution")
        app.close()

    def asked(self, message: Message) -> int:
        """Count the calls that providers took for an execution; what they refuse costs nothing."""
        journals = [self._journal(f"/{provider}/journal")["calls"] for provider in ("openai", "groq")]
        question = message.payload.query[:200]
        return sum(call["question"] == question for calls in journals for call in calls)

    def tools(self, message: Message) -> dict[str, int]:
        """Return how often each idempotency key of an execution took effect."""
        effects: dict[str, int] = self._journal("/registry/journal")["effects"]
        return {key: effects[key] for key in effects if key.startswith(message.execution_id)}

    def tool_runs(self, message: Message) -> bool:
        """Say whether a tool was asked for."""
        return any(call["execution_id"] == message.execution_id for call in self.tool_requests())

    def tool_requests(self) -> list[dict[str, Any]]:
        """Return all requests to run a tool."""
        calls: list[dict[str, Any]] = self._journal("/registry/journal")["calls"]
        return calls

    def _journal(self, path: str) -> dict[str, Any]:
        with self.service.neighbours() as http:
            journal: dict[str, Any] = http.get(path).raise_for_status().json()
            return journal


@pytest.fixture(scope="module")
def whole_stage(service: Service) -> Iterator[Stage]:
    """A database of its own, a whole worker and a whole shim."""
    apart = service.apart(DATABASE, AGENT_EXEC_TOKEN_FLUSH_MS="0")
    port = free_port()
    url = apart.env["AGENT_EXEC_REDIS_URL"]
    heir = apart.worker("heir", AGENT_EXEC_LOOP_HARD_LIMIT_S="0")
    apart.start("whole-shim", "-m", "uvicorn", "api_shim.app:app", "--port", str(port))
    wait_until(lambda: answers(f"http://127.0.0.1:{port}/health/ready"), what="the whole shim", within_s=30)
    store = BlockingStore(url)
    nursery = Nursery(apart.directory)
    with AgentExecClient(url) as client:
        yield Stage(apart, heir, nursery, store, client, f"http://127.0.0.1:{port}")
    nursery.close()
    heir.send(signal.SIGCONT)
    apart.stop()
    store.redis.flushdb()
    store.close()


@pytest.fixture
def stage(whole_stage: Stage) -> Iterator[Stage]:
    """The same, empty, and the whole worker standing still."""
    whole_stage.store.redis.flushdb()
    whole_stage.heir.send(signal.SIGSTOP)
    yield whole_stage
    whole_stage.nursery.clear()
    whole_stage.heir.send(signal.SIGCONT)


def a_message(query: str, *, tenant_id: str = "globex", agent_id: str = "researcher", **payload: Any) -> Message:
    return Message.model_validate_json(
        json.dumps(raw_message(query, tenant_id=tenant_id, agent_id=agent_id, **payload))
    )


def raw_message(query: str, *, tenant_id: str, agent_id: str, **payload: Any) -> dict[str, Any]:
    number = "".join(letter for letter in uuid.uuid4().hex if letter.isalpha())
    return {
        "task_id": str(uuid.uuid4()),
        "tenant_id": tenant_id,
        "agent_id": agent_id,
        "execution_id": str(uuid.uuid4()),
        "created_at": "2026-01-01T00:00:00Z",
        "status": "pending",
        "type": "agent_execution",
        "priority": 5,
        "metadata": {"conversation_id": None, "session_id": None, "workflow_id": None, "source": "orchestrator"},
        "payload": {"query": f"{query} My reference is {number}.", **payload},
    }


def two_turns() -> Message:
    return a_message("What does the handbook say about holidays, and what is 12 * 12?")


def slow_tool() -> Message:
    return a_message("Please wait 1.5 s.", tenant_id="acme", agent_id="desk", agent_config={"tools": ["slow"]})


def told(stage: Stage, point: str, repeated: int) -> None:
    message = two_turns()
    stage.send(message.model_dump(mode="json", exclude_unset=True))
    stage.died(stage.worker_dies(point), point)
    stage.go_on()
    as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=2)


def refused_by_the_provider(stage: Stage, point: str, repeated: int) -> None:
    message = two_turns()
    stage.client.submit(message)
    stage.died(stage.worker_dies(point, GROQ_API_KEY=f"sk-sandbox-limited-{uuid.uuid4()}"), point)
    stage.go_on()
    as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=2)


def handed_back(stage: Stage, point: str, repeated: int) -> None:
    message = slow_tool()
    stage.client.submit(message)
    worker = stage.worker_dies(point, AGENT_EXEC_SHUTDOWN_GRACE_S="0")
    wait_until(lambda: stage.tool_runs(message), what="the tool", within_s=30)
    worker.send(signal.SIGTERM)
    stage.died(worker, point)
    stage.go_on()
    as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=1)


def with_an_effect(stage: Stage, point: str, repeated: int) -> None:
    message = a_message(
        "Please send a note to ann saying hello.",
        tenant_id="acme",
        agent_id="desk",
        agent_config={"tools": ["send_note"]},
    )
    stage.client.submit(message)
    stage.died(stage.worker_dies(point), point)
    stage.go_on()
    if point in ("after:ledger.mark:tool_call", "before:tool_registry.post"):
        is_in_doubt(stage, message, effects=0)
    elif point in ("after:tool_registry.post", "before:ledger.join:tool_call"):
        is_in_doubt(stage, message, effects=1)
    else:
        as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=1)


def slow(stage: Stage, point: str, repeated: int) -> None:
    message = slow_tool()
    stage.client.submit(message)
    stage.died(stage.worker_dies(point, AGENT_EXEC_LEASE_S="1.5", AGENT_EXEC_HEARTBEAT_S="0.2"), point)
    stage.go_on()
    as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=1)


def in_a_chain(stage: Stage, point: str, repeated: int) -> None:
    message, url = two_turns(), stage.service.env["AGENT_EXEC_REDIS_URL"]
    app = Celery(broker=url, backend=url, set_as_current=False)
    behind = signature("behind", app=app, queue="behind")
    arguments = {"message": message.model_dump(mode="json", exclude_unset=True)}
    app.send_task("agent_exec.execute", kwargs=arguments, queue="agent_execution", link_error=behind, chain=[behind])
    stage.died(stage.worker_dies(point), point)
    stage.go_on()
    as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=2)
    wait_until(lambda: not stage.store.redis.zcard(keys.unsent_links()), what="the links")
    [sent] = stage.store.redis.lrange("behind", 0, -1)
    [[told], _, _] = json.loads(base64.b64decode(json.loads(sent)["body"]))
    assert told["execution_id"] == message.execution_id
    app.close()


def asks_another_agent(stage: Stage, point: str, repeated: int) -> None:
    message = a_message("Ask the desk what 12 * 12 is.", tenant_id="acme", agent_id="concierge")
    stage.client.submit(message)
    stage.died(stage.worker_dies(point), point)
    stage.go_on()
    final = stage.over(message)
    assert (final.status, final.turns) == ("completed", 2)
    frames = list(stage.client.events("acme", message.execution_id))
    in_order(frames, EventName.COMPLETED)
    [call] = final.tool_calls
    child = call.child_execution_id
    assert child is not None
    there = [one.decode() for one in stage.store.redis.zrange(keys.executions("acme"), 0, -1)]
    assert sorted(there) == sorted([message.execution_id, child]), "one child"
    below = message.model_copy(update={"execution_id": child})
    # It was asked what its parent was: the calls of both are counted together.
    as_if_nothing_had_happened(stage, below, calls=4 + repeated, tools=1)
    assert call.result == stage.client.wait("acme", child, timeout_s=1).output.text


def cancelled(stage: Stage, point: str, repeated: int) -> None:
    message = two_turns()
    stage.client.submit(message)
    stage.client.cancel(message.tenant_id, message.execution_id)
    stage.died(stage.worker_dies(point), point)
    stage.go_on()
    is_cancelled(stage, message)


def newer(stage: Stage, point: str, repeated: int) -> None:
    message = two_turns()
    stage.client.submit(message)
    record = keys.execution(message.tenant_id, message.execution_id)
    version = stage.store.redis.hget(record, "v")
    stage.store.redis.hset(record, "v", 99)
    stage.died(stage.worker_dies(point), point)
    stage.store.redis.hset(record, "v", version)  # to the worker that goes on it is no newer than itself
    stage.go_on()
    as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=2)


def malformed(stage: Stage, point: str, repeated: int) -> None:
    message = raw_message("?", tenant_id="acme", agent_id="desk", surprise=1)
    stage.send(message)
    stage.died(stage.worker_dies(point), point)
    stage.go_on()
    wait_until(lambda: stage.store.run(fair_queue.dead_letters()) and stage.is_idle(), what="the dead letter")
    [letter] = stage.store.run(fair_queue.dead_letters())
    assert "surprise" in letter.reason
    url = stage.service.env["AGENT_EXEC_REDIS_URL"]
    app = Celery(broker=url, backend=url, set_as_current=False)
    with pytest.raises(Exception, match=r"invalid_message.*surprise") as refused:
        app.AsyncResult(message["execution_id"]).get(timeout=5)
    assert type(refused.value).__name__ == ExecutionFailed.__name__
    app.close()


def in_a_batch(stage: Stage, point: str, repeated: int) -> None:
    messages = [two_turns() for _ in range(2)]
    requests = [ExecutionRequest(agent_id="researcher", query=message.payload.query) for message in messages]
    if "seal" in point:
        lines = "".join(f"{request.model_dump_json(exclude_unset=True)}\n" for request in requests).encode()
        first, url = shim_dies(stage, point)
        key = {"Idempotency-Key": str(uuid.uuid4()), "Authorization": f"Bearer {stage.service.keys['globex']}"}
        key["Content-Type"] = "application/jsonl"
        with httpx.Client(headers=key, timeout=20, trust_env=False) as http:
            with pytest.raises(httpx.TransportError):
                http.post(f"{url}/v1/batches", content=lines)
            stage.died(first, point)
            answer = http.post(f"{stage.shim_url}/v1/batches", content=lines)
        assert answer.status_code == 202
        assert answer.json()["replayed"] is point.startswith("after")
        batch_id = answer.json()["batch_id"]
    else:
        batch_id = stage.client.submit_batch(requests, tenant_id="globex")
        stage.died(stage.worker_dies(point), point)
    stage.go_on()
    wait_until(lambda: stage.client.get_batch("globex", batch_id).finished_at, what="the batch to end", within_s=30)
    ref = BatchRef("globex", batch_id)
    assert len(stage.store.redis.zrange(keys.executions("globex"), 0, -1)) == 2
    for index, message in enumerate(messages):
        message = message.model_copy(update={"execution_id": ref.item(index).execution_id})
        as_if_nothing_had_happened(stage, message, calls=stage.asked(message), tools=2)
    assert sum(map(stage.asked, messages)) <= 4 + repeated
    view = stage.client.get_batch("globex", batch_id)
    assert (view.status, view.completed) == ("completed", 2)
    assert [one.status for one in stage.client.batch_results("globex", batch_id)] == ["completed"] * 2
    assert not stage.store.redis.zcard(keys.due_batches())


def on_schedule(stage: Stage, point: str, repeated: int) -> None:
    message = two_turns()
    asked = ScheduleRequest(
        cron="0 0 1 1 *", request=ExecutionRequest(agent_id="researcher", query=message.payload.query)
    )
    made = stage.client.create_schedule(asked, tenant_id="globex")
    due_ms = int(datetime.now(UTC).timestamp() * 1000) - 1_000  # it is due now
    stage.store.redis.hset(keys.schedule("globex", made.schedule_id), "next_ms", due_ms)
    stage.store.redis.zadd(keys.due_schedules(), {f"globex {made.schedule_id}": due_ms})
    stage.died(stage.worker_dies(point), point)
    stage.store.redis.zadd(keys.due_schedules(), {f"globex {made.schedule_id}": due_ms}, xx=True, lt=True)
    stage.go_on()
    stands = lambda: stage.client.get_schedule("globex", made.schedule_id)  # noqa: E731 a sentence in the wait below
    wait_until(
        lambda: stands().last_execution_id and stands().next_at == made.next_at, what="the next time", within_s=30
    )
    execution_id = stands().last_execution_id
    assert [one.decode() for one in stage.store.redis.zrange(keys.executions("globex"), 0, -1)] == [execution_id]
    message = message.model_copy(update={"execution_id": execution_id})
    as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=2)
    stage.client.delete_schedule("globex", made.schedule_id)


def shim_accepts(stage: Stage, point: str, repeated: int) -> None:
    """F53."""
    message = two_turns()
    work = {"agent_id": "researcher", "query": message.payload.query}
    key = {"Idempotency-Key": str(uuid.uuid4()), "Authorization": f"Bearer {stage.service.keys['globex']}"}
    first, url = shim_dies(stage, point)
    with httpx.Client(headers=key, timeout=20, trust_env=False) as http:
        with pytest.raises(httpx.TransportError):
            http.post(f"{url}/v1/executions", json=work)
        stage.died(first, point)
        answer = http.post(f"{stage.shim_url}/v1/executions", json=work)
    assert answer.status_code == 202
    assert answer.json()["replayed"] is (point != "before:ledger.accept")
    stage.go_on()
    [execution_id] = [one.decode() for one in stage.store.redis.zrange(keys.executions("globex"), 0, -1)]
    assert answer.json()["execution_id"] == execution_id
    message = message.model_copy(update={"execution_id": execution_id})
    as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=2)


def shim_cancels(stage: Stage, point: str, repeated: int) -> None:
    message = two_turns()
    stage.client.submit(message)
    key = {"Authorization": f"Bearer {stage.service.keys['globex']}"}
    path = f"/v1/executions/{message.execution_id}/cancel"
    first, url = shim_dies(stage, point)
    with httpx.Client(headers=key, timeout=20, trust_env=False) as http:
        with pytest.raises(httpx.TransportError):
            http.post(f"{url}{path}")
        stage.died(first, point)
        assert http.post(f"{stage.shim_url}{path}").json()["status"] == "cancel_requested"
    stage.go_on()
    is_cancelled(stage, message)


def shim_dies(stage: Stage, point: str) -> tuple[Fork, str]:
    port = free_port()
    process = stage.dies(point, "uvicorn", "api_shim.app:app", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: answers(f"{url}/health/live"), what="the shim that is to die", within_s=30)
    return process, url


def command_submits(stage: Stage, point: str, repeated: int) -> None:
    message = two_turns()
    query = message.payload.query
    command = ("agent-exec", "submit", "--tenant", "globex", "--agent", "researcher", "--query", query)
    key = str(uuid.uuid4())
    stage.died(stage.dies(point, *command, "--idempotency-key", key), point)
    again = {"agent_id": "researcher", "query": query, "context": {}, "priority": 5}
    request = ExecutionRequest.model_validate_json(json.dumps(again))
    execution_id = stage.client.submit(request, tenant_id="globex", idempotency_key=key)
    assert [one.decode() for one in stage.store.redis.zrange(keys.executions("globex"), 0, -1)] == [execution_id]
    stage.go_on()
    message = message.model_copy(update={"execution_id": execution_id})
    as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=2)


def command_prioritises(stage: Stage, point: str, repeated: int) -> None:
    message = two_turns()
    stage.client.submit(message)
    command = ("agent-exec", "prioritise", message.execution_id, "--tenant", "globex", "--priority", "2")
    stage.died(stage.dies(point, *command), point)
    stage.go_on()
    as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=2)


def notified(stage: Stage, point: str, repeated: int) -> None:
    message = two_turns()
    stage.client.submit(message)
    stage.go_on()
    as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=2)
    quickly = {"AGENT_EXEC_NOTIFIER_LEASE_S": "0.5"}
    stage.died(stage.dies(point, "notifier", **quickly), point)
    with stage.service.start(f"heir-of-{point}", "-m", "notifier", **quickly):
        outbox = (keys.outbox(), keys.outbox_unacked())
        wait_until(lambda: not any(map(stage.store.redis.zcard, outbox)), what="the outbox to be empty", within_s=30)
    heard = [frame["sequence"] for frame in stage.service.frames(message.execution_id)]
    last = stage.client.get(message.tenant_id, message.execution_id).last_sequence
    assert list(dict.fromkeys(heard)) == list(range(1, last + 1)), "each at least once, in order"


def called_back(stage: Stage, point: str, repeated: int) -> None:
    with_a_callback(stage, point, repeated, mode={}, then="delivered")


def called_back_in_vain(stage: Stage, point: str, repeated: int) -> None:
    with_a_callback(stage, point, repeated, mode={"status": 500}, then="waiting")


def called_back_and_gone(stage: Stage, point: str, repeated: int) -> None:
    with_a_callback(stage, point, repeated, mode={"status": 410}, then="dead")


def called_back_too_slowly(stage: Stage, point: str, repeated: int) -> None:
    with_a_callback(stage, point, repeated, mode={"delay_s": 5}, then="sending")


def with_a_callback(stage: Stage, point: str, repeated: int, *, mode: dict[str, int], then: CallbackState) -> None:
    message, hooks = two_turns(), f"{stage.service.neighbours_url}/receiver"
    metadata = message.metadata.model_copy(update={"callback_url": f"{hooks}/hooks/{message.execution_id}"})
    message = message.model_copy(update={"metadata": metadata})
    stage.send(message.model_dump(mode="json", exclude_unset=True))
    is_of_worker = point.partition(":")[2].startswith("ledger.")
    if is_of_worker:
        stage.died(stage.worker_dies(point), point)
    stage.go_on()
    as_if_nothing_had_happened(stage, message, calls=2 + repeated, tools=2)
    ref = CallbackRef(message.tenant_id, message.execution_id)
    with stage.service.neighbours() as http:
        http.post(f"{hooks}/_mode", json=mode).raise_for_status()
        try:
            if not is_of_worker:
                dying = stage.dies(point, "notifier", AGENT_EXEC_NOTIFIER_DRAIN_S="0")
                if then == "sending":
                    wait_until(lambda: arrivals(http, hooks, ref), what="the callback", within_s=30)
                    dying.send(signal.SIGTERM)
                stage.died(dying, point)
                time_passes(stage.store, message.tenant_id, seconds=60)
            with stage.service.start(f"callback-heir-of-{point}", "-m", "notifier", AGENT_EXEC_NOTIFIER_DRAIN_S="0"):
                stands = lambda: stage.store.run(callbacks.look(ref))  # noqa: E731 a sentence in the two waits below
                wait_until(lambda: stands().state == then and arrivals(http, hooks, ref), what=then, within_s=30)
                assert stands().attempts <= 2
        finally:
            http.post(f"{hooks}/_mode", json={})
        came = arrivals(http, hooks, ref)
    assert not any(one["fault"] for one in came)
    assert {(one["webhook_id"], one["body_sha256"]) for one in came} == {(ref.callback_id, came[0]["body_sha256"])}


def arrivals(http: httpx.Client, hooks: str, ref: CallbackRef) -> list[dict[str, Any]]:
    """Return what the receiver got for an execution."""
    came: list[dict[str, Any]] = http.get(f"{hooks}/callbacks").json()["callbacks"]
    return [one for one in came if one["path"] == ref.callback_id]


STORIES: dict[str, Callable[[Stage, str, int], None]] = {
    story.__name__.replace("_", " "): story
    for story in (
        told,
        refused_by_the_provider,
        handed_back,
        with_an_effect,
        asks_another_agent,
        slow,
        in_a_chain,
        cancelled,
        newer,
        malformed,
        notified,
        called_back,
        called_back_in_vain,
        called_back_and_gone,
        called_back_too_slowly,
        in_a_batch,
        on_schedule,
        shim_accepts,
        shim_cancels,
        command_submits,
        command_prioritises,
    )
}


@pytest.mark.parametrize(("story", "point", "repeated"), POINTS, ids=[f"{story}-{point}" for story, point, _ in POINTS])
def test_nothing_is_lost_or_doubled_by_a_crash(stage: Stage, story: str, point: str, repeated: int) -> None:
    STORIES[story](stage, point, repeated)


def as_if_nothing_had_happened(stage: Stage, message: Message, *, calls: int, tools: int) -> None:
    """One end, no gap, the text that was told, each step and each tool once; the provider asked as often as stated."""
    final = stage.over(message)
    assert final.status == "completed", final.error
    frames = list(stage.client.events(message.tenant_id, message.execution_id))
    in_order(frames, EventName.COMPLETED)
    assert last_words(frames) == final.output.text
    for name in (EventName.TOOL_CALL_REQUESTED, EventName.TOOL_CALL_COMPLETED):
        ids = [frame.data["tool_call_id"] for frame in frames if frame.event == name]
        assert (len(ids), len(set(ids))) == (tools, tools), name
    assert list(stage.tools(message).values()) == [1] * tools
    assert stage.asked(message) == calls
    assert (final.turns, len(final.tool_calls)) == (2, tools)


def is_in_doubt(stage: Stage, message: Message, *, effects: int) -> None:
    """The tool was run so often, or never; the model was told that nobody knows, and has answered."""
    final = stage.over(message)
    assert final.status == "completed", final.error
    [call] = final.tool_calls
    assert call.error is not None
    assert call.error.code == "in_doubt"
    assert list(stage.tools(message).values()) == [1] * effects
    assert sum(run["execution_id"] == message.execution_id for run in stage.tool_requests()) == effects
    in_order(list(stage.client.events(message.tenant_id, message.execution_id)), EventName.COMPLETED)


def is_cancelled(stage: Stage, message: Message) -> None:
    """One end, no gap, and no provider was asked."""
    final = stage.over(message)
    assert final.error is not None
    assert final.error.code == "cancelled"
    in_order(list(stage.client.events(message.tenant_id, message.execution_id)), EventName.FAILED)
    assert stage.asked(message) == 0


def in_order(frames: list[Frame], end: EventName) -> None:
    assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
    ends = [frame.event for frame in frames if frame.event in (EventName.COMPLETED, EventName.FAILED)]
    assert ends == [end]
    assert frames[-1].event == end


def last_words(frames: list[Frame]) -> str:
    """The tokens of the last attempt of the last turn."""
    words: list[str] = []
    for frame in frames:
        if frame.event == EventName.STEP_RESTARTED or frame.data.get("stage") == "thinking":
            words.clear()
        elif frame.event == EventName.TOKEN:
            words.append(str(frame.data["token"]))
    return "".join(words)


def test_the_service_is_as_it_was(whole_stage: Stage) -> None:
    """The worker that was stopped so often takes work as before, in a moment and not at the end of a lease."""
    message = two_turns()
    whole_stage.client.submit(message)
    assert whole_stage.client.wait(message.tenant_id, message.execution_id, timeout_s=10).status == "completed"
    with redis.Redis.from_url(whole_stage.service.env["AGENT_EXEC_REDIS_URL"]) as database:
        assert database.zcard(keys.pending()) == 0
