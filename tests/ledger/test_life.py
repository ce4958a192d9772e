"""The tables of life.py, every cell of them on a real server: the answer, the state then, and the same event once more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from agent_exec import keys, submission
from agent_exec.contract.event import TERMINAL_EVENTS, EventName
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.message import Message
from agent_exec.errors import Conflict, NotFound
from agent_exec.ledger import ledger, life
from agent_exec.ledger.ledger import Claimed, Event, Finished, Hold, NotClaimed, Orphan, Parent, Piece, StepRef
from agent_exec.ledger.life import ExecutionState, StepState
from agent_exec.script import Call
from tests.ledger.clocked import ClockedStore

LEASE_S = 30.0
WAIT_S = 60.0
RETENTION_S = 3_600
#: The step that the first table is about; another one ends its execution.
STEP, JOINED, OTHER = "tool_call.1.0", "completion.2", "completion.9"
WRITES = ("record", "join", "mark", "wait", "await", "release", "finish")
#: The name of the word that the step awaits, where it awaits one.
NAME = "call_1"


@pytest.fixture
def store(redis_url: str) -> Iterator[ClockedStore]:
    clocked = ClockedStore(redis_url)
    yield clocked
    clocked.close()


@dataclass
class Scene:
    """One execution, and what has been claimed of it."""

    store: ClockedStore
    message: Message = field(
        default_factory=lambda: submission.message_of(ExecutionRequest(agent_id="desk", query="q"), tenant_id="acme")
    )
    claims: dict[str, Call[Claimed | NotClaimed]] = field(default_factory=dict)
    parent: Parent | None = None

    def ref(self, step: str) -> StepRef:
        return StepRef(self.message.tenant_id, self.message.execution_id, step)

    def accept(self) -> None:
        self.store.run(accepting(self.message, parent=self.parent))

    def child(self) -> Scene:
        """One that this one asks for, not accepted yet."""
        return Scene(self.store, parent=Parent(self.message.execution_id, NAME, ("desk",)))

    def claim(self, step: str) -> Hold:
        self.claims[step] = ledger.claim(self.ref(step), lease_s=LEASE_S, worker="w")
        claimed = self.store.run(self.claims[step])
        assert isinstance(claimed, Claimed), claimed
        return claimed.hold

    def begin(self) -> None:
        """Claim what comes before the step, so that it is queued and others are open beside it."""
        self.accept()
        recorded(self.store, self.claim("prompt"), "completion.1", OTHER)
        recorded(self.store, self.claim("completion.1"), STEP, join=JOINED)

    @property
    def fields(self) -> dict[str, str]:
        key = keys.execution(self.message.tenant_id, self.message.execution_id)
        texts = {name.decode(): text.decode() for name, text in self.store.redis.hgetall(key).items()}
        # A script writes the parts of a step in whatever order.
        return {
            name: json.dumps(json.loads(text), sort_keys=True) if name.startswith("step:") else text
            for name, text in texts.items()
        }

    @property
    def everything(self) -> tuple[Any, ...]:
        """All that a refused event must leave as it was."""
        stream = keys.streaming(self.message.tenant_id, self.message.execution_id)
        redis = self.store.redis
        return self.fields, redis.xrange(stream), redis.zrange(keys.pending(), 0, -1, withscores=True)

    @property
    def events(self) -> int:
        return int(self.store.redis.xlen(keys.streaming(self.message.tenant_id, self.message.execution_id)))

    def step_state(self, step: str) -> StepState:
        """Where the step stands, read without the scripts' help."""
        fields, now_ms = self.fields, self.store.now_ms
        stored = json.loads(fields.get(f"step:{step}", "null"))
        if stored is None:
            return StepState.ABSENT
        if stored["state"] == "done":
            return StepState.DONE
        if fields["status"] in ("completed", "failed"):
            return StepState.OVER
        match stored["state"]:
            case "running":
                return StepState.RUNNING if now_ms < stored["lease_ms"] else StepState.EXPIRED
            case "waiting":
                has_to_end = "cancel_ms" in fields or now_ms >= int(fields.get("deadline_ms", 1e15))
                if has_to_end or now_ms >= stored["due_ms"]:
                    return StepState.DUE
                return StepState.AWAITING if stored.get("awaits") else StepState.WAITING
            case other:
                return StepState(other)

    @property
    def execution_state(self) -> ExecutionState:
        fields = self.fields
        if not fields:
            return ExecutionState.ABSENT
        if fields["status"] in ("completed", "failed"):
            return ExecutionState(fields["status"])
        return ExecutionState.CANCELLING if "cancel_ms" in fields else ExecutionState(fields["status"])


