"""The scripts of schedules: each time begins one execution, whoever takes it and dies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_exec import ExecutionRequest, keys
from agent_exec.contract.schedule import ScheduleRequest
from agent_exec.errors import Conflict, NotFound, TooManySchedules
from agent_exec.schedules import schedule
from agent_exec.schedules.schedule import Scheduled, ScheduleRef
from tests.ledger.clocked import BEGIN_MS, ClockedStore

MINUTE_MS = 60_000
REF = ScheduleRef("acme", "00000000-0000-4000-8000-000000000001")
EVERY_MINUTE = ScheduleRequest(cron="* * * * *", request=ExecutionRequest(agent_id="desk", query="What is new?"))
#: The first minute after the played clock's beginning.
FIRST_MS = (BEGIN_MS // MINUTE_MS + 1) * MINUTE_MS


@pytest.fixture
def clocked(redis_url: str) -> Iterator[ClockedStore]:
    store = ClockedStore(redis_url)
    yield store
    store.close()


def create(
    store: ClockedStore, ref: ScheduleRef = REF, asked: ScheduleRequest = EVERY_MINUTE, *, at_most: int = 9
) -> bool:
    return store.run(schedule.create(ref, asked, now_ms=store.now_ms, at_most=at_most))


def test_a_schedule_is_stored_once_and_shown(clocked: ClockedStore) -> None:
    assert create(clocked)
    assert not create(clocked)
    with pytest.raises(Conflict):
        create(clocked, asked=EVERY_MINUTE.model_copy(update={"overlap": False}))
    view = clocked.run(schedule.look(REF)).view()
    assert (view.cron, view.timezone, view.request, view.paused) == ("* * * * *", "UTC", EVERY_MINUTE.request, False)
    assert view.next_at is not None
    assert view.next_at.timestamp() * 1000 == FIRST_MS
    page = clocked.run(schedule.page("acme", limit=9))
    assert ([one.schedule.view() for one in page.listed], page.is_last) == ([view], True)
    assert clocked.run(schedule.page("globex", limit=9)).listed == ()


def test_a_tenant_has_so_many_and_no_more(clocked: ClockedStore) -> None:
    create(clocked, at_most=1)
    with pytest.raises(TooManySchedules, match="delete one"):
        create(clocked, ScheduleRef("acme", "00000000-0000-4000-8000-000000000002"), at_most=1)


def test_another_tenants_schedule_is_missing(clocked: ClockedStore) -> None:
    create(clocked)
    foreign = ScheduleRef("globex", REF.schedule_id)
    for call in (schedule.look(foreign), schedule.pause(foreign), schedule.delete(foreign)):
        with pytest.raises(NotFound):
            clocked.run(call)


def test_what_is_paused_begins_nothing_until_it_goes_on(clocked: ClockedStore) -> None:
    create(clocked)
    clocked.run(schedule.pause(REF))
    clocked.advance(10 * MINUTE_MS)
    assert clocked.run(schedule.due()) == []
    assert clocked.run(schedule.look(REF)).view().next_at is None
    clocked.run(schedule.resume(clocked.run(schedule.look(REF))))
    assert clocked.run(schedule.due()) == []  # what passed meanwhile is not made up for
    clocked.advance(MINUTE_MS)
    assert len(clocked.run(schedule.due())) == 1


def test_what_is_deleted_leaves_nothing(clocked: ClockedStore) -> None:
    create(clocked)
    clocked.run(schedule.delete(REF))
    with pytest.raises(NotFound):
        clocked.run(schedule.delete(REF))
    assert not clocked.redis.exists(
        keys.due_schedules(), keys.schedules("acme"), keys.schedule("acme", REF.schedule_id)
    )


def test_one_deleted_while_it_was_taken_is_not_brought_back(clocked: ClockedStore) -> None:
    create(clocked)
    clocked.advance(MINUTE_MS)
    [taken] = clocked.run(schedule.due())
    clocked.run(schedule.delete(REF))
    assert not clocked.run(schedule.begun(taken))
    assert not clocked.redis.exists(keys.due_schedules(), keys.schedule("acme", REF.schedule_id))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    moves=st.lists(st.tuples(st.integers(0, 150_000), st.booleans(), st.booleans()), min_size=1, max_size=30),
)
def test_each_time_begins_one_execution_whoever_dies(
    clocked: ClockedStore, moves: list[tuple[int, bool, bool]]
) -> None:
    """A move: time passes; who takes what is due may die before it begins it, and before it says that it has."""
    clocked.redis.flushdb()
    clocked.now_ms = BEGIN_MS
    clocked.advance(0)
    create(clocked)
    begun: dict[str, int] = {}
    late: list[Scheduled] = []
    for pass_ms, begins, says in [*moves, (2 * MINUTE_MS, True, True)]:
        clocked.advance(pass_ms)
        for taken in clocked.run(schedule.due()):
            assert taken.due_ms <= clocked.now_ms
            if not begins:
                continue
            begun[taken.execution_id] = begun.get(taken.execution_id, taken.due_ms)
            assert begun[taken.execution_id] == taken.due_ms
            if says:
                assert clocked.run(schedule.begun(taken))
            late.append(taken)
    times = sorted(begun.values())
    assert len(times) == len(set(times)) == len(begun)
    assert all(time_ms % MINUTE_MS == 0 and time_ms >= FIRST_MS for time_ms in times)
    standing = clocked.run(schedule.look(REF))
    assert standing.due_ms > clocked.now_ms  # what passed while nobody looked is left behind
    for taken in late:  # who wakes long after moves nothing
        assert not clocked.run(schedule.begun(taken))
    assert clocked.run(schedule.look(REF)).due_ms == standing.due_ms
    clocked.run(schedule.delete(REF))


def test_one_that_is_looked_at_before_its_time_begins_nothing(clocked: ClockedStore) -> None:
    create(clocked)
    entry = f"acme {REF.schedule_id}"
    clocked.redis.zadd(keys.due_schedules(), {entry: 0})
    assert clocked.run(schedule.due()) == []
    assert clocked.redis.zscore(keys.due_schedules(), entry) == FIRST_MS
    clocked.run(schedule.delete(REF))
