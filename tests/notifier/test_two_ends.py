"""Two ends in memory: ours and an orchestrator's talk over wires that a test holds in its hands; no socket, no clock.

Ours is what the notifier is made of, its conversation and its scripts; hypothesis decides what is sent, lost, acknowledged,
replayed and taken over, and when. Whatever it does, every event of every execution arrives, in order, at least once.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from agent_exec import keys, submission
from agent_exec.contract.event import EventName
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, Event, Hold, StepRef
from agent_exec.notifier_state import NotifierReport
from agent_exec.store import BlockingStore
from notifier import outbox
from notifier.outbox import Left
from notifier.protocol import Conversation, Position, ReplayFrom

WINDOW = 7
TENANTS = ("acme", "globex", "acme")
BRIEFLY = settings(max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck))
#: Which of the executions; wrapped round.
ANY = st.integers(min_value=0, max_value=len(TENANTS) - 1)
SOME = st.integers(min_value=1, max_value=9)
#: Most of what happens is no misfortune.
SELDOM = st.sampled_from([False, False, False, False, True])


class Ping:
    """A ping on its way, or the pong on its way back."""


@dataclass
class End:
    """A notifier's end, and the two wires to the orchestrator."""

    holder: str
    ours: Conversation
    out: deque[str | Ping] = field(default_factory=deque)
    back: deque[str | Ping] = field(default_factory=deque)
    has_pinged: bool = False


@dataclass
class Told:
    """An execution, and what the orchestrator has heard of it."""

    hold: Hold
    last: int = 1
    got: list[int] = field(default_factory=list)
    #: What it has asked to hear again: from this sequence, after so many frames of it.
    again: list[tuple[int, int]] = field(default_factory=list)


