"""The life of an execution, by the ledger's calls alone: every script, every refusal, every repeat."""

from __future__ import annotations

import json
import time

import pytest
import redis

from agent_exec import events, keys, routing, submission
from agent_exec.contract.agent import Tenant
from agent_exec.contract.event import EventName
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.message import Message
from agent_exec.errors import Conflict, NotFound, QueueFull
from agent_exec.hint import Hint
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import (
    AlreadyOver,
    CancelRequested,
    Claimed,
    Event,
    Finished,
    Hold,
    NotClaimed,
    Piece,
    Prioritised,
    StepRef,
)
from agent_exec.script import Call
from agent_exec.store import BlockingStore

DAY_S = 86_400


def a_message(query: str = "What is 6 * 7?", *, tenant_id: str = "acme", deadline_s: float | None = None) -> Message:
    return submission.message_of(
        ExecutionRequest(agent_id="desk", query=query, deadline_s=deadline_s), tenant_id=tenant_id
    )


def accepted(store: BlockingStore, message: Message | None = None) -> StepRef:
    message = message or a_message()
    store.run(submission.store(message, open_retention_s=DAY_S, max_queued=10_000))
    return StepRef(message.tenant_id, message.execution_id, "prompt")


def claimed(store: BlockingStore, ref: StepRef, *, lease_s: float = 30) -> Claimed:
    claim = store.run(ledger.claim(ref, lease_s=lease_s, worker="w"))
    assert isinstance(claim, Claimed), claim
    return claim


def at(ref: StepRef, step: str) -> StepRef:
    return StepRef(ref.tenant_id, ref.execution_id, step)


def advance(store: BlockingStore, ref: StepRef, *next_steps: str, join: str = "") -> StepRef:
    hold = claimed(store, ref).hold
    recorded = ledger.record(hold, result="{}", events=[], next_steps=next_steps, parent_id="p", priority=5, join=join)
    assert store.run(recorded) == "recorded"
    return at(ref, next_steps[0])


def finish(hold: Hold, status: str = "completed", *, cancelled: bool = False) -> Call[Finished | str]:
    return ledger.finish(
        hold,
        result="{}",
        status=status,  # type: ignore[arg-type]
        response=json.dumps({"status": status}),
        celery_result="{}",
        events=[Event(EventName.COMPLETED, "{}")],
        retention_s=DAY_S,
        cancelled=cancelled,
    )


def logged(store: BlockingStore, ref: StepRef) -> list[str]:
    return [event.name for event in store.run(events.read(ref.tenant_id, ref.execution_id)).events]


def test_accept_stores_the_whole_input_and_event_one(store: BlockingStore) -> None:
    message = a_message()
    ref = accepted(store, message)
    record = store.run(ledger.look("acme", ref.execution_id))
    assert record.message == message
    assert record.status == "pending"
    page = store.run(events.read("acme", ref.execution_id))
    assert [(event.sequence, event.name) for event in page.events] == [(1, "agent_execution_started")]


def test_accepting_the_same_message_again_is_the_same_execution(store: BlockingStore) -> None:
    message = a_message()
    assert not store.run(submission.store(message, open_retention_s=DAY_S, max_queued=10_000)).replayed
    assert store.run(submission.store(message, open_retention_s=DAY_S, max_queued=10_000)).replayed
    assert logged(store, StepRef("acme", message.execution_id, "prompt")) == ["agent_execution_started"]


def test_the_same_id_with_other_content_is_a_conflict_and_changes_nothing(store: BlockingStore) -> None:
    message = a_message("one")
    accepted(store, message)
    other = message.model_copy(update={"payload": a_message("two").payload})
    with pytest.raises(Conflict, match="execution id came before"):
        store.run(submission.store(other, open_retention_s=DAY_S, max_queued=10_000))
    assert store.run(ledger.look("acme", message.execution_id)).message.payload.query == "one"


