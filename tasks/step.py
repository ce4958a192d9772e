"""What a step function gets and gives: the claimed step with all it may need, and what it came to.

Owns these two shapes. Who claims a step and guards it is attempt.py; who writes what it came to is settlement.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent_exec.contract.completion import Usage
from agent_exec.contract.event import EventName
from agent_exec.errors import ExecutionError
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, Event, StepRef
from tasks.journal import Journal, Snapshot
from tasks.next_step import Fail, Next
from tasks.resources import Resources
from tasks.token_stream import TokenStream


@dataclass(slots=True)
class Step:
    """One claimed step, in the hands of the function that does it."""

    resources: Resources
    claim: Claimed
    task_id: str
    claimed_at: float = field(default_factory=time.monotonic)
    #: What the model says in this attempt, once it may speak; kept when the attempt fails.
    tokens: TokenStream | None = None
    #: What a call of this attempt has used that ended without an answer.
    cut_off: Usage | None = None
    #: What the next attempt is told if this one is broken off.
    note: str = field(init=False)
    #: What the steps before it have journaled.
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        """Read the journal that came with the claim."""
        self.journal = Journal(self.claim.execution)
        self.note = self.claim.note

    @property
    def ref(self) -> StepRef:
        """The step's names."""
        return self.claim.hold.ref

    @property
    def number(self) -> int:
        """The turn in the step's name."""
        return int(self.ref.step.split(".")[1])

    def now_ms(self) -> float:
        """Return Redis's time: what the claim said, and what has passed since."""
        return self.claim.now_ms + (time.monotonic() - self.claimed_at) * 1000

    async def tell(self, name: EventName, json: str) -> None:
        """Append one event."""
        await self.resources.store.insist(ledger.tell(self.claim.hold, [Event(name, json)]))

    async def failed(self, error: ExecutionError) -> Done:
        """Return the end, with what the model had said: the text that is recorded is the text that was told."""
        if self.tokens is None:
            return Done("null", [], Fail(error))
        rest = await self.tokens.rest()
        return Done("null", [self.tokens.event(rest)] if rest else [], Fail(error, partial=self.tokens.text))


@dataclass(frozen=True, slots=True)
class Done:
    """What a step came to: the JSON to journal, the events to append with it, and what follows."""

    result: str
    events: Sequence[Event]
    next: Next
    #: Set by the prompt step: what it has just fixed, for the ledger to know plan and deadline.
    snapshot: Snapshot | None = None