def accepting(message: Message, *, parent: Parent | None = None) -> Call[ledger.Acceptance]:
    return ledger.accept(
        message,
        request_digest=submission.request_digest(message),
        started=Event(EventName.STARTED, "{}"),
        deadline_s=None,
        retention_s=RETENTION_S,
        max_queued=10,
        parent=parent,
    )


def recorded(store: ClockedStore, hold: Hold, *next_steps: str, join: str = "") -> None:
    written = ledger.record(hold, result="{}", events=[], next_steps=next_steps, parent_id="p", priority=5, join=join)
    assert store.run(written) == "recorded"


def finishing(hold: Hold, status: str = "completed", *, cancelled: bool = False) -> Call[Finished | str]:
    return ledger.finish(
        hold,
        result='{"by":"finish"}',
        status=status,  # type: ignore[arg-type]
        response="{}",
        celery_result="{}",
        events=[Event(EventName.COMPLETED if status == "completed" else EventName.FAILED, "{}")],
        retention_s=RETENTION_S,
        cancelled=cancelled,
    )


def waits(scene: Scene, hold: Hold) -> None:
    scene.store.run(ledger.wait(hold, due_in_s=WAIT_S, events=[]))


def awaits(scene: Scene, hold: Hold) -> None:
    scene.store.run(ledger.wait(hold, due_in_s=WAIT_S, events=[], awaits=NAME))


def word(scene: Scene, hold: Hold, *, early: bool = False) -> Call[Any]:
    return ledger.send_word(hold.ref.tenant_id, hold.ref.execution_id, name=NAME, word="yes", early=early)


def has_its_word(scene: Scene, hold: Hold) -> None:
    awaits(scene, hold)
    scene.store.run(word(scene, hold))


def had_its_word_before(scene: Scene, hold: Hold) -> None:
    scene.store.run(word(scene, hold, early=True))
    awaits(scene, hold)


def awaited_too_long(scene: Scene, hold: Hold) -> None:
    awaits(scene, hold)
    scene.store.advance(int(WAIT_S * 1000))


def is_due(scene: Scene, hold: Hold) -> None:
    waits(scene, hold)
    scene.store.advance(int(WAIT_S * 1000))


def has_to_end(scene: Scene, hold: Hold) -> None:
    awaits(scene, hold)
    scene.store.run(ledger.cancel("acme", hold.ref.execution_id))


def is_done(scene: Scene, hold: Hold) -> None:
    scene.store.run(ledger.join(hold, result="{}", events=[], target=JOINED, parent_id="p"))


def ended_while_running(scene: Scene, _: Hold) -> None:
    scene.store.run(finishing(scene.claim(OTHER)))


def ended_while_waiting(scene: Scene, hold: Hold) -> None:
    awaits(scene, hold)
    scene.store.run(finishing(scene.claim(OTHER)))


#: How the second attempt of a step comes to stand there. Some states are reached by several ways.
WAYS: list[tuple[StepState, Callable[[Scene, Hold], Any] | None]] = [
    (StepState.ABSENT, None),
    (StepState.QUEUED, lambda scene, hold: scene.store.run(ledger.release(hold))),
    (StepState.WAITING, waits),
    (StepState.AWAITING, awaits),
    (StepState.DUE, is_due),
    (StepState.DUE, has_its_word),
    (StepState.DUE, had_its_word_before),
    (StepState.DUE, awaited_too_long),
    (StepState.DUE, has_to_end),
    (StepState.RUNNING, lambda scene, hold: None),
    (StepState.EXPIRED, lambda scene, hold: scene.store.advance(int(LEASE_S * 1000))),
    (StepState.DONE, is_done),
    (StepState.OVER, ended_while_running),
    (StepState.OVER, ended_while_waiting),
]


