"""The outbox's scripts, one by one, on a real server."""

from __future__ import annotations

import json

import pytest

from agent_exec import keys
from agent_exec.contract.event import Frame
from agent_exec.errors import Conflict
from agent_exec.events import event_id
from agent_exec.notifier_state import NotifierReport
from agent_exec.store import Store
from notifier import outbox
from notifier.outbox import Left
from notifier.protocol import Ack, Position
from tests.notifier.played_work import Work

ME = "me"


async def send_all(store: Store, *, events: int = 10_000, holder: str = ME) -> list[tuple[str, int]]:
    """Take until there is nothing more, as an active notifier does; return what would have been sent."""
    assert await store.run(outbox.hold(NotifierReport(holder=holder), lease_s=5))
    frames: list[tuple[str, int]] = []
    while (taken := await store.run(outbox.take(events=events))).pages:
        frames += [(page.execution_id, event.sequence) for page in taken.pages for event in page.events]
        ends = [Position(page.tenant_id, page.execution_id, page.events[-1].sequence) for page in taken.pages]
        assert await store.run(outbox.sent(ends, holder=holder, forget_after_s=60)) is not None
    return frames


def an_ack(execution_id: str, sequence: int) -> Ack:
    return Ack(ack=event_id(execution_id, sequence))


async def acked(store: Store, execution_id: str, sequence: int) -> str:
    [verdict] = await store.run(outbox.acked([an_ack(execution_id, sequence)], remember_s=60))
    return verdict


async def test_what_is_taken_are_the_events_not_sent_as_frames(async_store: Store, work: Work) -> None:
    hold = await work.begin()
    await work.tokens(hold, 2, text='ü"\n')
    taken = await async_store.run(outbox.take(events=100))
    assert not taken.more
    [page] = taken.pages
    frames = [Frame.model_validate_json(page.frame(event)) for event in page.events]
    assert [(frame.sequence, frame.event) for frame in frames] == [
        (1, "agent_execution_started"),
        (2, "agent_response_token"),
        (3, "agent_response_token"),
    ]
    assert frames[1].data["token"] == 'ü"\n'
    assert await async_store.run(outbox.take(events=100)) == taken, "taking marks nothing"


async def test_nothing_is_sent_twice_and_new_events_come_back(async_store: Store, work: Work) -> None:
    hold = await work.begin()
    assert await send_all(async_store) == [(hold.ref.execution_id, 1)]
    assert await send_all(async_store) == []
    await work.tokens(hold, 2)
    assert await send_all(async_store) == [(hold.ref.execution_id, 2), (hold.ref.execution_id, 3)]
    assert await async_store.run(outbox.left()) == Left(unsent=0, unacked=1)


async def test_noting_what_was_sent_tells_what_waits_now(async_store: Store, work: Work) -> None:
    first, second = await work.begin(), await work.begin()
    assert await async_store.run(outbox.hold(NotifierReport(holder=ME), lease_s=5))
    ends = [Position("acme", hold.ref.execution_id, 1) for hold in (first, second)]
    assert await async_store.run(outbox.sent(ends[:1], holder=ME, forget_after_s=60)) == 1
    assert await async_store.run(outbox.sent(ends[1:], holder=ME, forget_after_s=60)) == 0


async def test_executions_take_turns(async_store: Store, work: Work) -> None:
    long, short = await work.begin(), await work.begin("globex")
    await work.tokens(long, outbox.EVENTS_OF_ONE_EXECUTION * 2)
    frames = await send_all(async_store)
    assert [sequence for execution, sequence in frames if execution == long.ref.execution_id] == list(range(1, 202))
    assert frames.index((short.ref.execution_id, 1)) == outbox.EVENTS_OF_ONE_EXECUTION


