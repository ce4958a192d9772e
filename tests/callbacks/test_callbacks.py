"""The life of a callback in Redis: created with the end, taken by one, settled once, given up, sent again."""

from __future__ import annotations

import json
from itertools import count

import pytest

from agent_exec import keys
from agent_exec.callbacks import callbacks
from agent_exec.callbacks.callbacks import KEEP_MS, CallbackRef, Sending
from agent_exec.callbacks.destination import Rules
from agent_exec.contract.callback import ExecutionEnded
from agent_exec.errors import AlreadyDelivered, CallbackUrlInvalid, Conflict, NotFound
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed
from agent_exec.store import BlockingStore
from tests.callbacks.played_end import (
    FINISHED_AT,
    URL,
    asked,
    claiming,
    ended,
    finishing,
    response_of,
    storing,
    time_passes,
)


def taken(store: BlockingStore, *, room: int = 100, of_a_tenant: int = 100) -> list[Sending]:
    return list(store.run(callbacks.take(room=room, of_a_tenant=of_a_tenant, lease_s=40)).callbacks)


def one_taken(store: BlockingStore) -> Sending:
    [sending] = taken(store)
    return sending


def state(store: BlockingStore, ref: CallbackRef) -> str:
    return store.run(callbacks.look(ref)).state


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_the_end_of_an_execution_creates_its_callback_with_the_final_response(
    store: BlockingStore, status: str
) -> None:
    ref = ended(store, status=status, text='"finished_at":"1999" ✓ \\')
    sending = one_taken(store)
    assert (sending.ref, sending.url, sending.fence, sending.attempts) == (ref, URL, 1, 0)
    body = json.loads(sending.body)
    assert body == {
        "type": f"agent_execution.{status}",
        "timestamp": FINISHED_AT,
        "data": response_of(ref, status=status, text='"finished_at":"1999" ✓ \\'),
    }
    ExecutionEnded.model_validate_json(sending.body)


def test_an_execution_that_asked_for_none_has_none(store: BlockingStore) -> None:
    message = asked()
    message = message.model_copy(update={"metadata": message.metadata.model_copy(update={"callback_url": None})})
    ref = ended(store, message)
    assert not taken(store)
    with pytest.raises(NotFound):
        store.run(callbacks.look(ref))


def test_an_end_that_is_refused_creates_none(store: BlockingStore) -> None:
    message = asked()
    store.run(storing(message))
    claimed = store.run(claiming(message))
    assert isinstance(claimed, Claimed)
    store.run(ledger.cancel(message.tenant_id, message.execution_id))
    assert store.run(finishing(claimed.hold)) == "cancelled"
    assert not taken(store)
    store.run(finishing(claimed.hold, status="failed"))
    assert json.loads(one_taken(store).body)["type"] == "agent_execution.failed"
    assert store.run(finishing(claimed.hold)) == "done"
    assert not taken(store)


def test_a_url_that_is_refused_leaves_nothing_behind(store: BlockingStore) -> None:
    for url in ("https://127.0.0.1/", "http://hooks.example/"):
        with pytest.raises(CallbackUrlInvalid):
            store.run(storing(asked(url)))
    assert not store.redis.keys()
    store.run(storing(asked("http://hooks.example/"), Rules(allow_http=True)))


def test_the_same_request_with_another_callback_is_another_request(store: BlockingStore) -> None:
    one = asked()
    elsewhere = one.metadata.model_copy(update={"callback_url": "https://hooks.example/other"})
    store.run(storing(one))
    assert store.run(storing(one)).replayed
    with pytest.raises(Conflict):
        store.run(storing(one.model_copy(update={"metadata": elsewhere})))


def test_what_is_taken_is_not_taken_again_before_its_lease_lapses(store: BlockingStore) -> None:
    ended(store)
    first = one_taken(store)
    assert not taken(store)
    time_passes(store, "acme", seconds=41)
    again = one_taken(store)
    assert (again.ref, again.body, again.attempts, again.fence) == (first.ref, first.body, 0, 2)
    assert store.run(callbacks.delivered(first, status=200, keep_s=60)) == "fenced"
    assert store.run(callbacks.delivered(again, status=200, keep_s=60)) == "delivered"
    assert store.run(callbacks.delivered(again, status=200, keep_s=60)) == "done"


