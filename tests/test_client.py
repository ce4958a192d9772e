"""The client, against a real store and a worker played by the ledger's own calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import redis

from agent_exec import AgentExecClient, keys, submission
from agent_exec.broker import fair_queue
from agent_exec.contract.agent import Tenant
from agent_exec.contract.completion import Usage
from agent_exec.contract.event import CompletedData, EventName
from agent_exec.contract.execution import ExecutionRequest, FinalResponse, Output
from agent_exec.contract.schedule import ScheduleRequest
from agent_exec.errors import (
    CallbackUrlInvalid,
    Conflict,
    InvalidMessage,
    NotFound,
    QueueFull,
    TimedOut,
    TooManyBatches,
    TooManySchedules,
)
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import AlreadyOver, CancelRequested, Claimed, Event, Piece, Prioritised, StepRef
from agent_exec.settings import read_settings
from agent_exec.store import BlockingStore

REQUEST = ExecutionRequest(agent_id="desk", query="What is 6 * 7?")
DAILY = ScheduleRequest(cron="0 7 * * *", timezone="Europe/Berlin", request=REQUEST)


@pytest.fixture
def client(redis_url: str) -> Iterator[AgentExecClient]:
    """A client, closed behind the test."""
    with AgentExecClient(redis_url) as opened:
        yield opened


def play_worker(store: BlockingStore, execution_id: str, *, text: str = "42") -> FinalResponse:
    """Claim the first step, stream a token, finish."""
    claim = store.run(ledger.claim(StepRef("acme", execution_id, "prompt"), lease_s=30, worker="w"))
    assert isinstance(claim, Claimed)
    store.run(ledger.tell_pieces([Piece(claim.hold, 1, f'{{"token":"{text}","is_final":true}}')]))
    final = FinalResponse(
        execution_id=execution_id,
        tenant_id="acme",
        agent_id="desk",
        status="completed",
        output=Output(text=text),
        usage=Usage(),
        created_at=claim.execution.created_at,
        finished_at=claim.execution.created_at,
    )
    store.run(
        ledger.finish(
            claim.hold,
            result="null",
            status="completed",
            response=final.model_dump_json(),
            celery_result="{}",
            events=[Event(EventName.COMPLETED, CompletedData(response=final).model_dump_json())],
            retention_s=3_600,
        )
    )
    return final


def test_submitted_work_is_stored_and_its_hint_queued(client: AgentExecClient, store: BlockingStore) -> None:
    execution_id = client.submit(REQUEST, tenant_id="acme")
    view = client.get("acme", execution_id)
    assert (view.status, view.response, view.last_sequence) == ("pending", None, 1)
    depth = store.run(fair_queue.depths())["agent_execution"]
    assert depth.tenants["acme"].waiting == 1


def test_a_request_needs_a_tenant(client: AgentExecClient) -> None:
    with pytest.raises(TypeError, match="tenant_id"):
        client.submit(REQUEST)


def test_submitting_twice_under_one_key_is_one_execution(client: AgentExecClient, store: BlockingStore) -> None:
    ids = {client.submit(REQUEST, tenant_id="acme", idempotency_key="k") for _ in range(3)}
    assert len(ids) == 1
    assert store.run(fair_queue.depths())["agent_execution"].tenants["acme"].waiting == 1


def test_many_are_submitted_together_and_a_conflict_is_told_apart(
    client: AgentExecClient, store: BlockingStore
) -> None:
    messages = [submission.message_of(REQUEST, tenant_id="acme") for _ in range(300)]
    other = messages[0].model_copy(update={"priority": 9})
    outcome = client.submit_many([*messages, other])
    assert outcome[:300] == [message.execution_id for message in messages]
    assert isinstance(outcome[300], Conflict)
    assert store.run(fair_queue.depths())["agent_execution"].tenants["acme"].waiting == 300


def test_waiting_ends_with_the_response(client: AgentExecClient, store: BlockingStore) -> None:
    execution_id = client.submit(REQUEST, tenant_id="acme")
    worker = threading.Timer(0.2, play_worker, (store, execution_id))
    worker.start()
    assert client.wait("acme", execution_id, timeout_s=10).output.text == "42"
    worker.join()
    assert client.wait("acme", execution_id, timeout_s=0).status == "completed"


def test_waiting_gives_up_in_time_and_the_execution_goes_on(client: AgentExecClient) -> None:
    execution_id = client.submit(REQUEST, tenant_id="acme")
    with pytest.raises(TimedOut, match="it goes on"):
        client.wait("acme", execution_id, timeout_s=0.1)
    assert client.get("acme", execution_id).status == "pending"


def test_events_are_followed_live_and_resumed_without_a_gap(client: AgentExecClient, store: BlockingStore) -> None:
    execution_id = client.submit(REQUEST, tenant_id="acme")
    worker = threading.Timer(0.2, play_worker, (store, execution_id))
    worker.start()
    frames = list(client.events("acme", execution_id))
    worker.join()
    assert [frame.sequence for frame in frames] == [1, 2, 3]
    assert [frame.event for frame in frames] == [EventName.STARTED, EventName.TOKEN, EventName.COMPLETED]
    assert [frame.event_id for frame in frames] == [f"{execution_id}:{number}" for number in (1, 2, 3)]
    assert [frame.sequence for frame in client.events("acme", execution_id, after=1)] == [2, 3]
    assert list(client.events("acme", execution_id, after=3)) == []


def test_a_cancel_is_answered_with_what_is_so(client: AgentExecClient, store: BlockingStore) -> None:
    execution_id = client.submit(REQUEST, tenant_id="acme")
    assert isinstance(client.cancel("acme", execution_id), CancelRequested)
    assert client.get("acme", execution_id).cancel_requested
    assert isinstance(client.cancel("acme", execution_id), CancelRequested)
    completed = client.submit(REQUEST, tenant_id="acme")
    play_worker(store, completed)
    assert client.cancel("acme", completed) == AlreadyOver("completed")


def test_another_tenants_execution_is_not_there(client: AgentExecClient) -> None:
    execution_id = client.submit(REQUEST, tenant_id="acme")
    for ask in (client.get, client.cancel, client.wait, lambda t, e: list(client.events(t, e))):
        with pytest.raises(NotFound):
            ask("globex", execution_id)


def test_a_message_names_its_tenant_itself(client: AgentExecClient) -> None:
    message = submission.message_of(REQUEST, tenant_id="globex")
    assert client.submit(message) == message.execution_id
    assert client.get("globex", message.execution_id).tenant_id == "globex"


def test_many_of_whom_some_have_too_much_waiting(redis_url: str) -> None:
    with AgentExecClient(redis_url, settings=read_settings(max_queued=2)) as client:
        outcome = client.submit_many([REQUEST] * 3, tenant_id="acme")
    assert [isinstance(one, str) for one in outcome] == [True, True, False]
    assert isinstance(outcome[2], QueueFull)


def test_an_error_that_is_no_answer_is_raised_when_the_others_are_stored(
    client: AgentExecClient, store: BlockingStore
) -> None:
    store.redis.set(keys.queued("globex"), "not a set", ex=60)
    messages = [submission.message_of(REQUEST, tenant_id=tenant_id) for tenant_id in ("globex", "acme")]
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.submit_many(messages)
    assert client.get("acme", messages[1].execution_id).status == "pending"
    assert store.run(fair_queue.depths())["agent_execution"].tenants["acme"].waiting == 1


def test_an_execution_that_waits_can_be_made_more_urgent(client: AgentExecClient, store: BlockingStore) -> None:
    first, second = [client.submit(REQUEST, tenant_id="acme") for _ in range(2)]
    unknown = client.prioritise("acme", second, 9)
    assert isinstance(unknown, Prioritised)
    assert (unknown.priority, [hint.step for hint in unknown.queued]) == (5, ["prompt"]), "bounded by the smallest plan"
    store.run(ledger.note_tenant(Tenant(tenant_id="acme", plan="enterprise"), keep_s=60))
    changed = client.prioritise("acme", second, 9)
    assert isinstance(changed, Prioritised)
    assert changed.priority == 9
    served = store.run(fair_queue.pop("agent_execution"))
    assert isinstance(served, fair_queue.Delivery)
    assert served.delivery.startswith(second), "it overtook the first"
    assert client.get("acme", second).priority == 9
    play_worker(store, second)
    assert client.prioritise("acme", second, 1) == AlreadyOver("completed")
    with pytest.raises(NotFound):
        client.prioritise("globex", first, 1)


def test_a_batch_is_stored_once_under_its_key_and_seen_by_its_tenant(client: AgentExecClient) -> None:
    first, again = [client.submit_batch([REQUEST] * 3, tenant_id="acme", idempotency_key="k") for _ in range(2)]
    assert first == again
    with pytest.raises(Conflict):
        client.submit_batch([REQUEST] * 2, tenant_id="acme", idempotency_key="k")
    view = client.get_batch("acme", first)
    assert (view.status, view.count, view.submitted) == ("pending", 3, 0)
    assert list(client.batch_results("acme", first)) == []
    for ask in (client.get_batch, client.cancel_batch, lambda t, b: list(client.batch_results(t, b))):
        with pytest.raises(NotFound):
            ask("globex", first)
    assert client.cancel_batch("acme", first)
    assert client.get_batch("acme", first).status == "cancelled"
    assert not client.cancel_batch("acme", first)
    assert [one.error and one.error.code for one in client.batch_results("acme", first)] == ["cancelled"] * 3


@pytest.mark.parametrize(
    ("requests", "error"),
    [
        ([], InvalidMessage),
        ([REQUEST] * 10_001, InvalidMessage),
        ([REQUEST, REQUEST.model_copy(update={"callback_url": "http://127.0.0.1/"})], CallbackUrlInvalid),
        ([REQUEST, REQUEST.model_copy(update={"run_at": datetime.now(UTC) + timedelta(days=30)})], InvalidMessage),
    ],
)
def test_a_batch_that_is_wrong_leaves_nothing(
    client: AgentExecClient, store: BlockingStore, requests: list[ExecutionRequest], error: type[Exception]
) -> None:
    with pytest.raises(error):
        client.submit_batch(requests, tenant_id="acme")
    with pytest.raises(CallbackUrlInvalid):
        client.submit_batch([REQUEST], tenant_id="acme", callback_url="http://127.0.0.1/")
    assert store.redis.dbsize() == 0


def test_a_tenant_has_so_many_batches_and_schedules_and_no_more(redis_url: str) -> None:
    with AgentExecClient(redis_url, settings=read_settings(max_open_batches=1, max_schedules=1)) as client:
        batch_id = client.submit_batch([REQUEST], tenant_id="acme")
        with pytest.raises(TooManyBatches):
            client.submit_batch([REQUEST], tenant_id="acme")
        client.cancel_batch("acme", batch_id)
        client.submit_batch([REQUEST], tenant_id="acme")
        client.create_schedule(DAILY, tenant_id="acme")
        with pytest.raises(TooManySchedules):
            client.create_schedule(DAILY, tenant_id="acme")


def test_schedules_are_made_listed_paused_and_deleted(client: AgentExecClient, store: BlockingStore) -> None:
    made = [client.create_schedule(DAILY, tenant_id="acme", idempotency_key=str(number)) for number in range(3)]
    assert client.create_schedule(DAILY, tenant_id="acme", idempotency_key="0") == made[0]
    store.redis.zadd(keys.schedules("acme"), {one.schedule_id: 1_000 for one in made})  # within one ms
    assert {one.schedule_id for one in client.schedules("acme")} == {one.schedule_id for one in made}
    assert list(client.schedules("globex")) == []
    client.pause_schedule("acme", made[0].schedule_id)
    assert client.get_schedule("acme", made[0].schedule_id).paused
    assert client.resume_schedule("acme", made[0].schedule_id).next_at == made[0].next_at
    client.delete_schedule("acme", made[0].schedule_id)
    for ask in (client.get_schedule, client.pause_schedule, client.resume_schedule, client.delete_schedule):
        with pytest.raises(NotFound):
            ask("acme", made[0].schedule_id)
        with pytest.raises(NotFound):
            ask("globex", made[1].schedule_id)


def test_large_schedules_are_listed_in_pages(client: AgentExecClient) -> None:
    large = DAILY.model_copy(update={"request": REQUEST.model_copy(update={"query": "x" * 250_000})})
    made = [client.create_schedule(large, tenant_id="acme").schedule_id for _ in range(6)]
    assert sorted(one.schedule_id for one in client.schedules("acme")) == sorted(made)