async def test_a_take_is_bounded_in_events_and_in_bytes(async_store: Store, work: Work) -> None:
    holds = [await work.begin() for _ in range(3)]
    for hold in holds:
        await work.tokens(hold, 2)
    taken = await async_store.run(outbox.take(events=4))
    assert ([len(page.events) for page in taken.pages], taken.more) == ([3, 1], True)
    large = "x" * (outbox.BYTES_AT_ONCE // 2)
    await work.tokens(holds[0], 3, text=large)
    taken = await async_store.run(outbox.take(events=1_000))
    assert taken.more
    assert sum(len(event.json) for page in taken.pages for event in page.events) < 2 * outbox.BYTES_AT_ONCE
    assert len(await send_all(async_store)) == 3 * 3 + 3


async def test_what_is_gone_is_forgotten(async_store: Store, work: Work) -> None:
    hold, other = await work.begin(), await work.begin()
    await send_all(async_store)
    await work.tokens(hold, 1)
    await work.tokens(other, 1)
    await async_store.redis.delete(keys.execution("acme", hold.ref.execution_id))
    await async_store.redis.delete(keys.streaming("acme", other.ref.execution_id))
    assert await send_all(async_store) == []
    assert (await async_store.run(outbox.left())).unsent == 0
    assert await acked(async_store, hold.ref.execution_id, 1) == "gone"
    while await async_store.run(outbox.rewind()):
        pass
    assert (await async_store.run(outbox.left())).unacked == 0


async def test_what_nobody_acknowledges_is_forgotten_in_the_end(async_store: Store, work: Work) -> None:
    await work.begin()
    await send_all(async_store)
    later = await work.begin()
    await send_all(async_store)
    assert (await async_store.run(outbox.left())).unacked == 2
    end = Position("acme", later.ref.execution_id, 1)
    await async_store.run(outbox.sent([end], holder=ME, forget_after_s=0))
    assert (await async_store.run(outbox.left())).unacked <= 1, "but for what was sent in this very millisecond"


async def test_only_the_active_notifier_notes_what_was_sent(async_store: Store, work: Work) -> None:
    hold = await work.begin()
    assert await async_store.run(outbox.hold(NotifierReport(holder="other"), lease_s=5))
    assert not await async_store.run(outbox.hold(NotifierReport(holder=ME), lease_s=5))
    end = Position("acme", hold.ref.execution_id, 1)
    assert await async_store.run(outbox.sent([end], holder=ME, forget_after_s=60)) is None
    assert (await async_store.run(outbox.left())) == Left(unsent=1, unacked=0)
    assert not await async_store.run(outbox.let_go(ME))
    assert await async_store.run(outbox.let_go("other"))
    assert await async_store.run(outbox.hold(NotifierReport(holder=ME), lease_s=5))


async def test_acks_are_cumulative_and_cover_no_event_that_was_not_sent(async_store: Store, work: Work) -> None:
    hold = await work.begin()
    await work.tokens(hold, 4)
    execution_id = hold.ref.execution_id
    assert await acked(async_store, execution_id, 1) == "ahead"
    await send_all(async_store)
    assert await acked(async_store, execution_id, 6) == "ahead"
    assert await acked(async_store, execution_id, 4) == "acked"
    assert await acked(async_store, execution_id, 2) == "acked", "late, and harmless"
    assert (await async_store.run(outbox.left())).unacked == 1
    await async_store.run(outbox.rewind())
    assert await send_all(async_store) == [(execution_id, 5)]
    assert await acked(async_store, execution_id, 5) == "acked"
    assert await async_store.run(outbox.left()) == Left(0, 0)
    assert await acked(async_store, "00000000-0000-0000-0000-000000000000", 1) == "gone"


async def test_arrival_acknowledges_until_the_orchestrator_does_so_itself(async_store: Store, work: Work) -> None:
    hold = await work.begin()
    await work.tokens(hold, 1)
    await send_all(async_store)
    arrived = [Position("acme", hold.ref.execution_id, 2)]
    assert await async_store.run(outbox.received(arrived))
    assert (await async_store.run(outbox.left())).unacked == 0
    await work.tokens(hold, 1)
    await send_all(async_store)
    assert await acked(async_store, hold.ref.execution_id, 1) == "acked"
    assert not await async_store.run(outbox.received([Position("acme", hold.ref.execution_id, 3)]))
    assert (await async_store.run(outbox.left())).unacked == 1
    assert await async_store.redis.ttl(keys.orchestrator_acks()) > 0


async def test_a_replay_sends_again_what_was_acknowledged(async_store: Store, work: Work) -> None:
    hold = await work.begin()
    await work.tokens(hold, 4)
    execution_id = hold.ref.execution_id
    await send_all(async_store)
    await acked(async_store, execution_id, 5)
    assert await async_store.run(outbox.replay(Position("acme", execution_id, 4))) == "replaying"
    assert await acked(async_store, execution_id, 5) == "ahead", "an ack on its way does not undo a replay"
    assert await send_all(async_store) == [(execution_id, 4), (execution_id, 5)]
    assert await acked(async_store, execution_id, 5) == "acked"
    assert await async_store.run(outbox.replay(Position("acme", execution_id, 6))) == "ahead"
    assert await async_store.run(outbox.replay(Position("globex", execution_id, 1))) == "gone"
    assert await async_store.run(outbox.left()) == Left(0, 0)


async def test_an_id_leads_to_its_tenant_for_as_long_as_the_execution_lives(async_store: Store, work: Work) -> None:
    hold = await work.begin("globex")
    execution_id = hold.ref.execution_id
    assert await async_store.run(outbox.tenant_of(execution_id)) == "globex"
    assert await async_store.run(outbox.tenant_of("unknown")) is None
    await work.finish(hold)
    left_s = [
        await async_store.redis.ttl(key)
        for key in (keys.tenant_of(execution_id), keys.execution("globex", execution_id))
    ]
    assert left_s[0] == left_s[1] > 0


async def test_an_id_that_another_tenant_has_is_refused(async_store: Store, work: Work) -> None:
    hold = await work.begin("globex")
    with pytest.raises(Conflict):
        await work.begin("acme", execution_id=hold.ref.execution_id)
    assert await async_store.run(outbox.tenant_of(hold.ref.execution_id)) == "globex"


def test_a_prefix_is_what_its_keys_begin_with() -> None:
    for key, prefix in (
        (keys.streaming("acme", "e"), keys.streaming_prefix()),
        (keys.execution("acme", "e"), keys.execution_prefix()),
    ):
        assert key == f"{prefix}acme:e"
    assert keys.tenant_of("e") == f"{keys.tenant_of_prefix()}e"


async def test_the_scripts_survive_json_of_any_kind(async_store: Store, work: Work) -> None:
    hold = await work.begin()
    await work.tokens(hold, 1, text="\x00\u2028\U0001f9ea")
    [page] = (await async_store.run(outbox.take(events=9))).pages
    assert json.loads(page.frame(page.events[1]))["data"]["token"] == "\x00\u2028\U0001f9ea"