def test_an_idempotency_key_stands_for_one_execution(store: BlockingStore) -> None:
    first, again = a_message("one"), a_message("one")
    one = store.run(submission.store(first, open_retention_s=DAY_S, max_queued=10_000, idempotency_key="k"))
    two = store.run(submission.store(again, open_retention_s=DAY_S, max_queued=10_000, idempotency_key="k"))
    assert (two.execution_id, two.replayed) == (one.execution_id, True)
    with pytest.raises(Conflict, match="idempotency key came before"):
        store.run(submission.store(a_message("two"), open_retention_s=DAY_S, max_queued=10_000, idempotency_key="k"))
    elsewhere = a_message("two", tenant_id="globex")
    assert not store.run(
        submission.store(elsewhere, open_retention_s=DAY_S, max_queued=10_000, idempotency_key="k")
    ).replayed


def test_a_claim_hands_out_the_step_once(store: BlockingStore) -> None:
    ref = accepted(store)
    claim = claimed(store, ref)
    assert (claim.attempt, claim.retries, claim.hold.fence) == (1, 0, 1)
    assert claim.execution.status == "processing"
    assert store.run(ledger.claim(ref, lease_s=30, worker="other")) == NotClaimed("busy")
    assert store.run(ledger.look("acme", ref.execution_id)).status == "processing"


@pytest.mark.parametrize("tenant_id", ["globex", "acme"])
def test_a_hint_for_what_is_not_there_is_harmless(store: BlockingStore, tenant_id: str) -> None:
    ref = accepted(store)
    step = "prompt" if tenant_id == "globex" else "completion.9"
    claim = ledger.claim(StepRef(tenant_id, ref.execution_id, step), lease_s=30, worker="w")
    assert store.run(claim) == NotClaimed("gone")


def test_an_expired_lease_lets_another_attempt_in_and_fences_the_first(store: BlockingStore) -> None:
    ref = accepted(store)
    first = claimed(store, ref, lease_s=0)
    second = claimed(store, ref)
    assert (second.attempt, second.hold.fence) == (2, 2)
    assert store.run(ledger.tell(first.hold, [Event(EventName.PROGRESS, "{}")])) == "fenced"
    assert store.run(ledger.wait(first.hold, due_in_s=1, events=[])) == "fenced"
    assert store.run(finish(first.hold)) == "fenced"
    assert store.run(ledger.renew([first.hold, second.hold], lease_s=30)) == ["lost", "held"]
    assert logged(store, ref) == ["agent_execution_started"], "a fenced write leaves nothing"


def test_tokens_of_a_lost_attempt_are_declared_void(store: BlockingStore) -> None:
    ref = accepted(store)
    first = claimed(store, ref, lease_s=0)
    store.run(ledger.tell_pieces([Piece(first.hold, 1, "{}")]))
    claimed(store, ref, lease_s=0)
    claimed(store, ref)
    assert logged(store, ref) == ["agent_execution_started", "agent_response_token", "step_restarted"]


def test_a_piece_told_twice_is_logged_once(store: BlockingStore) -> None:
    ref = accepted(store)
    hold = claimed(store, ref).hold
    for number in (1, 1, 2, 1):
        assert store.run(ledger.tell_pieces([Piece(hold, number, "{}")])) == ["told"]
    assert logged(store, ref).count("agent_response_token") == 2


def test_pieces_of_many_executions_are_told_at_once_and_each_for_itself(store: BlockingStore) -> None:
    lost, other = claimed(store, accepted(store), lease_s=0).hold, claimed(store, accepted(store)).hold
    taken_over = claimed(store, lost.ref).hold
    nobody = Hold(StepRef("acme", "gone", "prompt"), 1)
    pieces = [Piece(hold, 1, "{}") for hold in (other, lost, nobody, taken_over)] + [Piece(other, 2, "{}")]
    assert store.run(ledger.tell_pieces(pieces)) == ["told", "fenced", "gone", "told", "told"]
    assert logged(store, other.ref) == ["agent_execution_started", *["agent_response_token"] * 2]
    assert logged(store, lost.ref) == ["agent_execution_started", "agent_response_token"]