def test_what_a_stalled_sender_says_is_believed_while_nobody_else_has_begun(store: BlockingStore) -> None:
    ref = ended(store)
    first = one_taken(store)
    time_passes(store, "acme", seconds=41)
    assert store.run(callbacks.delivered(first, status=204, keep_s=60)) == "delivered"
    assert not taken(store)
    view = store.run(callbacks.look(ref))
    assert (view.state, view.attempts, view.last_status, view.last_fault) == ("delivered", 1, 204, None)


def test_a_delivered_callback_gives_up_its_body_and_cannot_be_sent_again(store: BlockingStore) -> None:
    ref = ended(store)
    store.run(callbacks.delivered(one_taken(store), status=200, keep_s=60))
    key = keys.callback(ref.tenant_id, ref.callback_id)
    assert store.redis.hget(key, "body") is None
    assert 0 < store.redis.pttl(key) <= 60_000
    with pytest.raises(AlreadyDelivered):
        store.run(callbacks.redeliver(ref))
    assert store.redis.zcard(keys.callbacks()) == 0


def test_what_failed_is_due_again_and_counts_its_tries(store: BlockingStore) -> None:
    ref = ended(store)
    for attempt in range(1, 4):
        sending = one_taken(store)
        put_off = callbacks.put_off(sending, fault="answered", status=500, due_in_s=300)
        assert store.run(put_off) == "waiting"
        assert store.run(put_off) == "done", "said again, because the reply was lost"
        assert not taken(store)
        view = store.run(callbacks.look(ref))
        assert (view.state, view.attempts, view.last_status, view.last_fault) == ("waiting", attempt, 500, "answered")
        assert view.due_at is not None
        assert view.last_attempt_at is not None
        assert (view.due_at - view.last_attempt_at).total_seconds() == 300
        time_passes(store, "acme", seconds=301)
    assert one_taken(store).attempts == 3


def test_what_is_given_up_is_listed_and_sent_anew_when_somebody_asks(store: BlockingStore) -> None:
    ref = ended(store)
    assert store.run(callbacks.bury(one_taken(store), fault="timed_out", status=None)) == "dead"
    [listed] = store.run(callbacks.page("acme", "dead", limit=10))
    assert listed.view is not None
    assert (listed.callback_id, listed.view.state, listed.view.last_fault) == (ref.callback_id, "dead", "timed_out")
    assert not taken(store)
    assert not store.run(callbacks.page("globex", "dead", limit=10))
    assert store.run(callbacks.redeliver(ref)) == "waiting"
    assert store.run(callbacks.redeliver(ref)) == "waiting"
    assert not store.run(callbacks.page("acme", "dead", limit=10))
    sending = one_taken(store)
    assert (sending.attempts, sending.fence) == (0, 2)
    assert store.run(callbacks.redeliver(ref)) == "sending"
    assert not taken(store)


def test_dead_letters_are_kept_for_two_weeks(store: BlockingStore) -> None:
    ref = ended(store)
    store.run(callbacks.bury(one_taken(store), fault="answered", status=410))
    for key in (keys.callback("acme", ref.callback_id), keys.callbacks_dead("acme")):
        assert KEEP_MS - 10_000 < store.redis.pttl(key) <= KEEP_MS
    store.redis.zincrby(keys.callbacks_dead("acme"), -KEEP_MS - 1, ref.callback_id)
    other = ended(store)
    store.run(callbacks.bury(one_taken(store), fault="answered", status=410))
    assert [one.callback_id for one in store.run(callbacks.page("acme", "dead", limit=10))] == [other.callback_id]


def test_one_that_waits_is_sent_ahead_of_its_time(store: BlockingStore) -> None:
    ref = ended(store)
    store.run(callbacks.put_off(one_taken(store), fault="answered", status=500, due_in_s=3_600))
    assert store.run(callbacks.redeliver(ref)) == "waiting"
    assert one_taken(store).attempts == 1, "its tries count on"


def test_what_is_handed_back_is_sent_at_once_and_counts_no_try(store: BlockingStore) -> None:
    ended(store)
    assert store.run(callbacks.release(one_taken(store))) == "waiting"
    assert one_taken(store).attempts == 0


def test_another_tenants_callback_is_as_good_as_missing(store: BlockingStore) -> None:
    ref = ended(store)
    foreign = CallbackRef("globex", ref.callback_id)
    for call in (callbacks.look(foreign), callbacks.redeliver(foreign)):
        with pytest.raises(NotFound) as missing:
            store.run(call)
        assert "globex" not in str(missing.value)
    assert state(store, ref) == "waiting"


