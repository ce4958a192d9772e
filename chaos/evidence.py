"""What the ledgers outside and the store say, side by side: plain values, and what follows from them by joining.

Owns the form of the evidence. Does not know how it is come by (reading.py), nor what should be in it (invariants.py). Pure.

Every moment is in ms of this machine's clock: the neighbours, the clients and Redis share it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from agent_exec.contract.event import TERMINAL_EVENTS, EventName

#: What each tenant's texts hold, and nobody else's may.
CANARY = "canary-"


def canary(tenant_id: str) -> str:
    """Return a tenant's canary."""
    return f"{CANARY}{tenant_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """L-client: one piece of work, named by the mark in its prompt. `execution_id` null: its client never heard."""

    mark: str
    tenant_id: str
    execution_id: str | None = None
    accepted_at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """L-client: an answer that no fault excuses."""

    mark: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """L-client: a cancel that was answered. Not `requested`: the execution had ended before."""

    execution_id: str
    answered_at_ms: int
    requested: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCall:
    """L-prov: one call. `worker` is the incarnation whose API key it bore; `ended_at_ms` null: it is still open."""

    mark: str
    turn: int
    worker: str
    at_ms: int
    ended_at_ms: int | None
    outcome: str
    canaries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """L-tool: one request to run a tool."""

    tenant_id: str
    execution_id: str
    tool: str
    tool_call_id: str
    key: str
    at_ms: int
    canaries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """L-orch: a frame as it arrived. `digest` is that of its JSON; `fault` says what breaks the contract."""

    execution_id: str
    tenant_id: str
    event_id: str
    sequence: int
    event: str
    at_ms: int
    digest: str
    canaries: tuple[str, ...] = ()
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """L-hook: a callback as it arrived at its tenant's receiver, its body's digest, and what of its signature is wrong."""

    tenant_id: str
    execution_id: str
    at_ms: int
    digest: str
    canaries: tuple[str, ...] = ()
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """An event in an execution's log; `digest` is that of the frame in which it travels."""

    sequence: int
    event: str
    at_ms: int
    data: Mapping[str, Any] = field(hash=False)
    digest: str = ""
    canaries: tuple[str, ...] = ()

    @property
    def is_terminal(self) -> bool:
        """Whether nothing may follow it."""
        return self.event in TERMINAL_EVENTS

    @property
    def ends_all(self) -> bool:
        """Whether it is an end that no cancel brought, so that no request was under way."""
        error = self.data["response"]["error"] if self.is_terminal else None
        return self.is_terminal and (error is None or error["code"] != "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """An execution as the store has it: its record, its log, and the response in each place where one is kept."""

    execution_id: str
    tenant_id: str
    mark: str
    status: str
    log: tuple[Logged, ...]
    #: Whether its caller asked to be called back.
    called_back: bool = False
    #: As the record has it.
    response: Mapping[str, Any] | None = field(default=None, hash=False)
    #: As its response stream has it, one an entry.
    answers: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    #: As a Celery caller gets it: the state, and the result.
    celery: tuple[str, Any] | None = field(default=None, hash=False)

    @property
    def terminal(self) -> Logged | None:
        """The first terminal event."""
        return next((event for event in self.log if event.is_terminal), None)

    @property
    def text(self) -> str:
        """The recorded text."""
        return str(self.response["output"]["text"]) if self.response is not None else ""

    @property
    def spoken(self) -> str:
        """The tokens of the last attempt, joined. The scripted model speaks in its last turn alone."""
        restarts = [place for place, event in enumerate(self.log) if event.event == EventName.STEP_RESTARTED]
        valid = self.log[restarts[-1] + 1 :] if restarts else self.log
        return "".join(str(event.data["token"]) for event in valid if event.event == EventName.TOKEN)

    def journaled_at_ms(self, turn: int) -> int | None:
        """Return when the completion of a turn was journaled: its tool calls are told in the same script.

        Null where a cancel cut it off: what was on its way is read by the neighbour a moment later, and I8 bounds that.
        """
        for event in self.log:
            asks = event.event == EventName.TOOL_CALL_REQUESTED and event.data["turn"] == turn
            if asks or event.ends_all:
                return event.at_ms
        return None

    def tool_ended_at_ms(self, tool_call_id: str) -> int | None:
        """Return when a tool call was journaled, or the execution ended without it; null where a cancel cut it off."""
        for event in self.log:
            done = event.event == EventName.TOOL_CALL_COMPLETED and event.data["tool_call_id"] == tool_call_id
            if done or event.ends_all:
                return event.at_ms
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """L-nemesis: the end of a process. `itself`: nobody asked for it."""

    name: str
    at_ms: int
    cause: Literal["killed", "asked", "itself"]
    exit_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """L-nemesis: Redis could not be reached meanwhile, or there was no worker."""

    from_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """L-nemesis: a worker took work from its being ready on, until it was killed or asked to end."""

    name: str
    from_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A key of the store at the end; `size` counts its members, characters or fields."""

    name: str
    expires: bool
    size: int


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All of it."""

    submissions: tuple[Submission, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    cancels: tuple[Cancel, ...] = ()
    calls: tuple[ProviderCall, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    #: How often each idempotency key took effect, as the tools count it.
    effects: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    callbacks: tuple[Callback, ...] = ()
    executions: tuple[Execution, ...] = ()
    deaths: tuple[Death, ...] = ()
    outages: tuple[Outage, ...] = ()
    shifts: tuple[Shift, ...] = ()
    keys: tuple[StoredKey, ...] = ()
    #: Processes that outlived the service.
    stragglers: tuple[str, ...] = ()

    @cached_property
    def by_id(self) -> Mapping[str, Execution]:
        """The executions by their ids."""
        return {one.execution_id: one for one in self.executions}

    @cached_property
    def by_mark(self) -> Mapping[str, list[Execution]]:
        """The executions by the marks in their prompts: more than one for a mark is a doubled one."""
        found: dict[str, list[Execution]] = defaultdict(list)
        for one in self.executions:
            found[one.mark].append(one)
        return found

    @cached_property
    def calls_by_step(self) -> Mapping[tuple[str, int], list[ProviderCall]]:
        """The provider's calls of each completion step (execution, turn), in the order in which they began."""
        found: dict[tuple[str, int], list[ProviderCall]] = defaultdict(list)
        for call in sorted(self.calls, key=lambda call: call.at_ms):
            for execution in self.by_mark.get(call.mark, []):
                found[execution.execution_id, call.turn].append(call)
        return found

    @cached_property
    def killed(self) -> Mapping[str, Death]:
        """The processes that were killed."""
        return {death.name: death for death in self.deaths if death.cause == "killed"}

    def in_flight_at_kill(self, execution: Execution, call: ProviderCall) -> Death | None:
        """Return the kill that struck a call, if one did: of its worker, before its step was journaled."""
        death = self.killed.get(call.worker)
        if death is None:
            return None
        journaled_at_ms = execution.journaled_at_ms(call.turn)
        if journaled_at_ms is not None and journaled_at_ms < death.at_ms:
            return None
        left_before = call.outcome == "disconnected" and call.ended_at_ms is not None and call.ended_at_ms < death.at_ms
        return None if left_before else death

    def served_ms(self, from_ms: int, until_ms: int) -> int:
        """Return how much of a time Redis could be reached in: what is promised is promised of that."""
        return _less(self.outages, from_ms, until_ms)

    def staffed_ms(self, from_ms: int, until_ms: int) -> int:
        """Return how much of a time there was both Redis and a worker in."""
        return _less((*self.outages, *self.unstaffed), from_ms, until_ms)

    @cached_property
    def unstaffed(self) -> Sequence[Outage]:
        """The times between the first and the last worker in which none worked."""
        found, reached_ms = [], None
        for shift in sorted(self.shifts, key=lambda shift: shift.from_ms):
            if reached_ms is not None and shift.from_ms > reached_ms:
                found.append(Outage(from_ms=reached_ms, until_ms=shift.from_ms))
            reached_ms = max(reached_ms or 0, shift.until_ms)
        return found


def _less(outages: Sequence[Outage], from_ms: int, until_ms: int) -> int:
    """Return the length of a time without the outages in it."""
    away_ms, reached_ms = 0, from_ms
    for outage in sorted(outages, key=lambda outage: outage.from_ms):
        begin, end = max(reached_ms, outage.from_ms), min(until_ms, outage.until_ms)
        if end > begin:
            away_ms += end - begin
            reached_ms = end
    return max(0, until_ms - from_ms - away_ms)