@dataclass
class Stand:
    """A step in a state: its second attempt's hold, and its first one's."""

    scene: Scene
    hold: Hold
    stale: Hold


def stood(
    store: ClockedStore, state: StepState, way: Callable[[Scene, Hold], Any] | None, *, child: Scene | None = None
) -> Stand:
    """Bring a step into a state; `child` is accepted before, as one of its execution's."""
    scene = Scene(store)
    scene.begin()
    if child is not None:
        child.parent = Parent(scene.message.execution_id, NAME)
        child.accept()
    if way is None:
        absent = scene.ref("tool_call.9.9")
        return Stand(scene, Hold(absent, 2), Hold(absent, 1))
    stale = scene.claim(STEP)
    store.advance(int(LEASE_S * 1000))
    current = scene.claim(STEP)
    way(scene, current)
    assert scene.step_state(STEP) == state
    return Stand(scene, current, stale)


def writing(event: str, hold: Hold) -> Call[Any]:
    """The call that an event is, of the worker that has this hold."""
    told = [Event(EventName.PROGRESS, "{}")]
    match event:
        case "claim" | "claim again":
            return ledger.claim(hold.ref, lease_s=LEASE_S, worker="w")
        case "renew":
            return ledger.renew([hold], lease_s=LEASE_S)
        case "tell":
            return ledger.tell(hold, told)
        case "tell pieces":
            return ledger.tell_pieces([Piece(hold, 1, "{}")])
        case "record":
            return ledger.record(hold, result="{}", events=told, next_steps=["completion.3"], parent_id="p", priority=5)
        case "join":
            return ledger.join(hold, result="{}", events=told, target=JOINED, parent_id="p")
        case "mark":
            return ledger.mark(hold, note="sent")
        case "wait":
            return ledger.wait(hold, due_in_s=WAIT_S, events=told)
        case "await":
            return ledger.wait(hold, due_in_s=WAIT_S, events=told, awaits="another word")
        case "release":
            return ledger.release(hold)
        case "finish":
            return finishing(hold, "failed", cancelled=True)
    raise AssertionError(event)


def verdict(answer: Any) -> str:
    """An answer, as the tables spell it."""
    match answer:
        case Claimed():
            return "claimed"
        case NotClaimed(reason):
            return reason
        case Finished():
            return "finished"
        case ledger.Sent(word="yes"):
            return "sent"
        case ledger.NotWaiting():
            return "nobody"
        case [one]:
            return str(one)
        case _:
            return str(answer)


def row(event: str) -> str:
    """Return the row of the table that an event is in: text is told as all else is."""
    return "tell" if event == "tell pieces" else event


def repeated(event: str, then: StepState, said: str) -> str:
    """What the same call is answered the second time."""
    return life.STEP["claim again" if said == "claimed" else row(event)][then].verdict


def cancelled_or(said: str, scene: Scene) -> str:
    """A renewal's answer says besides whether the execution's end was asked for (the second table)."""
    cancelled = said == "held" and "cancel_ms" in scene.fields
    return life.EXECUTION["renew"][ExecutionState.CANCELLING].verdict if cancelled else said


@pytest.mark.parametrize("event", ["claim", "claim again", "renew", "tell", "tell pieces", *WRITES])
def test_what_a_worker_does_comes_to_what_the_table_says_and_once(
    store: ClockedStore, subtests: pytest.Subtests, event: str
) -> None:
    for state, way in WAYS:
        with subtests.test(state.value, way=getattr(way, "__name__", "")):
            stand = stood(store, state, way)
            scene, step = stand.scene, stand.hold.ref.step
            call = writing(event, stand.hold)
            if event == "claim again":
                call = scene.claims.get(step, call)
            before, expected = scene.everything, life.STEP[row(event)][state]
            said = verdict(store.run(call))
            assert said == cancelled_or(expected.verdict, scene)
            assert scene.step_state(step) == expected.then
            if said in ledger.REFUSALS | {"lost", "busy", "early"}:
                assert scene.everything == before, "what is refused changes nothing"
            after = scene.everything
            assert verdict(store.run(call)) == cancelled_or(repeated(event, expected.then, said), scene)
            assert scene.everything == after, "its reply was lost: once more, it changes nothing"


