"""The notifier against a real orchestrator that fails in every way, and a real Redis that goes away."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent_exec import keys
from agent_exec.broker import fair_queue
from agent_exec.contract.approval import word_for
from agent_exec.contract.event import Frame
from agent_exec.embedded import EmbeddedServer
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed
from agent_exec.notifier_state import NotifierState, notifier_state
from agent_exec.settings import Settings
from agent_exec.store import Store
from notifier import connection, protocol, session
from notifier.commands import carry_out
from notifier.protocol import CancelExecution
from tests.notifier.conftest import TOKEN, Notifying
from tests.notifier.played_orchestrator import Orchestrator, in_order, until
from tests.notifier.played_work import Work, all_done, eventually

UNKNOWN = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(params=["acknowledges", "says nothing"])
def manners(request: pytest.FixtureRequest, orchestrator: Orchestrator) -> str:
    """An orchestrator that acknowledges, and one that does not."""
    if request.param == "acknowledges":
        orchestrator.acks = lambda _: True
    return str(request.param)


@pytest.mark.usefixtures("manners")
async def test_events_arrive_in_order_as_frames_of_the_contract(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    async with notifying():
        hold = await work.begin()
        await work.tokens(hold, 3)
        await work.finish(hold)
        await until(lambda: len(orchestrator.frames) == 5)
        await all_done(async_store)
    assert orchestrator.sequences() == {hold.ref.execution_id: [1, 2, 3, 4, 5]}
    for frame in orchestrator.frames:
        Frame.model_validate(frame, strict=False)
    assert len(orchestrator.handshakes) == 1, "one connection, not one a token"


@pytest.mark.usefixtures("manners")
async def test_a_backlog_waits_in_redis_and_is_delivered_later(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    """S39: nothing is trimmed that nobody has read."""
    orchestrator.refuses = 503
    holds = [await work.begin(tenant_id) for tenant_id in ("acme", "globex", "initech")]
    async with notifying():
        await until(lambda: len(orchestrator.handshakes) >= 3)
        for hold in holds:
            await work.tokens(hold, 700)
        orchestrator.refuses = None
        await until(lambda: all(orchestrator.has_all(hold.ref.execution_id, 701) for hold in holds))
        await all_done(async_store)
    assert all(sequences == list(range(1, 702)) for sequences in orchestrator.sequences().values())
    tenants = {(frame["execution_id"], frame["tenant_id"]) for frame in orchestrator.frames}
    assert tenants == {(hold.ref.execution_id, hold.ref.tenant_id) for hold in holds}


@pytest.mark.usefixtures("manners")
async def test_no_event_is_missing_and_none_is_out_of_order_while_sockets_die(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    holds = [await work.begin() for _ in range(8)]
    ended = asyncio.Event()

    async def cut() -> None:
        while not ended.is_set():
            await asyncio.sleep(random.uniform(0, 0.15))
            orchestrator.sever()

    async with notifying():
        cutting = asyncio.create_task(cut())
        for _ in range(50):
            for hold in holds:
                await work.tokens(hold, random.randint(1, 8))
            await asyncio.sleep(random.uniform(0, 0.03))
        for hold in holds:
            await work.finish(hold)
        ended.set()
        await cutting
        lasts = [
            int(await async_store.redis.hget(keys.execution("acme", hold.ref.execution_id), "sequence"))
            for hold in holds
        ]
        executions = [hold.ref.execution_id for hold in holds]
        await until(lambda: all(map(orchestrator.has_all, executions, lasts)))
        await all_done(async_store)
    assert len(orchestrator.handshakes) > 5
    assert all(in_order(sequences) for sequences in orchestrator.sequences().values())
    ids: dict[str, dict[str, object]] = {}
    for frame in orchestrator.frames:
        assert ids.setdefault(frame["event_id"], frame) == frame, "sent again, it is the same to the last letter"


async def test_what_was_not_acknowledged_is_sent_again_and_no_more(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    orchestrator.acks = lambda frame: frame["sequence"] <= 3
    hold = await work.begin()
    await work.tokens(hold, 5)
    execution_id = hold.ref.execution_id
    async with notifying():
        await until(lambda: orchestrator.has_all(execution_id, 6))

        async def three_are_acked() -> bool:
            return await async_store.redis.hget(keys.execution("acme", execution_id), "acked") == b"3"

        await eventually(three_are_acked)
        orchestrator.acks = lambda _: True
        orchestrator.sever()
        await all_done(async_store)
    assert orchestrator.sequences()[execution_id] == [1, 2, 3, 4, 5, 6, 4, 5, 6]


async def test_a_silent_orchestrators_connection_is_replaced(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 0.3)
    monkeypatch.setattr(connection, "CLOSE_TIMEOUT_S", 0.1)
    hold = await work.begin()
    async with notifying():
        await until(lambda: orchestrator.frames)
        orchestrator.swallow()
        await work.tokens(hold, 20)
        await until(lambda: orchestrator.has_all(hold.ref.execution_id, 21))
        await all_done(async_store)
    assert len(orchestrator.handshakes) == 2


async def test_a_dead_connection_is_noticed_without_any_traffic(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 0.2)
    monkeypatch.setattr(connection, "CLOSE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(session, "PROBE_AFTER_S", 0.1)
    async with notifying():
        await until(lambda: orchestrator.open)
        orchestrator.swallow()
        await until(lambda: len(orchestrator.handshakes) == 2)


async def test_frames_on_their_way_are_bounded_by_the_window(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    hold = await work.begin()
    await work.tokens(hold, 3_000)
    record = keys.execution("acme", hold.ref.execution_id)

    async def on_their_way() -> int:
        notified, acked = await async_store.redis.hmget(record, "notified", "acked")
        return int(notified or 0) - int(acked or 0)

    async def window_is_full() -> bool:
        count = await on_their_way()
        assert count <= 64
        return count == 64

    orchestrator.reads.clear()
    async with notifying(notifier_window=64):
        await eventually(window_is_full)
        orchestrator.reads.set()
        await until(lambda: orchestrator.has_all(hold.ref.execution_id, 3_001))
        await all_done(async_store)
    assert len(orchestrator.handshakes) == 1


async def test_a_refused_token_raises_an_alarm_and_is_hardly_tried_again(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F50."""
    monkeypatch.setattr(connection, "REFUSED_PAUSE_S", (0.4, 0.5))
    hold = await work.begin()
    orchestrator.refuses = 401
    with capture_logs() as logs:
        async with notifying():
            await until(lambda: len(orchestrator.handshakes) == 2)
            orchestrator.refuses, orchestrator.slams = None, 4401
            await until(lambda: len(orchestrator.handshakes) == 3)
            orchestrator.slams = None
            await until(lambda: orchestrator.has_all(hold.ref.execution_id, 1))
    assert all(after - before >= 0.4 for before, after in pairwise(orchestrator.handshake_times))
    alarms = [log for log in logs if log["log_level"] == "error"]
    assert [alarm["why"] for alarm in alarms] == ["the orchestrator answered 401"] * 2 + [
        "the orchestrator closed with 4401"
    ]
    assert all("AGENT_EXEC_SERVICE_TOKEN" in alarm["event"] for alarm in alarms)
    assert TOKEN not in str(logs)