def test_a_record_repeated_after_a_lost_reply_changes_nothing(store: BlockingStore) -> None:
    ref = accepted(store)
    hold = claimed(store, ref).hold
    call = ledger.record(
        hold,
        result='{"a":1}',
        events=[Event(EventName.PROGRESS, "{}")],
        next_steps=["completion.1"],
        parent_id="p",
        priority=7,
        deadline_s=60,
    )
    assert [store.run(call), store.run(call)] == ["recorded", "done"]
    record = store.run(ledger.look("acme", ref.execution_id))
    assert (record.result("prompt"), record.priority) == ('{"a":1}', 7)
    assert record.deadline_ms is not None
    assert logged(store, ref) == ["agent_execution_started", "agent_execution_progress"]
    assert store.run(ledger.claim(ref, lease_s=1, worker="w")) == NotClaimed("done")


def test_a_deadline_that_the_caller_set_is_kept(store: BlockingStore) -> None:
    ref = accepted(store, a_message(deadline_s=5))
    before = store.run(ledger.look("acme", ref.execution_id)).deadline_ms
    hold = claimed(store, ref).hold
    store.run(
        ledger.record(
            hold, result="{}", events=[], next_steps=["completion.1"], parent_id="p", priority=5, deadline_s=900
        )
    )
    assert store.run(ledger.look("acme", ref.execution_id)).deadline_ms == before


def test_the_last_of_parallel_steps_creates_the_one_that_waits(store: BlockingStore) -> None:
    ref = advance(store, accepted(store), "completion.1")
    advance(store, ref, "tool_call.1.0", "tool_call.1.1", join="completion.2")
    joins = [
        ledger.join(claimed(store, at(ref, step)).hold, result="{}", events=[], target="completion.2", parent_id="p")
        for step in ("tool_call.1.1", "tool_call.1.0")
    ]
    assert store.run(joins[0]) == "waiting"
    assert store.run(joins[0]) == "done", "a join counts once"
    assert store.run(ledger.claim(at(ref, "completion.2"), lease_s=1, worker="w")) == NotClaimed("gone")
    assert store.run(joins[1]) == "joined"
    assert claimed(store, at(ref, "completion.2")).parent_id == "p"


def test_of_parallel_steps_that_come_later_each_that_is_done_creates_the_next(store: BlockingStore) -> None:
    ref, target = advance(store, accepted(store), "completion.1"), "completion.2"
    steps = [f"tool_call.1.{index}" for index in range(5)]
    recorded = ledger.record(
        claimed(store, ref).hold,
        result="{}",
        events=[],
        next_steps=steps[:2],
        parent_id="p",
        priority=5,
        join=target,
        later=steps[2:],
    )
    assert [store.run(recorded) for _ in range(2)] == ["recorded", "done"]
    answers = []
    for done in (1, 2, 0, 3, 4):
        states = store.run(ledger.look("acme", ref.execution_id)).steps.values()
        assert sum(json.loads(state)["state"] == "queued" for state in states) == min(2, 5 - len(answers))
        joined = ledger.join(
            claimed(store, at(ref, steps[done])).hold, result="{}", events=[], target=target, parent_id=steps[done]
        )
        answers.append(store.run(joined))
        assert store.run(joined) == "done"
    assert answers == ["opened tool_call.1.2", "opened tool_call.1.3", "opened tool_call.1.4", "waiting", "joined"]
    assert claimed(store, at(ref, target)).parent_id == steps[4]
    assert not [name for name in fields(store, ref) if name.startswith(("joined:", "expected:", "later:"))]


def test_a_mark_is_kept_through_whatever_ends_an_attempt_but_a_wait(store: BlockingStore) -> None:
    ref = accepted(store)
    first = claimed(store, ref)
    assert (first.note, store.run(ledger.mark(first.hold, note="sent"))) == ("", "marked")
    store.run(ledger.release(first.hold))
    second = claimed(store, ref)
    assert second.note == "sent"
    assert store.run(ledger.mark(first.hold, note="stale")) == "fenced"
    store.run(ledger.wait(second.hold, due_in_s=0, events=[]))
    assert claimed(store, ref).note == ""