@pytest.mark.parametrize("event", ["renew", "tell", "tell pieces", *WRITES])
def test_what_an_overtaken_worker_does_changes_nothing(
    store: ClockedStore, subtests: pytest.Subtests, event: str
) -> None:
    for state, way in WAYS:
        with subtests.test(state.value, way=getattr(way, "__name__", "")):
            stand = stood(store, state, way)
            before = stand.scene.everything
            expected = life.STEP["stale write" if event in WRITES else f"stale {row(event)}"][state]
            for _ in range(2):
                assert verdict(store.run(writing(event, stand.stale))) == expected.verdict
            assert stand.scene.everything == before


@pytest.mark.parametrize("event", ["claim", "renew", "tell", "tell pieces", *WRITES])
def test_another_tenant_finds_nothing_and_changes_nothing(
    store: ClockedStore, subtests: pytest.Subtests, event: str
) -> None:
    """S03."""
    for state, way in WAYS:
        with subtests.test(state.value, way=getattr(way, "__name__", "")):
            stand = stood(store, state, way)
            before = stand.scene.everything
            call = writing(event, replace(stand.hold, ref=replace(stand.hold.ref, tenant_id="globex")))
            # Not even by a call whose keys are the execution's own: the scripts compare the tenant itself.
            crossed = replace(call, keys=[key.replace("globex", "acme") for key in call.keys])
            for one in (call, crossed):
                assert verdict(store.run(one)) == ("lost" if event == "renew" else "gone")
            assert stand.scene.everything == before
    assert not [key for key in store.redis.scan_iter() if b"globex" in key]


@pytest.mark.parametrize("event", ["word", "early word"])
def test_a_word_from_outside_comes_to_what_the_table_says_and_the_first_one_stands(
    store: ClockedStore, subtests: pytest.Subtests, event: str
) -> None:
    for state, way in WAYS:
        with subtests.test(state.value, way=getattr(way, "__name__", "")):
            stand = stood(store, state, way)
            scene, step, expected = stand.scene, stand.hold.ref.step, life.STEP[event][state]
            stands = f"word:{NAME}" in scene.fields
            call, before = word(scene, stand.hold, early=event == "early word"), scene.everything
            answer = store.run(call)
            if expected.verdict == "over" and not stands:
                assert answer == ledger.AlreadyOver("completed")
            else:
                assert verdict(answer) == ("sent" if stands else expected.verdict)
            assert scene.step_state(step) == expected.then
            if stands or verdict(answer) != "sent":
                assert scene.everything == before
            if isinstance(answer, ledger.Sent):
                made_due = state == StepState.AWAITING
                assert (answer.hint.step if answer.hint else None) == (STEP if made_due else None)
                if made_due:
                    looked_at_ms = store.redis.zscore(keys.pending(), f"acme {scene.message.execution_id} {STEP}")
                    assert looked_at_ms == store.now_ms, "the hint may never be sent"
                after = scene.everything
                otherwise = replace(call, args=["no" if arg == "yes" else arg for arg in call.args])
                for again in (call, otherwise):
                    assert store.run(again) == ledger.Sent("yes", None)
                assert scene.everything == after


def test_a_child_that_ends_sends_its_parent_the_word(store: ClockedStore, subtests: pytest.Subtests) -> None:
    for state, way in WAYS:
        with subtests.test(state.value, way=getattr(way, "__name__", "")):
            child = Scene(store)
            stand = stood(store, state, way, child=child)
            parent = stand.scene
            assert parent.fields["children"] == child.message.execution_id
            stands = f"word:{NAME}" in parent.fields
            hold, before = child.claim("prompt"), parent.everything[:2]
            before[0].pop("children")
            end = finishing(hold, "failed", cancelled=True)
            ended, again = [store.run(end) for _ in range(2)]
            assert again == "done"
            assert isinstance(ended, Finished)
            made_due = state == StepState.AWAITING
            assert (ended.hint.step if ended.hint else None) == (STEP if made_due else None)
            assert parent.step_state(stand.hold.ref.step) == life.STEP["early word"][state].then
            if state == StepState.OVER or stands:
                assert parent.everything[:2] == before
            else:
                assert parent.fields[f"word:{NAME}"] == child.message.execution_id
                assert "children" not in parent.fields


