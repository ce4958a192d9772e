"""Any events in any order: what workers, callers, time and lost replies do to executions is what the model says, and what
is promised holds at every moment; when all is over nothing is left.

`pytest tests/ledger --hypothesis-profile=thorough` does this at length (CONTRIBUTING.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent_exec import keys, submission
from agent_exec.contract.event import TERMINAL_EVENTS, EventName
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.message import Message
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import (
    AlreadyOver,
    Claimed,
    Event,
    Finished,
    Hold,
    NotClaimed,
    Orphan,
    Parent,
    Piece,
    Prioritised,
    StepRef,
)
from agent_exec.ledger.life import ExecutionState, StepState
from agent_exec.script import Call
from tests.ledger.clocked import ClockedStore
from tests.ledger.model import Execution, Step

LEASE_MS = 10_000
RETENTION_S = 3_600
PROMPT_DEADLINE_MS = 120_000
#: What `make test` spends on it: some seconds.
BRIEFLY = settings(max_examples=70, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
#: When all faults are over an execution ends within a lease, a wait and the longest time between two looks.
ENDS_WITHIN_MS = LEASE_MS + 60_000 + 60_000

#: How states are stored that differ by time and by what is awaited alone.
STORED = {StepState.EXPIRED: "running", StepState.DUE: "waiting", StepState.AWAITING: "waiting"}
CLAIMABLE = (StepState.QUEUED, StepState.DUE, StepState.EXPIRED)
#: Which of the executions, steps, holds that there are; wrapped round.
ANY = st.integers(min_value=0, max_value=1_000)
#: How many tools a turn calls.
TOOLS = st.sampled_from([0, 2, 3])
#: Which of the words that a step may await; 0 for none.
WORDS = st.sampled_from([0, 1, 1, 2])
#: How often the same call is made: once, or again because its reply was lost.
TIMES = st.sampled_from([1, 1, 2])


@dataclass
class Played:
    """An execution, and its model."""

    message: Message
    accepted_ms: int
    model: Execution = field(default_factory=Execution)
    #: How many events the notifier has taken.
    taken: int = 0
    parent: Parent | None = None

    @property
    def member(self) -> str:
        return f"{self.message.tenant_id} {self.message.execution_id}"

    def ref(self, step: str) -> StepRef:
        return StepRef(self.message.tenant_id, self.message.execution_id, step)


@dataclass
class Worker:
    """What a worker that claimed a step knows. It may be long overtaken."""

    played: Played
    step: str
    hold: Hold
    claim: Call[Claimed | NotClaimed]
    pieces: int = 0

    @property
    def model(self) -> Execution:
        return self.played.model


class AnyOrder(RuleBasedStateMachine):
    """Executions of two tenants under workers that are overtaken, die, and ask again."""

    store: ClassVar[ClockedStore]

    def __init__(self) -> None:
        super().__init__()
        self.store.redis.flushdb()
        self.store.advance(0)
        self.all: list[Played] = []
        self.workers: list[Worker] = []

    @property
    def now_ms(self) -> int:
        return self.store.now_ms

    @initialize(turns=st.lists(TOOLS, max_size=4))
    def begin(self, turns: list[int]) -> None:
        """An execution that has come some way, its tools called by one worker after the other."""
        self.accept(deadline_s=None, times=1)
        for tools in turns:
            for step in self.all[0].model.open_steps:
                self._do(self.all[0], step, tools=tools)

    # What callers do.

    @precondition(lambda self: len(self.all) < 3)
    @rule(deadline_s=st.sampled_from([None, None, 30.0]), times=TIMES)
    def accept(self, deadline_s: float | None, times: int) -> None:
        request = ExecutionRequest(agent_id="desk", query="q", deadline_s=deadline_s)
        message = submission.message_of(request, tenant_id=["acme", "globex"][len(self.all) % 2])
        played = Played(message, self.now_ms)
        if deadline_s is not None:
            played.model.deadline_ms = self.now_ms + int(deadline_s * 1000)
        if len(self.all) == 2:  # a child of the first one, whose tenant it is
            first, word = self.all[0], _word("completion.1", 1)
            played.parent = Parent(first.message.execution_id, word, ("desk",))
            if first.model.accept_child(played.model, word=word, now_ms=self.now_ms) == "orphan":
                with pytest.raises(Orphan):
                    self.store.run(self._storing(played))
                return
        self.all.append(played)
        answers = [self.store.run(self._storing(played)) for _ in range(times)]
        assert [answer.replayed for answer in answers] == [False, True][:times]

    @precondition(lambda self: self.all)
    @rule(which=ANY)
    def accept_again(self, which: int) -> None:
        assert self.store.run(self._storing(self._one(which))).replayed

    def _storing(self, played: Played) -> Call[ledger.Acceptance]:
        limits = played.message.payload.agent_config.limits
        return ledger.accept(
            played.message,
            request_digest=submission.request_digest(played.message),
            started=Event(EventName.STARTED, "{}"),
            deadline_s=None if limits is None else limits.deadline_s,
            retention_s=RETENTION_S,
            max_queued=10,
            parent=played.parent,
        )

    @precondition(lambda self: self.all)
    @rule(which=ANY, times=TIMES)
    def cancel(self, which: int, times: int) -> None:
        played = self._one(which)
        for _ in range(times):
            answer = self.store.run(ledger.cancel(played.message.tenant_id, played.message.execution_id))
            said = answer.status if isinstance(answer, AlreadyOver) else "requested"
            assert said == played.model.happens("cancel")
            if said == "requested":
                played.model.end_below()

    @precondition(lambda self: self.all)
    @rule(which=ANY, wish=st.integers(0, 9))
    def prioritise(self, which: int, wish: int) -> None:
        played = self._one(which)
        answer = self.store.run(ledger.prioritise(played.message.tenant_id, played.message.execution_id, wish=wish))
        said = answer.status if isinstance(answer, AlreadyOver) else "changed"
        assert said == played.model.happens("prioritise")
        if isinstance(answer, Prioritised):
            below = [
                one for one in self.all if one is played or (played.model in one.model.above and not one.model.is_over)
            ]
            queued = {
                (one.message.execution_id, name)
                for one in below
                for name in one.model.steps
                if self._state(one, name) == StepState.QUEUED
            }
            assert {(hint.execution_id, hint.step) for hint in answer.queued} == queued

    @precondition(lambda self: self.all)
    @rule(which=ANY, step=ANY, number=st.sampled_from([1, 1, 2]), early=st.booleans(), times=TIMES)
    def send_word(self, which: int, step: int, number: int, early: bool, times: int) -> None:
        """What a step awaits, or may come to."""
        played = self._one(which)
        awaited = [one.awaits for one in played.model.steps.values() if one.awaits]
        steps = played.model.open_steps or ["prompt"]
        name = awaited[step % len(awaited)] if awaited and not early else _word(steps[step % len(steps)], number)
        names, word = (played.message.tenant_id, played.message.execution_id), str(self.now_ms)
        for _ in range(times):
            expected = played.model.send_word(name, word, early=early, now_ms=self.now_ms)
            match self.store.run(ledger.send_word(*names, name=name, word=word, early=early)):
                case ledger.Sent(stands):
                    assert (expected, stands) == ("sent", played.model.words[name])
                case ledger.NotWaiting():
                    assert expected == "nobody"
                case AlreadyOver(status):
                    assert expected == status

    # What workers do.

    @precondition(lambda self: self.all)
    @rule(which=ANY, step=ANY, times=TIMES)
    def claim(self, which: int, step: int, times: int) -> None:
        played = self._one(which)
        ready = self._ready(played) if step % 4 else []
        names = ready or [*played.model.steps, "completion.99"]
        name = names[step // 4 % len(names)]
        call = ledger.claim(played.ref(name), lease_s=LEASE_MS / 1000, worker="w")
        for _ in range(times):
            self._claim(played, name, call)

    @precondition(lambda self: self.workers)
    @rule(which=ANY)
    def claim_again(self, which: int) -> None:
        worker = self.workers[which % len(self.workers)]
        self._claim(worker.played, worker.step, worker.claim)

    def _claim(self, played: Played, name: str, call: Call[Claimed | NotClaimed]) -> None:
        expected = played.model.claim(name, by=call, now_ms=self.now_ms, lease_ms=LEASE_MS)
        match self.store.run(call):
            case NotClaimed(reason):
                assert reason == expected
            case Claimed() as claimed:
                assert expected == "claimed"
                step = played.model.steps[name]
                counted = claimed.hold.fence, claimed.attempt, claimed.retries
                assert counted == (step.fence, step.attempts, step.retries)
                assert (claimed.note, claimed.word) == (step.note, played.model.words.get(step.awaited))
                assert claimed.execution.status == "processing"
                journaled = {one: done.result for one, done in played.model.steps.items() if done.result is not None}
                assert {one: claimed.execution.result(one) for one in journaled} == journaled
                if not any(worker.hold == claimed.hold for worker in self.workers):
                    self.workers.append(Worker(played, name, claimed.hold, call))

    @precondition(lambda self: self.workers)
    @rule(some=st.lists(ANY, min_size=1, max_size=3), times=TIMES)
    def renew(self, some: list[int], times: int) -> None:
        workers = [self.workers[which % len(self.workers)] for which in some]
        for _ in range(times):
            verdicts = self.store.run(ledger.renew([worker.hold for worker in workers], lease_s=LEASE_MS / 1000))
            assert verdicts == [
                worker.model.renew(worker.step, worker.hold.fence, now_ms=self.now_ms, lease_ms=LEASE_MS)
                for worker in workers
            ]

    @precondition(lambda self: self._holding)
    @rule(which=ANY, how=st.sampled_from(["progress", "text", "text"]), times=TIMES)
    def tell(self, which: int, how: str, times: int) -> None:
        self._tell(self._holder(which), how=how, times=times)

    @precondition(lambda self: self._holding)
    @rule(which=ANY, tools=TOOLS, times=TIMES)
    def journal(self, which: int, tools: int, times: int) -> None:
        self._journal(self._holder(which), tools=tools, times=times)

    @precondition(lambda self: self._holding)
    @rule(
        which=ANY,
        due_ms=st.sampled_from([0, 500, 60_000]),
        note=st.sampled_from(["", "model 2"]),
        counted=st.booleans(),
        awaits=WORDS,
        times=TIMES,
    )
    def wait(self, which: int, due_ms: int, note: str, counted: bool, awaits: int, times: int) -> None:
        worker = self._holder(which)
        name = _word(worker.step, awaits) if awaits else ""
        self._wait(worker, due_ms=due_ms, note=note, counted=counted, awaits=name, times=times)

    @precondition(lambda self: self._holding)
    @rule(which=ANY, times=TIMES)
    def release(self, which: int, times: int) -> None:
        self._release(self._holder(which), times=times)

    @precondition(lambda self: self._holding)
    @rule(which=ANY, how=st.sampled_from(["completed", "failed", "cancelled"]), times=TIMES)
    def finish(self, which: int, how: str, times: int) -> None:
        self._finish(self._holder(which), how=how, times=times)

    @precondition(lambda self: self.workers)
    @rule(which=ANY, what=st.sampled_from(["tell", "journal", "wait", "release", "finish"]))
    def come_late(self, which: int, what: str) -> None:
        """Any worker writes, overtaken or not."""
        self._write(self.workers[which % len(self.workers)], what)

    def _write(self, worker: Worker, what: str) -> None:
        match what:
            case "tell":
                self._tell(worker, how="progress", times=1)
            case "journal":
                self._journal(worker, tools=1, times=1)
            case "wait":
                self._wait(worker, due_ms=500, times=1)
            case "release":
                self._release(worker, times=1)
            case _:
                self._finish(worker, how="completed", times=1)

    @precondition(lambda self: any(one.model.open_steps for one in self.all))
    @rule(which=ANY, step=ANY, tools=TOOLS)
    def go_on(self, which: int, step: int, tools: int) -> None:
        """A worker whom nobody disturbs does a step, so that chains grow long."""
        played = self._one(which)
        ready = self._ready(played)
        if ready:
            self._do(played, ready[step % len(ready)], tools=tools)

    @precondition(lambda self: self.all)
    @rule(which=ANY)
    def claim_all(self, which: int) -> None:
        """Workers claim all that is ready: tools run beside each other."""
        played = self._one(which)
        for step in self._ready(played):
            self._claim(played, step, ledger.claim(played.ref(step), lease_s=LEASE_MS / 1000, worker="w"))

    @precondition(lambda self: self._holding)
    @rule(which=ANY, what=st.sampled_from(["tell", "journal", "wait", "release", "finish"]))
    def overtake(self, which: int, what: str) -> None:
        """A worker stalls beyond its lease, another one takes its step, and the first goes on."""
        worker = self._holder(which)
        self._tell(worker, how="text", times=1)
        self.store.advance(LEASE_MS)
        again = ledger.claim(worker.hold.ref, lease_s=LEASE_MS / 1000, worker="w")
        self._claim(worker.played, worker.step, again)
        self._write(worker, what)

    @precondition(lambda self: self.workers)
    @rule(which=ANY)
    def die(self, which: int) -> None:
        """A worker forgets what it held, and never says so."""
        del self.workers[which % len(self.workers)]

    def _do(self, played: Played, step: str, *, tools: int) -> None:
        self._claim(played, step, ledger.claim(played.ref(step), lease_s=LEASE_MS / 1000, worker="w"))
        self._journal(self.workers[-1], tools=tools, times=1)

    def _tell(self, worker: Worker, *, how: str, times: int) -> None:
        is_text = how == "text"
        name = EventName.TOKEN if is_text else EventName.PROGRESS
        text, progress = Piece(worker.hold, worker.pieces + 1, "{}"), Event(name, "{}")
        call: Call[Any] = ledger.tell_pieces([text]) if is_text else ledger.tell(worker.hold, [progress])
        for time in range(times):
            expected = worker.model.tell(
                worker.step, worker.hold.fence, event=name, now_ms=self.now_ms, is_told=time > 0, is_text=is_text
            )
            assert self.store.run(call) == ([expected] if is_text else expected)
        worker.pieces += is_text and expected == "told"

    def _journal(self, worker: Worker, *, tools: int, times: int) -> None:
        """Record, or join where the step is one of several."""
        target, told = worker.model.steps[worker.step].target, [Event(EventName.PROGRESS, "{}")]
        result = json.dumps({"by": worker.hold.fence, "of": worker.step})
        turn = 0 if worker.step == "prompt" else int(worker.step.split(".")[1])
        following = f"completion.{turn + 1}"
        parts = [f"tool_call.{turn}.{index}" for index in range(tools)] if turn else []
        call = (
            ledger.join(worker.hold, result=result, events=told, target=target, parent_id="p")
            if target
            else ledger.record(
                worker.hold,
                result=result,
                events=told,
                next_steps=parts or [following],
                parent_id="p",
                priority=5,
                deadline_s=PROMPT_DEADLINE_MS / 1000,
                join=following if parts else "",
            )
        )
        for _ in range(times):
            expected = self._written("join" if target else "record", worker, result=result, told=[EventName.PROGRESS])
            if expected == "joined":
                expected = worker.model.joined(target)
            elif expected == "recorded":
                joining = {part: Step(target=following) for part in parts}
                worker.model.steps |= joining or {following: Step()}
                deadline_ms = worker.played.accepted_ms + PROMPT_DEADLINE_MS
                worker.model.deadline_ms = min(worker.model.deadline_ms, deadline_ms)
            assert self.store.run(call) == expected

    def _wait(
        self, worker: Worker, *, due_ms: int, times: int, note: str = "", counted: bool = True, awaits: str = ""
    ) -> None:
        events = [Event(EventName.PROGRESS, "{}")]
        call = ledger.wait(
            worker.hold, due_in_s=due_ms / 1000, events=events, note=note, counted=counted, awaits=awaits
        )
        for _ in range(times):
            assert self.store.run(call) == worker.model.wait(
                worker.step,
                worker.hold.fence,
                now_ms=self.now_ms,
                due_ms=due_ms,
                note=note,
                is_counted=counted,
                awaits=awaits,
                told=[EventName.PROGRESS],
            )

    def _release(self, worker: Worker, *, times: int) -> None:
        call = ledger.release(worker.hold)
        for _ in range(times):
            expected = self._written("release", worker)
            if expected == "released":
                step = worker.model.steps[worker.step]
                step.attempts = max(0, step.attempts - 1)
            assert self.store.run(call) == expected

    def _finish(self, worker: Worker, *, how: str, times: int) -> None:
        call = self._finishing(worker.hold, how)
        for _ in range(times):
            self._finished(worker, how, self.store.run(call))

    def _finished(self, worker: Worker, how: str, answer: Finished | str) -> None:
        """What is answered, and to whom it is told: to all below, and to the one above."""
        verdict = self._written(f"finish {how}", worker, result='"end"', told=[_terminal(how)])
        if not isinstance(answer, Finished):
            assert answer == verdict
            return
        assert verdict == "finished"
        worker.model.end_below()
        made_due = None
        if worker.model.parent is not None:
            parent, name = worker.model.parent
            made_due = parent.awaiting(name, self.now_ms)
            parent.send_word(name, worker.played.message.execution_id, early=True, now_ms=self.now_ms)
        assert (answer.hint.step if answer.hint else None) == made_due

    def _finishing(self, hold: Hold, how: str) -> Call[Finished | str]:
        return ledger.finish(
            hold,
            result='"end"',
            status="completed" if how == "completed" else "failed",
            response="{}",
            celery_result="{}",
            events=[Event(_terminal(how), "{}")],
            retention_s=RETENTION_S,
            cancelled=how == "cancelled",
        )

    def _written(self, event: str, worker: Worker, *, result: str = "", told: list[str] | None = None) -> str:
        return worker.model.write(event, worker.step, worker.hold.fence, now_ms=self.now_ms, result=result, told=told)

    def _holder(self, which: int) -> Worker:
        return self._holding[which % len(self._holding)]

    def _ready(self, played: Played) -> list[str]:
        return [name for name in played.model.open_steps if self._state(played, name) in CLAIMABLE]

    # What else happens.

    @rule(ms=st.sampled_from([1, 499, 1_000, LEASE_MS, 60_000]))
    def time_passes(self, ms: int) -> None:
        self.store.advance(ms)

    @rule()
    def look(self) -> None:
        self._look()

    @precondition(lambda self: self.all)
    @rule(which=ANY, step=ANY)
    def put_off(self, which: int, step: int) -> None:
        played = self._one(which)
        names = list(played.model.steps)
        assert self.store.run(ledger.put_off(played.ref(names[step % len(names)]))) == "put off"

    @precondition(lambda self: self.all)
    @rule(which=ANY)
    def notify(self, which: int) -> None:
        """The notifier takes what there is."""
        played = self._one(which)
        self.store.redis.zrem(keys.outbox(), played.member)
        played.taken = len(played.model.events)

    def _look(self) -> ledger.Due:
        due = self.store.run(ledger.due())
        looked = [(StepRef(hint.tenant_id, hint.execution_id, hint.step), False) for hint in due.hints]
        for ref, ends in [*looked, *[(ref, True) for ref in due.ends]]:
            [played] = [one for one in self.all if one.ref(ref.step) == ref]
            assert self._state(played, ref.step) in CLAIMABLE
            assert ends == played.model.has_to_end(self.now_ms)
        return due

    # What always holds.

    @invariant()
    def the_ledger_is_as_the_model(self) -> None:
        pipeline = self.store.redis.pipeline(transaction=False)
        pipeline.zrange(keys.pending(), 0, -1).zrange(keys.outbox(), 0, -1).llen(keys.outbox_wake())
        for one in self.all:
            names = one.message.tenant_id, one.message.execution_id
            pipeline.hgetall(keys.execution(*names)).xrange(keys.streaming(*names))
        pending, outbox, woken, *records = pipeline.execute()
        assert woken == bool(self.all), "nobody takes it: one token wakes the notifier, however much there is"
        open_steps = {f"{one.member} {step}" for one in self.all for step in one.model.open_steps}
        assert {member.decode() for member in pending} == open_steps
        unsent = {one.member for one in self.all if len(one.model.events) > one.taken}
        assert {member.decode() for member in outbox} == unsent
        for one, hashed, streamed in zip(self.all, records[::2], records[1::2], strict=True):
            self._is_as_the_model(one.model, hashed, streamed)

    def _is_as_the_model(self, model: Execution, hashed: dict[bytes, bytes], streamed: list[Any]) -> None:
        fields = {name.decode(): text.decode() for name, text in hashed.items()}
        assert [entry.decode() for entry, _ in streamed] == [f"{n}-0" for n in range(1, len(streamed) + 1)], "no gap"
        events = [told[b"event"].decode() for _, told in streamed]
        assert events == model.events
        assert int(fields["sequence"]) == len(events)
        ends = [index for index, event in enumerate(events, start=1) if event in TERMINAL_EVENTS]
        assert ends == ([len(events)] if model.is_over else []), "one end, and nothing after it"
        if model.is_over:
            assert fields["status"] == model.state
        assert ("cancel_ms" in fields) >= (model.state == ExecutionState.CANCELLING)
        steps = {name[5:]: json.loads(text) for name, text in fields.items() if name.startswith("step:")}
        assert set(steps) == set(model.steps)
        for name, step in model.steps.items():
            stored = steps[name]
            assert (stored["state"], stored["fence"]) == (STORED.get(step.state, step.state), step.fence)
            assert (stored["attempts"], stored["retries"]) == (step.attempts, step.retries)
            assert [stored.get(name, "") for name in ("note", "awaits")] == [step.note, step.awaits]
            assert fields.get(f"result:{name}") == step.result, "journaled once, by the attempt that held it"
        words = {name[5:]: word for name, word in fields.items() if name.startswith("word:")}
        assert words == model.words, "the first one under a name stands"
        runs = {f"hold:{name}" for name in model.open_steps if steps[name]["state"] == "running"}
        assert {name for name in fields if name.startswith("hold:")} == runs

    def teardown(self) -> None:
        """When the faults are over, every execution ends, and nothing is left that does not go by itself."""
        self.the_ledger_is_as_the_model()
        began_ms = self.now_ms
        while not all(one.model.is_over for one in self.all):
            due = self._look()
            for ref in [*due.ends, *[StepRef(hint.tenant_id, hint.execution_id, hint.step) for hint in due.hints]]:
                [played] = [one for one in self.all if one.ref(ref.step) == ref]
                call = ledger.claim(ref, lease_s=LEASE_MS / 1000, worker="w")
                self._claim(played, ref.step, call)
                if played.model.is_over:
                    continue
                hold = Hold(ref, played.model.steps[ref.step].fence)
                how = "cancelled" if played.model.state == ExecutionState.CANCELLING else "completed"
                self._finished(Worker(played, ref.step, hold, call), how, self.store.run(self._finishing(hold, how)))
                assert played.model.is_over
            assert due.next_in_ms is not None, "what is open is looked at"
            self.store.advance(max(1, due.next_in_ms))
            assert self.now_ms - began_ms <= ENDS_WITHIN_MS, "every accepted execution ends"
        self.the_ledger_is_as_the_model()
        assert self.store.redis.zcard(keys.pending()) == 0
        for key in map(bytes.decode, self.store.redis.scan_iter()):
            assert self.store.redis.ttl(key) > 0 or any(fnmatch(key, pattern) for pattern in keys.IMMORTAL), key

    def _one(self, which: int) -> Played:
        return self.all[which % len(self.all)]

    @property
    def _holding(self) -> list[Worker]:
        """The workers that hold their step, and have not been overtaken."""
        return [
            one
            for one in self.workers
            if one.hold.fence == one.model.steps[one.step].fence
            and self._state(one.played, one.step) in (StepState.RUNNING, StepState.EXPIRED)
        ]

    def _state(self, played: Played, step: str) -> StepState:
        return played.model.step_state(step, self.now_ms)


def _word(step: str, number: int) -> str:
    """The name of a word that a step may await. No two steps of an execution await the same one."""
    return f"{step}/{number}"


def _terminal(how: str) -> EventName:
    return EventName.COMPLETED if how == "completed" else EventName.FAILED


@pytest.mark.timeout(3_600)  # the thorough profile takes its time
def test_any_events_in_any_order(redis_url: str) -> None:
    AnyOrder.store = ClockedStore(redis_url)
    is_brief = settings.get_current_profile_name() == "default"
    try:
        run_state_machine_as_test(AnyOrder, settings=BRIEFLY if is_brief else settings.default)  # type: ignore[no-untyped-call]
    finally:
        AnyOrder.store.redis.flushdb()
        AnyOrder.store.close()