def test_a_waiting_step_is_early_until_it_is_due_and_then_counts_a_retry(store: BlockingStore) -> None:
    ref = accepted(store)
    hold = claimed(store, ref).hold
    assert store.run(ledger.wait(hold, due_in_s=3600, events=[])) == "waiting"
    assert store.run(ledger.claim(ref, lease_s=30, worker="w")) == NotClaimed("early")
    due = store.run(ledger.due())
    assert due.hints == ()
    assert due.next_in_ms is not None
    assert 3_500_000 < due.next_in_ms <= 3_600_000
    other = accepted(store)
    store.run(ledger.wait(claimed(store, other).hold, due_in_s=0, events=[]))
    [hint] = store.run(ledger.due()).hints
    assert (hint.execution_id, hint.step, hint.label) == (other.execution_id, "prompt", "1")
    again = claimed(store, other)
    assert (again.attempt, again.retries) == (1, 1)


def test_due_finds_a_dead_workers_step_when_its_lease_ends(store: BlockingStore) -> None:
    ref = accepted(store)
    claimed(store, ref, lease_s=0.01)
    [hint] = _due_within(store, 2.0)
    assert (hint.step, hint.label, hint.tenant_id, hint.agent_id) == ("prompt", "1", "acme", "desk")


def _due_within(store: BlockingStore, seconds: float) -> tuple[Hint, ...]:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        hints = store.run(ledger.due()).hints
        if hints:
            return hints
        time.sleep(0.005)
    return ()


def test_due_forgets_steps_whose_execution_is_gone(store: BlockingStore) -> None:
    ref = accepted(store)
    store.redis.delete(keys.execution("acme", ref.execution_id))
    store.redis.zadd(keys.pending(), dict.fromkeys(store.redis.zrange(keys.pending(), 0, -1), 0))
    assert store.run(ledger.due()).hints == ()
    assert store.redis.zcard(keys.pending()) == 0


def test_a_released_step_can_be_claimed_at_once_and_counts_no_attempt(store: BlockingStore) -> None:
    ref = accepted(store)
    hold = claimed(store, ref).hold
    assert [store.run(ledger.release(hold)), store.run(ledger.release(hold))] == ["released", "done"]
    assert claimed(store, ref).attempt == 1


def test_finish_writes_one_terminal_event_and_lets_all_expire(store: BlockingStore) -> None:
    """S39."""
    ref = accepted(store)
    claim = claimed(store, ref)
    listener = store.redis.pubsub()
    listener.subscribe(keys.celery_result(ref.execution_id))
    assert [store.run(finish(claim.hold)), store.run(finish(claim.hold))] == [Finished(None), "done"]
    assert logged(store, ref) == ["agent_execution_started", "agent_execution_completed"]
    assert store.redis.xlen(keys.responses("acme", ref.execution_id)) == 1
    assert store.redis.zcard(keys.pending()) == 0
    for key in (
        keys.execution("acme", ref.execution_id),
        keys.streaming("acme", ref.execution_id),
        keys.responses("acme", ref.execution_id),
        keys.celery_result(ref.execution_id),
    ):
        assert DAY_S - 5 < store.redis.ttl(key) <= DAY_S
    published = [message for _ in range(5) if (message := listener.get_message(timeout=1)) is not None]
    assert [message["data"] for message in published if message["type"] == "message"] == [b"{}"]
    listener.close()


def test_nothing_is_written_after_the_end(store: BlockingStore) -> None:
    ref = advance(store, accepted(store), "tool_call.1.0", "tool_call.1.1", join="completion.2")
    one, two = claimed(store, ref).hold, claimed(store, at(ref, "tool_call.1.1")).hold
    assert store.run(finish(one)) == Finished(None)
    writes = [
        ledger.tell(two, [Event(EventName.TOKEN, "{}")]),
        ledger.join(two, result="{}", events=[], target="completion.2", parent_id=""),
        ledger.record(two, result="{}", events=[], next_steps=[], parent_id="", priority=1),
        ledger.wait(two, due_in_s=1, events=[]),
        ledger.release(two),
        finish(two, "failed"),
    ]
    assert [store.run(write) for write in writes] == ["fenced"] + ["over"] * (len(writes) - 1)
    assert store.run(ledger.claim(two.ref, lease_s=1, worker="w")) == NotClaimed("over")
    assert logged(store, ref)[-1] == "agent_execution_completed"