@pytest.mark.parametrize("whose", ["nobody's", "another tenant's"])
def test_a_child_is_accepted_of_an_execution_that_is_there_and_its_tenants_alone(
    store: ClockedStore, whose: str
) -> None:
    parent = Scene(store)
    parent.begin()
    child = parent.child()
    if whose == "nobody's":
        child.parent = Parent("gone", NAME)
    else:
        child.message = child.message.model_copy(update={"tenant_id": "globex"})
    before = parent.everything
    with pytest.raises(Orphan):
        child.accept()
    assert parent.everything == before
    assert child.fields == {}
    assert not [key for key in store.redis.scan_iter() if b"globex" in key or b"gone" in key]


def test_a_child_is_accepted_once_whatever_its_message_says_the_second_time(store: ClockedStore) -> None:
    parent = Scene(store)
    parent.begin()
    hold = parent.claim(STEP)
    child = parent.child()
    child.accept()
    before = parent.everything
    assert store.run(accepting(child.message, parent=child.parent)).replayed
    assert parent.everything[:2] == before[:2]
    awaits(parent, hold)
    assert isinstance(store.run(finishing(child.claim("prompt"))), Finished)
    store.redis.delete(keys.execution("acme", child.message.execution_id))
    store.redis.delete(keys.tenant_of(child.message.execution_id))
    with pytest.raises(Orphan):  # its record has expired, and its parent knows of its end
        child.accept()


def test_a_child_whose_parent_has_expired_ends_and_writes_nothing_there(store: ClockedStore) -> None:
    parent = Scene(store)
    parent.begin()
    child = parent.child()
    child.accept()
    store.redis.delete(keys.execution("acme", parent.message.execution_id))
    assert store.run(finishing(child.claim("prompt"))) == Finished(None)
    assert parent.fields == {}


def test_a_childs_deadline_is_no_later_than_its_parents(store: ClockedStore) -> None:
    parent = Scene(store)
    parent.accept()
    priority = ledger.record(
        parent.claim("prompt"), result="{}", events=[], next_steps=[STEP], parent_id="p", priority=5, deadline_s=100
    )
    store.run(priority)
    began_ms, child = store.now_ms, parent.child()
    store.advance(40_000)
    child.accept()
    assert int(child.fields["deadline_ms"]) == began_ms + 100_000
    for deadline_s, at_ms in ((90.0, began_ms + 100_000), (30.0, began_ms + 70_000)):
        nephew = parent.child()
        nephew.accept()
        hold = nephew.claim("prompt")
        store.run(
            ledger.record(
                hold, result="{}", events=[], next_steps=[STEP], parent_id="p", priority=5, deadline_s=deadline_s
            )
        )
        assert int(nephew.fields["deadline_ms"]) == at_ms
    store.advance(60_000)
    with pytest.raises(Orphan):
        parent.child().accept()


def test_children_wait_behind_no_bound_and_are_as_urgent_as_their_parent(store: ClockedStore) -> None:
    parent = Scene(store)
    parent.begin()
    child = parent.child()
    call = ledger.accept(
        child.message,
        request_digest="d",
        started=Event(EventName.STARTED, "{}"),
        deadline_s=None,
        retention_s=RETENTION_S,
        max_queued=0,
        parent=child.parent,
        priority=8,
    )
    accepted = store.run(call)
    assert (accepted.execution_id, accepted.replayed, accepted.priority) == (child.message.execution_id, False, 8)
    nephew = child.child()
    nephew.accept()
    changed = store.run(ledger.prioritise("acme", parent.message.execution_id, wish=1))
    assert isinstance(changed, ledger.Prioritised)
    below = {(hint.execution_id, hint.step) for hint in changed.queued} - {
        (parent.message.execution_id, step) for step in (STEP, OTHER)
    }
    assert below == {(one.message.execution_id, "prompt") for one in (child, nephew)}
    assert {one.fields["wish"] for one in (parent, child, nephew)} == {"1"}
    assert {one.fields["priority"] for one in (parent, child, nephew)} == {str(changed.priority)}


