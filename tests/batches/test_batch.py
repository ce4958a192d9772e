"""The scripts of batches one by one: what is refused, how much is open at once, what is kept and for how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_exec import keys
from agent_exec.batches import batch, feeding, item
from agent_exec.batches.feeding import Rest, Submit
from agent_exec.batches.item import BatchRef
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.errors import Conflict, InvalidMessage, NotFound, StorageUnavailable, TooManyBatches
from agent_exec.store import BlockingStore
from tests.batches.test_any_order import KEEP_S, LUA, TENANT, create, item_ended, requests, seal

ISO = "\n".join([(LUA / "_batch.lua").read_text(), "return iso(tonumber(ARGV[1]))"])
HOUR_S = 3_600


def ref_of(number: int) -> BatchRef:
    return BatchRef(TENANT, f"00000000-0000-4000-8000-{number:012}")


def stored(store: BlockingStore, number: int = 1, *, count: int = 20) -> BatchRef:
    ref = ref_of(number)
    store.run(create(ref, count))
    store.run(batch.add(ref, requests(count), start=0))
    store.run(seal(ref))
    return ref


def fed(store: BlockingStore, ref: BatchRef, *, window: int = 8) -> int:
    """Feed once, and return how many items were submitted."""
    work = store.run(feeding.feed(ref, window=window))
    if not isinstance(work, Submit):
        return 0
    assert store.run(feeding.fed(ref, work, open_keep_s=KEEP_S, keep_s=KEEP_S))
    return len(work.items)


def end(store: BlockingStore, ref: BatchRef, *indexes: int, status: str = "completed") -> None:
    for index in indexes:
        store.run(item_ended(ref, index, status=status, response="{}"))


def test_another_request_under_the_same_id_is_refused(store: BlockingStore) -> None:
    store.run(create(ref_of(1), 1))
    with pytest.raises(Conflict):
        store.run(create(ref_of(1), 1, digest="other"))


def test_what_is_not_sealed_is_missing_to_everybody(store: BlockingStore) -> None:
    ref = ref_of(1)
    store.run(create(ref, 2))
    store.run(batch.add(ref, requests(1), start=0))
    with pytest.raises(StorageUnavailable):
        store.run(seal(ref))
    for call in (batch.look(ref), batch.results(ref), batch.cancel(ref, keep_s=KEEP_S)):
        with pytest.raises(NotFound):
            store.run(call)
    assert store.run(feeding.feed(ref, window=9)) == Rest()


def test_of_batches_begun_at_once_no_more_are_stored_than_may_be(store: BlockingStore) -> None:
    first, second = ref_of(1), ref_of(2)
    for ref in (first, second):
        assert not store.run(create(ref, 1, max_open=1))
        store.run(batch.add(ref, requests(1), start=0))
    store.run(seal(first, max_open=1))
    with pytest.raises(TooManyBatches):
        store.run(seal(second, max_open=1))
    assert not store.redis.exists(second.record, second.items), "nothing of it is left behind"
    with pytest.raises(TooManyBatches):
        store.run(create(second, 1, max_open=1))
    assert fed(store, first) == 1
    end(store, first, 0)
    assert not store.run(create(second, 1, max_open=1))


def test_a_batch_that_has_expired_counts_no_more(store: BlockingStore) -> None:
    gone = stored(store, 1)
    store.redis.delete(gone.record, gone.items)
    assert not store.run(create(ref_of(2), 1, max_open=1))
    assert store.redis.zcard(keys.open_batches(TENANT)) == 0
    assert store.run(feeding.feed(gone, window=8)) == Rest()
    assert store.redis.zcard(keys.due_batches()) == 0


@pytest.mark.parametrize(
    ("cap", "submitted"), [("", [8]), ("10", [5]), ("", [4, 4]), ("1", [1]), ("3", [1, 0]), ("4", [1, 1, 0])]
)
def test_a_batch_takes_its_part_of_the_window_and_half_of_the_cap(
    store: BlockingStore, cap: str, submitted: list[int]
) -> None:
    store.redis.hset(keys.fair_share(), TENANT, f"4.0 {cap}")
    refs = [stored(store, number) for number in range(len(submitted))]
    for ref, expected in zip(refs, submitted, strict=True):
        assert fed(store, ref) == expected
        assert fed(store, ref) == 0, "there is no more room"
        is_due = store.redis.zscore(keys.due_batches(), f"{TENANT} {ref.batch_id}") is not None
        assert is_due is (expected == 0), "the end of an item brings it back, if it has any"
    store.redis.delete(keys.due_batches(), keys.fair_share())


def test_where_there_is_room_for_few_the_next_begins_when_one_is_over(store: BlockingStore) -> None:
    store.redis.hset(keys.fair_share(), TENANT, "4.0 1")
    first, second = stored(store, 1, count=1), stored(store, 2, count=1)
    assert (fed(store, first), fed(store, second)) == (1, 0)
    end(store, first, 0)
    assert second in store.run(feeding.due())
    assert fed(store, second) == 1
    store.redis.delete(keys.due_batches(), keys.fair_share())


def test_a_feed_is_bounded_by_bytes_too(store: BlockingStore) -> None:
    ref, large = ref_of(1), item.stored(ExecutionRequest(agent_id="desk", query="x" * 200_000))
    store.run(create(ref, 12))
    moves = list(item.slices([large] * 12))
    assert [(start, len(some)) for start, some in moves] == [(0, 4), (4, 4), (8, 4)]
    for start, some in moves:
        store.run(batch.add(ref, some, start=start))
    store.run(seal(ref))
    assert fed(store, ref, window=100) == 4
    store.redis.delete(keys.due_batches())


def test_slices_are_bounded_by_number() -> None:
    cut = list(item.slices(["{}"] * 250))
    assert [(start, len(some)) for start, some in cut] == [(0, 100), (100, 100), (200, 50)]


def test_an_item_that_is_refused_is_a_result_and_no_more(store: BlockingStore) -> None:
    ref = stored(store, count=2)
    fed(store, ref)
    for _ in range(2):
        store.run(feeding.refuse(ref.item(1), InvalidMessage("it is of another contract"), keep_s=KEEP_S))
    assert store.run(batch.results(ref)).came == (), "the first has not ended"
    end(store, ref, 0)
    page = store.run(batch.results(ref))
    assert [one.outcome for one in page.came] == ["completed", "refused"]
    assert page.over
    result = page.came[1].result
    assert (result.status, result.response, result.error and result.error.code) == ("failed", None, "invalid_message")
    view = store.run(batch.look(ref))
    assert (view.status, view.completed, view.failed) == ("completed", 1, 1)


def test_a_page_of_results_is_bounded_and_says_where_the_end_is(store: BlockingStore) -> None:
    ref = stored(store, count=5)
    fed(store, ref)
    large = '"' + "x" * (batch.RESULT_BYTES_AT_ONCE // 2) + '"'
    for index in (0, 1, 2, 4):
        store.run(item_ended(ref, index, status="failed", response=large))
    pages = [store.run(batch.results(ref, after=after)) for after in (0, 1, 2, 3, 9)]
    assert [len(page.came) for page in pages] == [1, 1, 1, 0, 0]
    assert not any(page.over for page in pages)
    end(store, ref, 3)
    pages = [store.run(batch.results(ref, after=after)) for after in (3, 9)]
    assert [(len(page.came), page.over) for page in pages] == [(2, True), (0, True)]
    assert len(store.run(batch.results(ref, after=3, limit=1)).came) == 1


@pytest.mark.parametrize(("kept_h", "batch_kept_h"), [([1, 48, 2], 48), ([1, 1, 1], 1)])
def test_a_batch_is_kept_for_as_long_as_its_executions(
    store: BlockingStore, kept_h: list[int], batch_kept_h: int
) -> None:
    """Else the same key would begin another batch, whose executions were there before."""
    ref = stored(store, count=3)
    fed(store, ref)
    for index, hours in enumerate(kept_h):
        store.run(item_ended(ref, index, status="completed", response="{}", keep_s=hours * HOUR_S))
    for key in (ref.record, ref.results):
        assert store.redis.ttl(key) == pytest.approx(batch_kept_h * HOUR_S, abs=5)


def test_a_batch_that_is_fed_is_not_forgotten(store: BlockingStore) -> None:
    ref = stored(store, count=20)
    mine = (ref.record, ref.items, keys.open_batches(TENANT))
    for key in mine:
        store.redis.expire(key, 60)
    fed(store, ref)
    assert all(store.redis.ttl(key) > HOUR_S for key in mine)
    store.redis.delete(keys.due_batches())


def test_batches_are_listed_newest_first(store: BlockingStore) -> None:
    refs = [stored(store, number, count=1) for number in range(5)]
    store.redis.zadd(keys.batches(TENANT), {ref.batch_id: 1_000 + number // 2 for number, ref in enumerate(refs)})
    store.redis.delete(refs[0].record)
    listed = store.run(batch.page(TENANT, limit=3))
    assert [one.view and one.view.batch_id for one in listed] == [refs[n].batch_id for n in (4, 3, 2)]
    rest = store.run(batch.page(TENANT, before_ms=1_001, skip=2, limit=3))
    assert [one.view and one.view.batch_id for one in rest] == [refs[1].batch_id, None]
    store.redis.delete(keys.due_batches())


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(at_ms=st.integers(0, 250_000_000_000_000))
def test_a_moment_is_written_as_python_writes_it(store: BlockingStore, at_ms: int) -> None:
    text = store.redis.eval(ISO, 0, at_ms).decode()
    assert datetime.fromisoformat(text) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