def test_cancel_is_durable_and_says_what_was_already_over(store: BlockingStore) -> None:
    ref = accepted(store)
    assert store.run(ledger.cancel("acme", ref.execution_id)) == CancelRequested()
    due = store.run(ledger.due())
    assert (due.ends, due.hints) == ((ref,), ()), "no queue and no cap is in the way of an end"
    claim = claimed(store, ref)
    assert claim.execution.cancel_requested
    assert store.run(ledger.renew([claim.hold], lease_s=30)) == ["cancelled"]
    assert store.run(ledger.cancel("acme", ref.execution_id)) == CancelRequested()
    before = logged(store, ref)
    assert [store.run(finish(claim.hold, status)) for status in ("completed", "failed")] == ["cancelled"] * 2
    assert logged(store, ref) == before, "whoever cancels was told that this is the end, and no other is"
    assert store.run(finish(claim.hold, "failed", cancelled=True)) == Finished(None)
    assert store.run(ledger.cancel("acme", ref.execution_id)) == AlreadyOver("failed")


def test_a_cancelled_wait_need_not_be_waited_for(store: BlockingStore) -> None:
    ref = accepted(store)
    store.run(ledger.wait(claimed(store, ref).hold, due_in_s=3600, events=[]))
    store.run(ledger.cancel("acme", ref.execution_id))
    assert claimed(store, ref).execution.cancel_requested


def test_another_tenants_execution_is_as_good_as_missing(store: BlockingStore) -> None:
    ref = accepted(store)
    for call in (
        ledger.look("globex", ref.execution_id),
        ledger.cancel("globex", ref.execution_id),
        events.read("globex", ref.execution_id),
    ):
        with pytest.raises(NotFound, match="check the id"):
            store.run(call)  # type: ignore[arg-type]


def test_executions_are_listed_newest_first(store: BlockingStore) -> None:
    refs = [accepted(store) for _ in range(3)]
    listed = store.run(ledger.list_executions("acme", limit=2))
    assert len(listed) == 2
    everything = store.run(ledger.list_executions("acme", limit=10))
    assert {one.execution_id for one in everything} == {ref.execution_id for ref in refs}
    assert everything == sorted(everything, key=lambda one: one.created_ms, reverse=True)
    oldest = everything[-1]
    before = store.run(ledger.list_executions("acme", before_ms=oldest.created_ms, skip=0, limit=10))
    assert oldest in before
    assert store.run(ledger.list_executions("globex", limit=10)) == []


def test_a_script_that_the_server_forgot_is_sent_again(store: BlockingStore) -> None:
    accepted(store)
    store.redis.script_flush()
    accepted(store)


def test_redis_errors_of_a_script_reach_the_caller(store: BlockingStore, redis_url: str) -> None:
    ref = accepted(store)
    store.redis.delete(keys.streaming("acme", ref.execution_id))
    store.redis.set(keys.streaming("acme", ref.execution_id), "not a stream", ex=60)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        store.run(events.read("acme", ref.execution_id))


def test_a_tenant_with_too_many_executions_waiting_is_refused_until_some_begin(store: BlockingStore) -> None:
    """S38."""
    first = a_message()
    for message in (first, a_message()):
        store.run(submission.store(message, open_retention_s=DAY_S, max_queued=2))
    before = store.redis.dbsize()
    with pytest.raises(QueueFull, match="'acme' has 2 executions waiting"):
        store.run(submission.store(a_message(), open_retention_s=DAY_S, max_queued=2))
    assert store.redis.dbsize() == before, "a refused one leaves nothing"
    assert store.run(submission.store(first, open_retention_s=DAY_S, max_queued=2)).replayed
    store.run(submission.store(a_message(tenant_id="globex"), open_retention_s=DAY_S, max_queued=2))
    claimed(store, StepRef("acme", first.execution_id, "prompt"))
    store.run(submission.store(a_message(), open_retention_s=DAY_S, max_queued=2))