def test_time_and_who_looks_come_to_what_the_table_says(store: ClockedStore, subtests: pytest.Subtests) -> None:
    for state, way in WAYS:
        with subtests.test(state.value, way=getattr(way, "__name__", "")):
            stand = stood(store, state, way)
            scene, step, expected = stand.scene, stand.hold.ref.step, life.STEP["look"][state]
            store.redis.delete(keys.pending())
            store.redis.zadd(keys.pending(), {f"acme {scene.message.execution_id} {step}": 0})
            due = store.run(ledger.due())
            looked = "hint" if due.hints or due.ends else "later" if store.redis.zcard(keys.pending()) else "forget"
            assert looked == expected.verdict
            assert bool(due.ends) == (looked == "hint" and "cancel_ms" in scene.fields), "no queue stands before an end"
            assert scene.step_state(step) == expected.then
            assert store.run(ledger.due()).hints == (), "who has looked looks again later"
            assert store.run(ledger.put_off(stand.hold.ref)) == "put off"
            assert scene.step_state(step) == state
            store.advance(3_600_000)
            assert scene.step_state(step) == life.STEP["time passes"][state].then


def pending(scene: Scene) -> Hold:
    scene.accept()
    return Hold(scene.ref("prompt"), 1)


def processing(scene: Scene) -> Hold:
    scene.begin()
    return scene.claim(STEP)


def cancelling(scene: Scene) -> Hold:
    hold = processing(scene)
    scene.store.run(ledger.cancel("acme", scene.message.execution_id))
    return hold


def ended(status: str) -> Callable[[Scene], Hold]:
    def end(scene: Scene) -> Hold:
        hold = processing(scene)
        scene.store.run(finishing(scene.claim(OTHER), status))
        return hold

    return end


EXECUTIONS: dict[ExecutionState, Callable[[Scene], Hold]] = {
    ExecutionState.ABSENT: lambda scene: Hold(scene.ref("prompt"), 1),
    ExecutionState.PENDING: pending,
    ExecutionState.PROCESSING: processing,
    ExecutionState.CANCELLING: cancelling,
    ExecutionState.COMPLETED: ended("completed"),
    ExecutionState.FAILED: ended("failed"),
}


def happens(scene: Scene, event: str, hold: Hold) -> str:
    """Have an event of the second table happen; return the answer."""
    tenant_id, execution_id = "acme", scene.message.execution_id
    calls: dict[str, Callable[[], Call[Any]]] = {
        "accept": lambda: accepting(scene.message),
        "accept otherwise": lambda: accepting(scene.message.model_copy(update={"priority": 9})),
        "claim": lambda: ledger.claim(
            scene.ref(OTHER if hold.ref.step == STEP else "prompt"), lease_s=LEASE_S, worker="w"
        ),
        "renew": lambda: ledger.renew([hold], lease_s=LEASE_S),
        "cancel": lambda: ledger.cancel(tenant_id, execution_id),
        "prioritise": lambda: ledger.prioritise(tenant_id, execution_id, wish=7),
        "word": lambda: word(scene, hold),
        "early word": lambda: word(scene, hold, early=True),
        "child": lambda: accepting(scene.child().message, parent=scene.child().parent),
        "finish completed": lambda: finishing(hold),
        "finish failed": lambda: finishing(hold, "failed"),
        "finish cancelled": lambda: finishing(hold, "failed", cancelled=True),
    }
    try:
        answer = scene.store.run(calls[event]())
    except Conflict:
        return "mismatch"
    except NotFound:
        return "gone"
    except Orphan:
        return "orphan"
    match answer:
        case ledger.Acceptance(replayed=replayed):
            return "replayed" if replayed else "accepted"
        case ledger.CancelRequested():
            return "requested"
        case ledger.Prioritised():
            return "changed"
        case ledger.AlreadyOver(status):
            return status
        case other:
            return verdict(other)