async def test_f50_a_token_that_expires_is_read_anew_from_its_file(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("the-first-token")
    orchestrator.token = "the-first-token"
    hold = await work.begin()
    async with notifying(service_token_file=file):
        await until(lambda: orchestrator.has_all(hold.ref.execution_id, 1))
        orchestrator.token = "the-second-token"
        [connected] = orchestrator.open
        await connected.close(4401)
        await work.tokens(hold, 3)

        async def told() -> bool:
            report = (await async_store.run(notifier_state())).report
            return report is not None and report.trouble == "the orchestrator closed with 4401"

        await eventually(told)
        assert len(orchestrator.handshakes) == 1, "what it has is refused: it waits for another"
        file.write_text("the-second-token")
        await until(lambda: orchestrator.has_all(hold.ref.execution_id, 4))
        await all_done(async_store)
    assert len(orchestrator.handshakes) == 2


async def test_an_operator_sees_how_it_stands(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    nobody = await async_store.run(notifier_state())
    assert nobody == NotifierState(is_active=False, report=None, unsent=0, unacked=0, lag_s=0)
    holds = [await work.begin() for _ in range(3)]
    await asyncio.sleep(0.05)  # that the oldest event has an age
    waiting = await async_store.run(notifier_state())
    assert (waiting.unsent, waiting.unacked, waiting.is_connected) == (3, 0, False)
    assert 0.05 <= waiting.lag_s < 10
    orchestrator.acks = lambda frame: frame["execution_id"] != holds[0].ref.execution_id
    orchestrator.refuses = 503

    async def seen(is_it: Callable[[NotifierState], bool]) -> NotifierState:
        states = list[NotifierState]()

        async def is_now() -> bool:
            states.append(await async_store.run(notifier_state()))
            return is_it(states[-1])

        await eventually(is_now)
        return states[-1]

    async with notifying():
        state = await seen(lambda state: state.report is not None and state.report.trouble is not None)
        assert (state.is_active, state.is_connected, state.unsent) == (True, False, 3)
        assert state.report is not None
        assert state.report.trouble == "the orchestrator answered 503"
        orchestrator.refuses = None
        await until(lambda: orchestrator.open)
        await orchestrator.say("junk")
        state = await seen(lambda state: state.report is not None and bool(state.report.ignored))
        assert (state.is_connected, state.unsent, state.unacked, state.lag_s) == (True, 0, 1, 0)
        assert state.report is not None
        assert (state.report.holder, state.report.connections, state.report.sent) == ("one", 1, 3)
        assert state.report.ignored == {"not_json": 1}
        assert (state.report.trouble, state.report.connected_since_ms is None) == (None, False)
        orchestrator.acks = lambda _: True
        await orchestrator.say({"ack": f"{holds[0].ref.execution_id}:1"})
        await all_done(async_store)
    over = await async_store.run(notifier_state())
    assert (over.is_active, over.is_connected) == (False, False)
    assert over.report is not None, "what the last one said stays readable"


async def test_an_orchestrator_that_accepts_and_closes_is_backed_off_from(
    orchestrator: Orchestrator, notifying: Notifying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _, high: high)
    orchestrator.slams = 1013
    async with notifying(notifier_backoff_cap_s=0.6):
        await until(lambda: len(orchestrator.handshakes) == 4)
    gaps = [after - before for before, after in pairwise(orchestrator.handshake_times)]
    assert all(gap >= pause for gap, pause in zip(gaps, [0.25, 0.5, 0.6], strict=True))


async def test_another_notifier_takes_over(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    hold = await work.begin()
    async with notifying("two"):
        await until(lambda: orchestrator.open)
        async with notifying("one"):
            await work.tokens(hold, 1)
            await until(lambda: orchestrator.has_all(hold.ref.execution_id, 2))
            assert len(orchestrator.handshakes) == 1, "one stands by"
            # Two is cut off from Redis for longer than its lease, and finds another in its place.
            await async_store.redis.set(keys.notifier_lease(), "one", px=1_000)
            await until(lambda: len(orchestrator.handshakes) == 2 and len(orchestrator.open) == 1)
            await work.tokens(hold, 1)
            await until(lambda: orchestrator.has_all(hold.ref.execution_id, 3))
        await until(lambda: len(orchestrator.handshakes) == 3)
        await work.tokens(hold, 1)
        await until(lambda: orchestrator.has_all(hold.ref.execution_id, 4))
        await all_done(async_store)


async def test_frames_of_a_notifier_that_lost_its_lease_are_sent_by_the_next(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    """F48."""
    async with notifying("one"):
        await until(lambda: orchestrator.open)
        await async_store.redis.set(keys.notifier_lease(), "somebody else", px=700)
        hold = await work.begin()
        await until(lambda: len(orchestrator.handshakes) == 2)
        await until(lambda: orchestrator.has_all(hold.ref.execution_id, 1))
        await all_done(async_store)


async def test_redis_may_go_and_come_back(orchestrator: Orchestrator, notifying: Notifying, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        async with notifying(redis_url=server.url):
            store = Store(server.url)
            work = Work(store)
            hold = await work.begin()
            await work.tokens(hold, 10)
            await until(lambda: orchestrator.has_all(hold.ref.execution_id, 11))
            server.kill()
            await until(lambda: not orchestrator.open)
            server.start()
            await work.tokens(hold, 10)
            await until(lambda: orchestrator.has_all(hold.ref.execution_id, 21), within_s=5)
            await all_done(store)
            await store.aclose()
    assert in_order(orchestrator.sequences()[hold.ref.execution_id])


async def test_a_notifier_waits_for_a_redis_that_is_not_there_yet(
    orchestrator: Orchestrator, notifying: Notifying, tmp_path: Path
) -> None:
    server = EmbeddedServer(tmp_path)
    server.start()
    server.stop()
    with capture_logs() as logs:
        async with notifying(redis_url=server.url):
            await until(lambda: any(log["event"] == "waiting" for log in logs))
            server.start()
            await until(lambda: orchestrator.open, within_s=5)
    assert [log["event"] for log in logs[:3]] == ["waiting", "working again", "active"]
    server.stop()


async def test_a_cancel_is_durable_and_answered(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    hold, over = await work.begin("globex"), await work.begin()
    await work.finish(over)
    async with notifying():
        for named in (
            {"execution_id": hold.ref.execution_id},
            {"execution_id": hold.ref.execution_id, "tenant_id": "globex"},
            {"execution_id": hold.ref.execution_id, "tenant_id": "acme"},
            {"execution_id": over.ref.execution_id},
            {"execution_id": UNKNOWN},
            {"execution_id": "no id"},
        ):
            await orchestrator.say({"command": "cancel_execution", **named})
        await until(lambda: len(orchestrator.results()) == 6)
    codes = [result.get("code") for result in orchestrator.results()]
    assert codes == [None, None, "not_found", "already_over", "not_found", "invalid_message"]
    assert [result["ok"] for result in orchestrator.results()] == [code is None for code in codes]
    assert (await async_store.run(ledger.look("globex", hold.ref.execution_id))).cancel_requested


async def test_a_cancel_of_what_waits_in_a_queue_makes_it_due_at_once(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    hold = await work.begin()
    await async_store.run(ledger.wait(hold, due_in_s=3_600, events=[]))
    async with notifying():
        await orchestrator.say({"command": "cancel_execution", "execution_id": hold.ref.execution_id})
        await until(orchestrator.results)
    assert (await async_store.run(ledger.due())).ends == (hold.ref,)


async def test_an_approval_that_nobody_waits_for_is_answered(
    orchestrator: Orchestrator, work: Work, notifying: Notifying
) -> None:
    hold = await work.begin()
    async with notifying():
        for execution_id in (hold.ref.execution_id, UNKNOWN):
            await orchestrator.say(
                {
                    "command": "resolve_approval",
                    "execution_id": execution_id,
                    "tool_call_id": "call_1",
                    "approved": True,
                }
            )
        await until(lambda: len(orchestrator.results()) == 2)
    assert [result["code"] for result in orchestrator.results()] == ["not_awaiting_approval", "not_found"]
    assert orchestrator.results()[0]["tool_call_id"] == "call_1"


async def test_an_approval_is_resolved_and_the_call_goes_on_at_once(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    hold = await work.begin()
    await async_store.run(ledger.wait(hold, due_in_s=3_600, events=[], awaits=word_for("call_1")))
    before = (await async_store.run(fair_queue.depths()))["agent_execution"].waiting
    command = {
        "command": "resolve_approval",
        "execution_id": hold.ref.execution_id,
        "tool_call_id": "call_1",
        "reason": "Not today.",
    }
    async with notifying():
        for approved in (False, False, True):
            await orchestrator.say({**command, "approved": approved})
        await until(lambda: len(orchestrator.results()) == 3)
    assert [result.get("code") for result in orchestrator.results()] == [None, None, "already_resolved"]
    assert {result["tool_call_id"] for result in orchestrator.results()} == {"call_1"}
    assert (await async_store.run(fair_queue.depths()))["agent_execution"].waiting == before + 1
    claimed = await async_store.run(ledger.claim(hold.ref, lease_s=5, worker="w"))
    assert isinstance(claimed, Claimed)
    assert json.loads(claimed.word or "") == {"approved": False, "reason": "Not today."}


@pytest.mark.usefixtures("manners")
async def test_a_replay_sends_events_again(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    hold = await work.begin()
    await work.tokens(hold, 4)
    await work.finish(hold)
    execution_id = hold.ref.execution_id
    async with notifying():
        await until(lambda: orchestrator.has_all(execution_id, 6))
        await all_done(async_store)
        for sequence in (4, 7):
            await orchestrator.say({"command": "replay_from", "execution_id": execution_id, "sequence": sequence})
        await orchestrator.say({"command": "replay_from", "execution_id": UNKNOWN, "tenant_id": "acme", "sequence": 1})
        await until(lambda: len(orchestrator.results()) == 3)
        await until(lambda: len(orchestrator.sequences()[execution_id]) == 9)
        await all_done(async_store)
    assert orchestrator.sequences()[execution_id] == [1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert [result.get("code") for result in orchestrator.results()] == [None, "no_such_event", "not_found"]


async def test_a_command_is_answered_while_redis_is_away() -> None:
    nowhere = Store("redis://127.0.0.1:1")
    cancel = CancelExecution(command="cancel_execution", execution_id=UNKNOWN)
    result = await carry_out(cancel, store=nowhere)
    await nowhere.aclose()
    assert (result.ok, result.code) == (False, "storage_unavailable")


async def test_junk_is_counted_and_harms_nothing(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    """B37."""
    hold = await work.begin()
    execution_id = hold.ref.execution_id
    async with notifying() as running:
        await until(lambda: orchestrator.has_all(execution_id, 1))
        for junk in (
            {"ack": "yes"},
            {"ack": 2**63},
            {"ack": f"{execution_id}:{10**14}"},
            {"ack": f"{UNKNOWN}:1"},
            {"command": "shutdown", "execution_id": execution_id},
            [],
            "not json",
            b"\x00",
        ):
            await orchestrator.say(junk)
        await until(lambda: running.tally.ignored.total() == 8)
        await work.tokens(hold, 1)
        await until(lambda: orchestrator.has_all(execution_id, 2))
        await all_done(async_store)
    assert running.tally.ignored == {
        "bad_ack": 2,
        "ack_ahead": 1,
        "ack_gone": 1,
        "unknown_command": 1,
        "other_shape": 1,
        "not_json": 1,
        "not_text": 1,
    }
    assert len(orchestrator.handshakes) == 1


async def test_a_late_ack_takes_nothing_back(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    hold = await work.begin()
    await work.tokens(hold, 2)
    execution_id = hold.ref.execution_id
    async with notifying():
        await until(lambda: orchestrator.has_all(execution_id, 3))
        for sequence in (3, 2, 1):
            await orchestrator.say({"ack": f"{execution_id}:{sequence}"})
        await all_done(async_store)
        orchestrator.sever()
        await until(lambda: len(orchestrator.handshakes) == 2)
        await work.tokens(hold, 1)
        await until(lambda: orchestrator.has_all(execution_id, 4))
    assert orchestrator.sequences()[execution_id] == [1, 2, 3, 4]


async def test_a_flood_of_acks_is_ignored(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_WAITING_ACKS", 0)
    orchestrator.acks = lambda _: True
    await work.begin()
    async with notifying(notifier_drain_s=0.1) as running:
        await until(lambda: running.tally.ignored["too_many_acks"])


async def test_a_flood_of_commands_is_ignored_and_blocks_no_ack(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MAX_WAITING_COMMANDS", 1)
    hold = await work.begin()
    execution_id = hold.ref.execution_id
    async with notifying() as running:
        await until(lambda: orchestrator.has_all(execution_id, 1))
        orchestrator.reads.clear()
        await work.tokens(hold, 200, text="x" * 100_000)
        while not running.tally.ignored["too_many_commands"]:
            await orchestrator.say({"command": "replay_from", "execution_id": execution_id, "sequence": 1})
            await asyncio.sleep(0.005)
        orchestrator.reads.set()
        await until(lambda: orchestrator.has_all(execution_id, 201))
        await until(orchestrator.results)


async def test_an_orchestrator_may_acknowledge_ends_alone(
    orchestrator: Orchestrator, work: Work, notifying: Notifying, async_store: Store
) -> None:
    orchestrator.acks = lambda frame: frame["event"] == "agent_execution_completed"
    holds = [await work.begin() for _ in range(40)]
    async with notifying(notifier_window=16):
        for hold in holds:
            await work.tokens(hold, 10)
        await until(lambda: all(orchestrator.has_all(hold.ref.execution_id, 11) for hold in holds))
        for hold in holds:
            await work.finish(hold)
        await all_done(async_store)
    assert all(sequences == list(range(1, 13)) for sequences in orchestrator.sequences().values())


async def test_nothing_runs_on_after_the_end(
    settings: Settings, orchestrator: Orchestrator, notifying: Notifying
) -> None:
    before = asyncio.all_tasks()
    async with notifying():
        await until(lambda: orchestrator.open)
    await until(lambda: not orchestrator.open)
    assert {task for task in asyncio.all_tasks() if "conn" not in repr(task)} <= before