def test_a_plan_that_a_worker_has_learnt_bounds_the_priority(store: BlockingStore) -> None:
    """S07: a priority may be asked for, and counts within the tenant's plan."""

    def priority() -> int:
        message = a_message().model_copy(update={"priority": 9})
        accepted = store.run(submission.store(message, open_retention_s=DAY_S, max_queued=10))
        hint = submission.first_hint(message, accepted)
        assert store.run(ledger.look("acme", message.execution_id)).priority == hint.priority
        return hint.priority

    assert priority() == routing.MOST_URGENT[routing.UNKNOWN_PLAN]
    store.run(ledger.note_tenant(Tenant(tenant_id="acme", plan="pro"), keep_s=60))
    assert priority() == routing.MOST_URGENT["pro"]


def test_a_record_of_a_newer_release_is_left_to_it_and_not_dropped(store: BlockingStore) -> None:
    ref = accepted(store)
    key = keys.execution("acme", ref.execution_id)
    store.redis.hset(key, "v", ledger.SCHEMA_VERSION + 1)
    before = store.redis.hgetall(key)
    assert store.run(ledger.claim(ref, lease_s=30, worker="w")) == NotClaimed("newer")
    assert [store.run(ledger.put_off(ref)), store.run(ledger.put_off(ref))] == ["put off", "put off"]
    assert store.redis.hgetall(key) == before, "nothing of it is touched"
    due = store.run(ledger.due())
    assert due.hints == ()
    assert due.next_in_ms is not None
    assert 0 < due.next_in_ms <= ledger.NEWER_AGAIN_AFTER_MS
    [hint] = _due_within(store, 2.0)
    assert (hint.execution_id, hint.step, hint.label) == (ref.execution_id, "prompt", "0")


def test_putting_off_makes_no_step_due_that_is_not(store: BlockingStore) -> None:
    done, runs = accepted(store), accepted(store)
    store.run(finish(claimed(store, done).hold))
    claimed(store, runs)
    assert [store.run(ledger.put_off(ref)) for ref in (done, runs)] == ["put off", "put off"]
    assert store.run(ledger.put_off(StepRef("globex", runs.execution_id, "prompt"))) == "gone"
    assert store.redis.zcard(keys.pending()) == 1


def test_a_newer_record_is_looked_after_by_any_release(store: BlockingStore) -> None:
    ref = accepted(store)
    store.redis.hset(keys.execution("acme", ref.execution_id), "v", ledger.SCHEMA_VERSION + 1)
    answer = store.run(ledger.prioritise("acme", ref.execution_id, wish=1))
    assert isinstance(answer, Prioritised)
    assert [hint.step for hint in answer.queued] == ["prompt"]
    assert store.run(ledger.cancel("acme", ref.execution_id)) == CancelRequested()
    assert store.run(ledger.due()).ends == (ref,)
    assert store.run(ledger.look("acme", ref.execution_id)).cancel_requested
    assert [one.execution_id for one in store.run(ledger.list_executions("acme", limit=9))] == [ref.execution_id]
    assert logged(store, ref) == ["agent_execution_started"]


def test_a_claim_whose_reply_was_lost_is_the_same_claim(store: BlockingStore) -> None:
    ref = accepted(store)
    call = ledger.claim(ref, lease_s=30, worker="w")
    first, again = store.run(call), store.run(call)
    assert isinstance(first, Claimed)
    assert isinstance(again, Claimed)
    assert (again.hold, again.attempt) == (first.hold, first.attempt) == (Hold(ref, 1), 1)
    assert store.run(ledger.claim(ref, lease_s=30, worker="w")) == NotClaimed("busy"), (
        "the same worker's, by another hint"
    )


