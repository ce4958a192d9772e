"""A model of the ledger: what the tables of life.py come to, event by event. It knows no script and no Redis."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent_exec.contract.event import EventName
from agent_exec.ledger import life
from agent_exec.ledger.life import ExecutionState, StepState

NEVER_MS = 10**15


@dataclass
class Step:
    """A step. `state` is as of the last event: time may have made it due, or expired, since."""

    state: StepState = StepState.QUEUED
    fence: int = 0
    until_ms: int = NEVER_MS
    attempts: int = 0
    retries: int = 0
    has_streamed: bool = False
    result: str | None = None
    #: The call that was granted the last claim.
    claimed_by: object = None
    #: The step that waits for it, and for others.
    target: str = ""
    #: What it said of itself when it last waited, the word for which it waited then, and the last for which it ever did.
    note: str = ""
    awaits: str = ""
    awaited: str = ""


@dataclass(eq=False)
class Execution:
    """An execution, its steps, and the names of its events."""

    state: ExecutionState = ExecutionState.PENDING
    deadline_ms: int = NEVER_MS
    steps: dict[str, Step] = field(default_factory=lambda: {"prompt": Step()})
    events: list[str] = field(default_factory=lambda: [EventName.STARTED])
    words: dict[str, str] = field(default_factory=dict)
    #: The execution that is told of the end, and the name of the word.
    parent: tuple[Execution, str] | None = None
    children: list[Execution] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.state in (ExecutionState.COMPLETED, ExecutionState.FAILED)

    def has_to_end(self, now_ms: int) -> bool:
        return self.state == ExecutionState.CANCELLING or self.deadline_ms <= now_ms

    def step_state(self, name: str, now_ms: int) -> StepState:
        """Where a step stands now."""
        step = self.steps.get(name)
        if step is None:
            return StepState.ABSENT
        if self.is_over and step.state != StepState.DONE:
            return StepState.OVER
        waits = step.state in (StepState.WAITING, StepState.AWAITING)
        is_up = step.until_ms <= now_ms or (waits and self.has_to_end(now_ms))
        return life.STEP["time passes"][step.state].then if is_up else step.state

    @property
    def open_steps(self) -> list[str]:
        """The steps that are still to be done."""
        return [] if self.is_over else [name for name, step in self.steps.items() if step.state != StepState.DONE]

    def happens(self, event: str) -> str:
        """An event of the execution's own table; return its answer."""
        verdict, self.state = life.EXECUTION[event][self.state]
        return verdict

    def accept_child(self, child: Execution, *, word: str, now_ms: int) -> str:
        """Another one is to be accepted as a child of this one; one that was told of its end knows of it."""
        if word in self.words or self.deadline_ms <= now_ms:
            return "orphan"
        verdict = self.happens("child")
        if verdict == "accepted":
            self.children.append(child)
            child.parent = self, word
            child.deadline_ms = min(child.deadline_ms, self.deadline_ms)
        return verdict

    @property
    def above(self) -> list[Execution]:
        """Who asked for it, and who asked for that one."""
        return [] if self.parent is None else [self.parent[0], *self.parent[0].above]

    def end_below(self) -> None:
        """This one ends, or is to end: so do all below it."""
        for child in self.children:
            child.happens("end above")
            if not child.is_over:
                child.end_below()

    def awaiting(self, word: str, now_ms: int) -> str | None:
        """Return the step that this word would make due now."""
        waiting = (name for name, step in self.steps.items() if step.awaits == word)
        name = next(waiting, None)
        is_awaited = name is not None and self.step_state(name, now_ms) == StepState.AWAITING
        return name if is_awaited and word not in self.words else None

    def claim(self, name: str, *, by: object, now_ms: int, lease_ms: int) -> str:
        """A worker claims a step. The same call again is the same claim."""
        before, step = self.step_state(name, now_ms), self.steps.get(name)
        is_again = step is not None and step.claimed_by is by
        verdict, state = life.STEP["claim again" if is_again else "claim"][before]
        if step is None or verdict != "claimed":
            return verdict
        self.happens("claim")
        if not is_again or before not in (StepState.RUNNING, StepState.EXPIRED):
            step.fence += 1
            step.attempts = 1 if before == StepState.DUE else step.attempts + 1
            step.claimed_by = by
            if step.has_streamed:
                self.events.append(EventName.STEP_RESTARTED)
                step.has_streamed = False
        step.state, step.until_ms = state, now_ms + lease_ms
        return verdict

    def renew(self, name: str, fence: int, *, now_ms: int, lease_ms: int) -> str:
        """A worker's heartbeat."""
        step, before = self.steps[name], self.step_state(name, now_ms)
        verdict, state = life.STEP["renew" if fence == step.fence else "stale renew"][before]
        if verdict == "held":
            step.state, step.until_ms = state, now_ms + lease_ms
            return self.happens("renew")
        return verdict

    def tell(self, name: str, fence: int, *, event: str, now_ms: int, is_told: bool, is_text: bool) -> str:
        """A worker tells an event; `is_told`: it has before, and got no reply."""
        step = self.steps[name]
        verdict, _ = life.STEP["tell" if fence == step.fence else "stale tell"][self.step_state(name, now_ms)]
        if verdict == "told" and not is_told:
            self.events.append(event)
            step.has_streamed |= is_text
        return verdict

    def write(
        self, event: str, name: str, fence: int, *, now_ms: int, result: str = "", told: list[str] | None = None
    ) -> str:
        """A worker ends an attempt: `event` is a row of the table, `finish <how>` the end of the execution.

        What a success does besides, the caller adds.
        """
        step, before = self.steps[name], self.step_state(name, now_ms)
        row = "finish" if event.startswith("finish") else event
        verdict, state = life.STEP[row if fence == step.fence else "stale write"][before]
        if verdict == "finished" and self.happens(event) == "cancelled":
            return "cancelled"
        if state != before:
            step.state, step.until_ms = state, NEVER_MS
            self.events += told or []
        if state == StepState.DONE and before != StepState.DONE:
            step.result = result
        return verdict

    def wait(
        self,
        name: str,
        fence: int,
        *,
        now_ms: int,
        due_ms: int,
        note: str,
        is_counted: bool,
        awaits: str,
        told: list[str],
    ) -> str:
        """A worker puts its step back."""
        verdict = self.write("await" if awaits else "wait", name, fence, now_ms=now_ms, told=told)
        if verdict == "waiting":
            step = self.steps[name]
            step.until_ms = now_ms if awaits in self.words else now_ms + due_ms
            step.retries += is_counted
            step.note, step.awaits, step.awaited = note, awaits, awaits or step.awaited
        return verdict

    def send_word(self, name: str, word: str, *, early: bool, now_ms: int) -> str:
        """Somebody outside sends a word; the one that stands is in `words`."""
        if name in self.words:
            return "sent"
        event = "early word" if early else "word"
        if self.is_over:
            return self.happens(event)
        step_name = next((one for one, step in self.steps.items() if step.awaits == name), "")
        state = self.step_state(step_name, now_ms)
        verdict, then = life.STEP[event][state]
        if verdict == "sent":
            self.words[name] = word
        if then != state:
            self.steps[step_name].state, self.steps[step_name].until_ms = then, now_ms
        return verdict

    def joined(self, target: str) -> str:
        """One of those that `target` waits for is done; say whether it was the last, which creates `target`."""
        if any(step.state != StepState.DONE for step in self.steps.values() if step.target == target):
            return "waiting"
        self.steps[target] = Step()
        return "joined"