@pytest.mark.parametrize("event", [event for event in life.EXECUTION if event not in ("retention passes", "end above")])
def test_an_execution_lives_as_the_table_says(store: ClockedStore, subtests: pytest.Subtests, event: str) -> None:
    for state, way in EXECUTIONS.items():
        with subtests.test(state.value):
            scene = Scene(store)
            hold = way(scene)
            assert scene.execution_state == state
            before, expected = scene.everything, life.EXECUTION[event][state]
            answer = happens(scene, event, hold)
            if expected.verdict == "refused":
                assert answer in ledger.REFUSALS | {"lost", "nobody"}
                assert scene.everything == before
            else:
                assert answer == expected.verdict
            assert scene.execution_state == expected.then
            ends = [entry for entry in scene.everything[1] if entry[1][b"event"].decode() in TERMINAL_EVENTS]
            assert len(ends) == (expected.then in (ExecutionState.COMPLETED, ExecutionState.FAILED))
            if expected.then != ExecutionState.ABSENT:  # and so the last row holds, by Redis's own clock
                assert 0 < store.redis.ttl(keys.execution("acme", scene.message.execution_id)) <= RETENTION_S


@pytest.mark.parametrize("end", ["cancel", "finish completed", "finish failed"])
def test_what_ends_an_execution_ends_all_below_it(store: ClockedStore, subtests: pytest.Subtests, end: str) -> None:
    for state, way in EXECUTIONS.items():
        with subtests.test(state.value):
            parent = Scene(store)
            parent.begin()
            if end != "cancel":
                over = finishing(parent.claim(OTHER), end.partition(" ")[2])
            child = parent.child()
            way(child)
            grandchild = child.child()
            if state in (ExecutionState.PENDING, ExecutionState.PROCESSING):
                grandchild.accept()
            store.run(ledger.cancel("acme", parent.message.execution_id) if end == "cancel" else over)
            assert child.execution_state == life.EXECUTION["end above"][state].then
            if grandchild.fields:
                assert grandchild.execution_state == ExecutionState.CANCELLING
                ends = {(ref.execution_id, ref.step) for ref in store.run(ledger.due()).ends}
                assert (grandchild.message.execution_id, "prompt") in ends, "at once, past every queue"
            others = Scene(store)
            others.begin()
            assert others.execution_state == ExecutionState.PROCESSING


@pytest.mark.parametrize("event", ["cancel", "prioritise", "word", "early word"])
def test_another_tenants_caller_finds_nothing(store: ClockedStore, subtests: pytest.Subtests, event: str) -> None:
    for state, way in EXECUTIONS.items():
        with subtests.test(state.value):
            scene = Scene(store)
            hold = way(scene)
            before, execution_id = scene.everything, scene.message.execution_id
            calls: dict[str, Call[Any]] = {
                "cancel": ledger.cancel("globex", execution_id),
                "prioritise": ledger.prioritise("globex", execution_id, wish=9),
                "word": word(scene, replace(hold, ref=replace(hold.ref, tenant_id="globex"))),
                "early word": word(scene, replace(hold, ref=replace(hold.ref, tenant_id="globex")), early=True),
            }
            call = calls[event]
            for tenant_id in ("globex", "acme"):
                with pytest.raises(NotFound):
                    store.run(replace(call, keys=[key.replace("globex", tenant_id) for key in call.keys]))
            assert scene.everything == before


def test_every_row_of_the_tables_is_driven() -> None:
    stale = {"stale write", "stale renew", "stale tell"}
    words = {"word", "early word"}
    assert set(life.STEP) == {"claim", "claim again", "renew", "tell", *WRITES, *stale, *words, "time passes", "look"}
    assert {state for state, _ in WAYS} == set(StepState)
    assert set(EXECUTIONS) == set(ExecutionState)