def test_an_acceptance_repeated_has_the_hint_sent_that_may_not_have_been(store: BlockingStore) -> None:
    message = a_message()
    ref = accepted(store, message)
    assert store.run(ledger.due()).hints == ()
    accepted(store, message)
    assert [hint.step for hint in store.run(ledger.due()).hints] == ["prompt"]
    claimed(store, ref)
    accepted(store, message)
    assert store.run(ledger.due()).hints == (), "a worker has begun"


def test_the_worker_of_the_last_join_may_die_before_it_sends_a_hint(store: BlockingStore) -> None:
    ref = advance(store, accepted(store), "completion.1")
    advance(store, ref, "tool_call.1.0", "tool_call.1.1", join="completion.2")
    for step in ("tool_call.1.0", "tool_call.1.1"):
        hold = claimed(store, at(ref, step)).hold
        store.run(ledger.join(hold, result="{}", events=[], target="completion.2", parent_id="p"))
    [member] = store.redis.zrange(keys.pending(), 0, -1)
    store.redis.zincrby(keys.pending(), -ledger.LOST_HINT_AFTER_MS, member)
    assert [hint.step for hint in store.run(ledger.due()).hints] == ["completion.2"]
    assert not [name for name in fields(store, ref) if name.startswith(("joined:", "expected:", "hold:", "pieces:"))]


def fields(store: BlockingStore, ref: StepRef) -> list[str]:
    return [name.decode() for name in store.redis.hkeys(keys.execution(ref.tenant_id, ref.execution_id))]


def test_a_claim_brings_what_the_step_reads_and_no_more(store: BlockingStore) -> None:
    ref = advance(store, accepted(store), "completion.1")
    ref = advance(store, ref, "completion.2")
    brought = claimed(store, ref).execution.fields
    assert {"message", "result:prompt", "result:completion.1", "status", "agent"} <= set(brought)
    assert not [name for name in brought if name.startswith(("step:", "hold:", "pieces:"))]
    store.run(ledger.release(Hold(ref, 1)))
    call = ledger.claim(ref, lease_s=30, worker="w", fields=["agent", "result:completion.1", "cancel_ms"])
    few = store.run(call)
    assert isinstance(few, Claimed)
    assert few.execution.fields == {"agent": "desk", "result:completion.1": "{}"}


def test_the_outbox_keeps_few_of_those_that_have_expired(store: BlockingStore) -> None:
    """Where no notifier runs nobody else takes them out."""
    store.redis.zadd(keys.outbox(), {f"acme gone-{index}": index for index in range(200)})
    living = [accepted(store) for _ in range(200)]
    outbox = {member.decode() for member in store.redis.zrange(keys.outbox(), 0, -1)}
    assert {f"acme {ref.execution_id}" for ref in living} <= outbox
    assert len(outbox) < 300, "each acceptance looked at three of them"


def test_the_largest_execution_that_the_contract_allows_is_ended_in_little_time(store: BlockingStore) -> None:
    """1,102 steps: the scripts that go through all of them hold Redis for some milliseconds, once."""
    ref = accepted(store)
    key = keys.execution("acme", ref.execution_id)
    done = json.dumps({"state": "done", "fence": 1, "lease_ms": 0, "attempts": 1, "retries": 0, "parent": "p"})
    for index in range(1_101):
        store.redis.hset(key, mapping={f"step:tool_call.1.{index}": done, f"result:tool_call.1.{index}": "{}"})
    hold = claimed(store, ref).hold
    store.redis.config_resetstat()
    assert store.run(ledger.cancel("acme", ref.execution_id)) == CancelRequested()
    assert isinstance(store.run(ledger.prioritise("acme", ref.execution_id, wish=2)), Prioritised)
    assert store.run(finish(hold, "failed", cancelled=True)) == Finished(None)
    spent = store.redis.info("commandstats")["cmdstat_evalsha"]
    assert spent["usec_per_call"] < 100_000, "of a machine however busy"