class TwoEnds(RuleBasedStateMachine):
    """Three executions of two tenants, one or two notifiers, one orchestrator."""

    store: ClassVar[BlockingStore]

    @initialize(acknowledges=st.booleans())
    def begin(self, acknowledges: bool) -> None:
        self.store.redis.flushdb()
        self.acknowledges = acknowledges
        self.told: dict[str, Told] = {}
        for tenant_id in TENANTS:
            message = submission.message_of(ExecutionRequest(agent_id="desk", query="?"), tenant_id=tenant_id)
            self.store.run(submission.store(message, open_retention_s=86_400, max_queued=100))
            claim = self.store.run(
                ledger.claim(StepRef(tenant_id, message.execution_id, "prompt"), lease_s=600, worker="w")
            )
            assert isinstance(claim, Claimed)
            self.told[message.execution_id] = Told(claim.hold)
        self.ends: list[End] = []
        self.holders = 0
        self.take_over()

    # What a worker does.

    @rule(which=ANY, count=SOME)
    def tell(self, which: int, count: int) -> None:
        one = list(self.told.values())[which]
        event = Event(EventName.PROGRESS, "{}")
        assert self.store.run(ledger.tell(one.hold, [event] * count)) == "told"
        one.last += count

    # What notifiers do.

    @rule(happens=SELDOM)
    def loses_its_lease(self, happens: bool) -> None:
        if happens:
            self.take_over()

    def take_over(self) -> None:
        """The lease of the active one has ended, and it does not know: another begins, with its own connection."""
        self.store.redis.delete(keys.notifier_lease())
        self.holders += 1
        holder = f"notifier-{self.holders}"
        assert self.store.run(outbox.hold(NotifierReport(holder=holder), lease_s=600))
        self.ends = [*self.ends[-1:], self._connected(holder)]

    def _connected(self, holder: str) -> End:
        while self.store.run(outbox.rewind()):
            pass
        return End(holder, Conversation(window=WINDOW, ignore=self._ignored))

    @staticmethod
    def _ignored(reason: str) -> None:
        assert reason == "never", "nothing is said that means nothing"

    @rule(end=st.integers(0, 1), dies=SELDOM, arrive=st.integers(0, WINDOW))
    def round(self, end: int, dies: bool, arrive: int) -> None:
        """Take, send, note; or die before noting, with some of what was sent arriving all the same."""
        one = self.ends[end % len(self.ends)]
        if one.ours.room <= 0:
            return
        pages = self.store.run(outbox.take(events=one.ours.room)).pages
        for page in pages:
            one.out.extend(page.frame(event) for event in page.events)
            one.ours.sent(self._end(page), frames=len(page.events))
        positions = [self._end(page) for page in pages]
        if dies or (pages and self.store.run(outbox.sent(positions, holder=one.holder, forget_after_s=600)) is None):
            self.carry(end, arrive)
            self.cut(end)

    @staticmethod
    def _end(page: outbox.Page) -> Position:
        return Position(page.tenant_id, page.execution_id, page.events[-1].sequence)

    @rule(end=st.integers(0, 1))
    def ping(self, end: int) -> None:
        one = self.ends[end % len(self.ends)]
        if not one.has_pinged:
            one.has_pinged = True
            one.ours.ping()
            one.out.append(Ping())

    @rule(end=st.integers(0, 1), count=SOME)
    def hear(self, end: int, count: int) -> None:
        one = self.ends[end % len(self.ends)]
        for _ in range(min(count, len(one.back))):
            match one.back.popleft():
                case Ping():
                    one.has_pinged = False
                    one.ours.pong()
                case str(message):
                    command = one.ours.heard(message)
                    if isinstance(command, ReplayFrom):
                        self._replay(one, command)

    def _replay(self, one: End, command: ReplayFrom) -> None:
        told = self.told[command.execution_id]
        one.ours.sends_again(command.execution_id)
        position = Position(told.hold.ref.tenant_id, command.execution_id, command.sequence)
        assert self.store.run(outbox.replay(position)) == "replaying"
        if one is self.ends[-1]:  # of a notifier that has lost its lease, the new one knows nothing of this
            told.again.append((command.sequence, len(told.got)))

    @rule(end=st.integers(0, 1))
    def settle(self, end: int) -> None:
        unsettled = self.ends[end % len(self.ends)].ours.unsettled()
        if unsettled.acks:
            self.store.run(outbox.acked(unsettled.acks, remember_s=600))
        if unsettled.received:
            self.store.run(outbox.received(unsettled.received))

    @rule(end=st.integers(0, 1), happens=SELDOM)
    def loses_its_connection(self, end: int, happens: bool) -> None:
        if happens:
            self.cut(end)

    def cut(self, end: int) -> None:
        """A connection dies with all that is on its wires. The active notifier connects anew."""
        one = self.ends.pop(end % len(self.ends))
        if one.holder == f"notifier-{self.holders}":
            self.ends.append(self._connected(one.holder))

    # What the orchestrator does.

    @rule(end=st.integers(0, 1), count=SOME)
    def carry(self, end: int, count: int) -> None:
        """Frames arrive, and are acknowledged by an orchestrator that does this."""
        one = self.ends[end % len(self.ends)]
        for _ in range(min(count, len(one.out))):
            match one.out.popleft():
                case Ping() as ping:
                    one.back.append(ping)
                case str(text):
                    frame = json.loads(text)
                    told = self.told[frame["execution_id"]]
                    earlier = max(told.got, default=0)
                    assert frame["sequence"] <= earlier + 1, "an event arrives after all that were before it"
                    told.got.append(frame["sequence"])
                    if self.acknowledges:
                        one.back.append(json.dumps({"ack": frame["event_id"]}))

    @rule(which=ANY, end=st.integers(0, 1), sequence=SOME)
    def ask_again(self, which: int, end: int, sequence: int) -> None:
        """It asks to hear again what it has heard."""
        execution_id, told = list(self.told.items())[which]
        if told.got and sequence <= max(told.got):
            command = {"command": "replay_from", "execution_id": execution_id, "sequence": sequence}
            self.ends[end % len(self.ends)].back.append(json.dumps(command))

    @invariant()
    def the_window_holds(self) -> None:
        for one in self.ends:
            assert 0 <= one.ours.room <= WINDOW
            assert sum(isinstance(thing, str) for thing in one.out) <= WINDOW

    def teardown(self) -> None:
        """Nothing fails any more: all arrives."""
        for _ in range(200):
            if self.store.run(outbox.left()) == Left(0, 0):
                break
            for end in range(len(self.ends)):
                for thing in (self.ping, self.settle):
                    thing(end)
                self.carry(end, 100)
                self.hear(end, 100)
                self.settle(end)
            self.round(len(self.ends) - 1, dies=False, arrive=0)
        assert self.store.run(outbox.left()) == Left(0, 0)
        for told in self.told.values():
            assert set(told.got) == set(range(1, told.last + 1))
            for sequence, heard in told.again:
                assert set(range(sequence, told.last + 1)) <= set(told.got[heard:]), "what was asked for came again"


@pytest.mark.timeout(3_600)  # the thorough profile takes its time
def test_every_event_arrives_in_order_at_least_once(store: BlockingStore) -> None:
    TwoEnds.store = store
    is_brief = settings.get_current_profile_name() == "default"
    run_state_machine_as_test(TwoEnds, settings=BRIEFLY if is_brief else settings.default)  # type: ignore[no-untyped-call]