def test_a_tenant_has_so_many_on_their_way_and_no_more(store: BlockingStore) -> None:
    """S38."""
    for _ in range(5):
        ended(store)
    first = taken(store, of_a_tenant=2)
    assert len(first) == 2
    assert not taken(store, of_a_tenant=2)
    store.run(callbacks.delivered(first[0], status=200, keep_s=60))
    assert len(taken(store, of_a_tenant=2)) == 1
    time_passes(store, "acme", seconds=41)
    assert len(taken(store, of_a_tenant=2)) == 2, "a place that a dead sender held is free when its lease has lapsed"


def test_who_was_served_longest_ago_comes_first(store: BlockingStore) -> None:
    for _ in range(20):
        ended(store)
    time_passes(store, "acme", seconds=600)
    assert len(taken(store, room=4)) == 4
    quiet = ended(store, asked(tenant_id="globex"))
    served = [one.ref.tenant_id for _ in range(2) for one in taken(store, room=4)]
    assert quiet.tenant_id in served, "though acme's have waited for ten minutes"


def test_what_is_taken_at_once_is_bounded_in_bytes(store: BlockingStore) -> None:
    for _ in range(4):
        ended(store, text="x" * 400_000)
    assert len(taken(store)) == 3
    assert len(taken(store)) == 1


def test_a_callback_that_has_expired_holds_nothing_up(store: BlockingStore) -> None:
    gone, there = ended(store), ended(store)
    store.redis.delete(keys.callback("acme", gone.callback_id))
    assert one_taken(store).ref == there
    store.run(callbacks.delivered(Sending(there, 1, 0, 0, "", b""), status=200, keep_s=60))
    assert store.redis.zcard(keys.callbacks()) == 0


def test_it_says_when_to_look_again(store: BlockingStore) -> None:
    def next_in_ms() -> int | None:
        return store.run(callbacks.take(room=10, of_a_tenant=10, lease_s=40)).next_in_ms

    assert next_in_ms() is None
    ended(store)
    in_ms = next_in_ms()
    assert in_ms is not None
    assert 39_000 < in_ms <= 40_000, "when the lease lapses"


def test_a_page_goes_on_where_the_last_one_ended(store: BlockingStore) -> None:
    refs = [ended(store) for _ in range(5)]
    for sending in taken(store):
        store.run(callbacks.bury(sending, fault="answered", status=500))
    for position, ref in zip(count(1_000), refs, strict=False):
        store.redis.zadd(keys.callbacks_dead("acme"), {ref.callback_id: position // 2 * 1000})
    found: list[str] = []
    before_ms, skip = None, 0
    for _ in refs:
        [one] = store.run(callbacks.page("acme", "dead", before_ms=before_ms, skip=skip, limit=1))
        skip = skip + 1 if one.at_ms == before_ms else 1
        before_ms = one.at_ms
        found.append(one.callback_id)
    assert set(found) == {ref.callback_id for ref in refs}
    store.redis.delete(keys.callback("acme", found[0]))
    assert store.run(callbacks.page("acme", "dead", limit=1))[0].view is None


def test_its_end_wakes_whoever_sends(store: BlockingStore) -> None:
    ended(store)
    ended(store)
    assert store.redis.llen(keys.callbacks_wake()) == 1


def test_what_is_open_and_what_tries_came_to_is_counted(store: BlockingStore) -> None:
    nothing = store.run(callbacks.backlog())
    assert (nothing.waiting, nothing.sending, nothing.lag_s, nothing.outcomes) == (0, 0, 0, {})
    for tenant_id in ("acme", "acme", "globex", "globex", "globex"):
        ended(store, asked(tenant_id=tenant_id))
    one, other, third, *_ = taken(store, room=4)
    store.run(callbacks.delivered(one, status=200, keep_s=60))
    store.run(callbacks.put_off(other, fault="answered", status=500, due_in_s=60))
    store.run(callbacks.bury(third, fault="answered", status=410))
    time_passes(store, "globex", seconds=10)
    backlog = store.run(callbacks.backlog())
    assert (backlog.waiting, backlog.sending) == (2, 1)
    assert 10 <= backlog.lag_s < 20
    assert backlog.outcomes == {"delivered": 1, "put_off": 1, "dead": 1}
