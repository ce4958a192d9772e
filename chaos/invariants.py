"""The invariants, each a pure function from the evidence to what breaks it.

Owns what the promise (docs/promise.md) comes to in ledgers. Does not know how the evidence was gathered, nor which faults
there were, but for those that excuse a repeated call. The docs speak of them by their names, I1 to I7; I8 is a cancel's.
"""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain

from agent_exec import keys
from chaos.evidence import CANARY, Evidence, Execution, canary

#: A cancel that was answered has closed the provider's socket after this, Redis being there.
CLOSED_AFTER_MS = 1_000
#: No call of a cancelled execution begins later than this.
LAST_CALL_AFTER_MS = 2_000
#: Tools that must not be asked twice.
EFFECT_TOOLS = frozenset({"send_note"})
#: Of its own accord, or by the SIGTERM that it was sent, which is how uvicorn ends.
ENDED_WELL = (0, -signal.SIGTERM)
#: Keys of the fair queue that hold no work: what it knows of shares, its two clocks, and who was served until when.
_STANDING = (keys.fair_share(), keys.fair_virtual(), keys.fair_clock(), keys.fair_ring("*"))
#: And those whose every entry is work that nobody has done.
_WORK = (
    keys.pending(),
    keys.outbox(),
    keys.outbox_unacked(),
    keys.outbox_wake(),
    keys.callbacks(),
    keys.callbacks_waiting("*"),
    keys.callbacks_sending("*"),
    keys.callbacks_dead("*"),
    *keys.FAIR_QUEUE_LISTS,
    f"{keys.fair_queue()}:*",
    "unacked",
    "unacked_index",
)


@dataclass(frozen=True, slots=True)
class Violation:
    """What broke: which invariant, whose, what had to be, what was."""

    invariant: str
    subject: str
    expected: str
    seen: str


def lost(evidence: Evidence) -> Iterator[Violation]:
    """I1: every accepted execution ended, and well unless it was cancelled; what was not accepted is whole or absent."""
    cancelled = {cancel.execution_id for cancel in evidence.cancels}
    for refusal in evidence.refusals:
        yield Violation("I1", refusal.mark, "accepted, or told to come again", refusal.answer)
    for submission in evidence.submissions:
        if submission.execution_id is None:
            continue
        execution = evidence.by_id.get(submission.execution_id)
        if execution is None:
            yield Violation("I1", submission.execution_id, "an accepted execution is stored", "it is not")
    for execution in evidence.executions:
        if execution.terminal is None:
            yield Violation("I1", execution.execution_id, "a terminal event", f"none; status {execution.status}")
        elif execution.status != "completed" and execution.execution_id not in cancelled:
            error = execution.response and execution.response.get("error")
            yield Violation("I1", execution.execution_id, "completed: no fault of ours ends it", f"failed: {error}")


def doubled(evidence: Evidence) -> Iterator[Violation]:
    """I2: one execution for a submission; one terminal event, the last, equal to the record and to every copy of it."""
    accepted = {submission.mark: submission.execution_id for submission in evidence.submissions}
    for mark, executions in evidence.by_mark.items():
        ids = [one.execution_id for one in executions]
        if len(ids) > 1:
            yield Violation("I2", mark, "one execution for one Idempotency-Key", f"{ids}")
        if mark not in accepted:
            yield Violation("I2", ids[0], "an execution that somebody submitted", f"nobody submitted {mark!r}")
        elif accepted[mark] not in (None, *ids):
            yield Violation("I2", mark, f"the execution {accepted[mark]} that was answered", f"{ids}")
    for execution in evidence.executions:
        yield from _ends_once(execution)


def _ends_once(execution: Execution) -> Iterator[Violation]:
    ends = [event for event in execution.log if event.is_terminal]
    if len(ends) > 1 or (ends and not execution.log[-1].is_terminal):
        names = [f"{event.sequence}:{event.event}" for event in execution.log[-5:]]
        yield Violation("I2", execution.execution_id, "one terminal event, the last", f"{len(ends)}; …{names}")
    if not ends:
        return
    told = ends[0].data["response"]
    if ends[0].event != f"agent_execution_{execution.status}":
        seen = f"{execution.status} in the record, {ends[0].event} in the log"
        yield Violation("I2", execution.execution_id, "the record's status is the terminal event's", seen)
    if execution.response != told:
        yield Violation("I2", execution.execution_id, "the record's response is the event's", "another")
    if list(execution.answers) != [told]:
        yield Violation("I2", execution.execution_id, "one entry in agent_responses", f"{len(execution.answers)}")
    if execution.celery is None or (told["status"] == "completed" and execution.celery != ("SUCCESS", told)):
        state = execution.celery and execution.celery[0]
        yield Violation("I2", execution.execution_id, "the response as the Celery result", f"{state}")


def gaps(evidence: Evidence) -> Iterator[Violation]:
    """I3: sequences are 1 to n, and the last attempt's tokens joined are the recorded text."""
    for execution in evidence.executions:
        sequences = [event.sequence for event in execution.log]
        if sequences != list(range(1, len(sequences) + 1)):
            yield Violation("I3", execution.execution_id, f"sequences 1 to {len(sequences)}", f"{sequences}")
        if execution.terminal is not None and execution.spoken != execution.text:
            yield Violation("I3", execution.execution_id, repr(execution.text), repr(execution.spoken))


def steps(evidence: Evidence) -> Iterator[Violation]:
    """I4: each step journaled once; a call is repeated only where a kill cut it; none begins behind its step's end."""
    for execution in evidence.executions:
        yield from _journaled_once(execution)
    for call in evidence.calls:
        if call.mark not in evidence.by_mark:
            yield Violation("I4", call.mark, "calls of executions that are stored", f"a call at {call.at_ms}")
    for (execution_id, turn), calls in evidence.calls_by_step.items():
        execution = evidence.by_id[execution_id]
        struck = sum(evidence.in_flight_at_kill(execution, call) is not None for call in calls)
        if len(calls) - 1 > struck:
            seen = f"{len(calls)} calls: {[(call.worker, call.at_ms, call.outcome) for call in calls]}"
            yield Violation("I4", f"{execution_id}.completion.{turn}", f"at most {struck} repeated, as struck", seen)
        journaled_at_ms = execution.journaled_at_ms(turn)
        for call in calls:
            if journaled_at_ms is not None and call.at_ms > journaled_at_ms:
                expected = f"no call after {journaled_at_ms}, when it was journaled or all was over"
                yield Violation("I4", f"{execution_id}.completion.{turn}", expected, f"{call.worker} at {call.at_ms}")
    yield from _tools(evidence)


def _journaled_once(execution: Execution) -> Iterator[Violation]:
    told = Counter(
        f"{event.event} {event.data['tool_call_id']}"
        for event in execution.log
        if event.event in ("tool_call_requested", "tool_call_completed")
    )
    for what, times in told.items():
        if times > 1:
            yield Violation("I4", execution.execution_id, f"{what} once", f"{times} times")
    if execution.status == "completed":
        made = [call["id"] for call in (execution.response or {}).get("tool_calls", [])]
        completed = [event.data["tool_call_id"] for event in execution.log if event.event == "tool_call_completed"]
        if sorted(made) != sorted(completed) or len(made) != len(set(made)):
            yield Violation("I4", execution.execution_id, f"the tool calls of its log: {completed}", f"{made}")


def _tools(evidence: Evidence) -> Iterator[Violation]:
    requests: dict[str, int] = Counter()
    keys_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    for call in evidence.tool_calls:
        execution = evidence.by_id.get(call.execution_id)
        if execution is None:
            yield Violation("I4", call.execution_id, "tool calls of executions that are stored", call.key)
            continue
        ended_at_ms = execution.tool_ended_at_ms(call.tool_call_id)
        if ended_at_ms is not None and call.at_ms > ended_at_ms:
            yield Violation("I4", call.key, f"no call after {ended_at_ms}, its step's end", f"one at {call.at_ms}")
        keys_of[call.execution_id, call.tool].add(call.key)
        requests[call.key] += call.tool in EFFECT_TOOLS
    for (execution_id, tool), used in keys_of.items():
        if len(used) > 1:
            yield Violation("I4", execution_id, f"one idempotency key for all attempts of {tool}", f"{sorted(used)}")
    for key, times in requests.items():
        if times > 1:
            yield Violation("I4", key, "a tool with an effect is asked once", f"{times} times")
    for key, times in evidence.effects.items():
        if times > 1:
            yield Violation("I4", key, "one effect", f"{times}")


def notices(evidence: Evidence) -> Iterator[Violation]:
    """I5: every event of every log reached the orchestrator as it is, at least once, and in order but for repetitions."""
    arrived: dict[str, dict[int, str]] = defaultdict(dict)
    for notice in evidence.notices:
        if notice.fault is not None:
            yield Violation("I5", notice.event_id, "frames of the contract", notice.fault)
            continue
        seen = arrived[notice.execution_id]
        before = seen.get(notice.sequence)
        if before is not None and before != notice.digest:
            yield Violation("I5", notice.event_id, "the same frame at every delivery", "another")
        if before is None and notice.sequence != len(seen) + 1:
            yield Violation("I5", notice.event_id, f"sequence {len(seen) + 1} first", f"{notice.sequence}")
        seen.setdefault(notice.sequence, notice.digest)
    for execution in evidence.executions:
        logged = {event.sequence: event.digest for event in execution.log}
        got = arrived.pop(execution.execution_id, {})
        missing = sorted(logged.keys() - got.keys())
        unknown = sorted(got.keys() - logged.keys())
        other = sorted(sequence for sequence in logged.keys() & got.keys() if logged[sequence] != got[sequence])
        for what, found in (("missing", missing), ("in no log", unknown), ("unlike the log's", other)):
            if found:
                yield Violation(
                    "I5", execution.execution_id, "the log's events at the orchestrator", f"{what}: {found}"
                )
    for execution_id in arrived:
        yield Violation("I5", execution_id, "notices of executions that are stored", "it is not stored")


def callbacks(evidence: Evidence) -> Iterator[Violation]:
    """I5: whoever asked for it was called back, after the end, with one body whose signature holds."""
    bodies: dict[str, set[str]] = defaultdict(set)
    for arrival in evidence.callbacks:
        execution = evidence.by_id.get(arrival.execution_id)
        if arrival.fault is not None:
            yield Violation("I5", arrival.execution_id, "callbacks whose signature holds", arrival.fault)
        elif execution is None or not execution.called_back:
            yield Violation("I5", arrival.execution_id, "callbacks to who asked for them", f"one at {arrival.at_ms}")
        elif execution.terminal is not None and arrival.at_ms < execution.terminal.at_ms:
            yield Violation("I5", arrival.execution_id, "called back after the end", f"at {arrival.at_ms}")
        bodies[arrival.execution_id].add(arrival.digest)
    for execution in evidence.executions:
        found = len(bodies[execution.execution_id])
        if execution.called_back and execution.terminal is not None and found != 1:
            yield Violation("I5", execution.execution_id, "called back, with one body", f"{found} bodies")


def clean(evidence: Evidence) -> Iterator[Violation]:
    """I6: no work, lease or hint is left; every key expires or is one of those that may not; nothing runs on."""
    for key in evidence.keys:
        if not _is_one_of(key.name, keys.KNOWN):
            yield Violation("I6", key.name, "a key that agent_exec/keys.py knows", "it does not")
        elif not _is_one_of(key.name, _STANDING) and _is_one_of(key.name, _WORK):
            yield Violation("I6", key.name, "empty, hence absent", f"{key.size} entries")
        elif not key.expires and not _is_one_of(key.name, keys.IMMORTAL):
            yield Violation("I6", key.name, "expires", "never")
    for name in evidence.stragglers:
        yield Violation("I6", name, "ended with the service", "still runs")
    for death in evidence.deaths:
        if death.cause == "itself":
            seen = f"ended by itself with exit code {death.exit_code}"
            yield Violation("I6", death.name, "runs until it is killed or asked to end", seen)
        elif death.cause == "asked" and death.exit_code not in ENDED_WELL:
            yield Violation("I6", death.name, "ends well when asked to", f"exit code {death.exit_code}")


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def tenants(evidence: Evidence) -> Iterator[Violation]:
    """I7: no tenant's canary is in another's events, frames or calls."""
    owners = {one.execution_id: one.tenant_id for one in evidence.executions}
    submitted = {submission.mark: submission.tenant_id for submission in evidence.submissions}
    found = chain(
        ((one.mark, one.tenant_id, e.canaries, "event") for one in evidence.executions for e in one.log),
        ((call.mark, submitted.get(call.mark), call.canaries, "provider call") for call in evidence.calls),
        ((c.key, owners.get(c.execution_id, c.tenant_id), c.canaries, "tool call") for c in evidence.tool_calls),
        ((n.event_id, owners.get(n.execution_id), n.canaries, "frame") for n in evidence.notices),
        ((c.execution_id, owners.get(c.execution_id), c.canaries, "callback") for c in evidence.callbacks),
    )
    for subject, tenant_id, canaries, what in found:
        own = None if tenant_id is None else canary(tenant_id)
        foreign = [one for one in canaries if one.startswith(CANARY) and one != own]
        if foreign:
            yield Violation("I7", subject, f"a {what} with {own} alone", f"{foreign}")
    for one in evidence.executions:
        if submitted.get(one.mark, one.tenant_id) != one.tenant_id:
            yield Violation("I7", one.execution_id, f"tenant {submitted[one.mark]}", one.tenant_id)
    for notice in evidence.notices:
        if owners.get(notice.execution_id, notice.tenant_id) != notice.tenant_id:
            yield Violation("I7", notice.event_id, f"tenant {owners[notice.execution_id]}", notice.tenant_id)
    for callback in evidence.callbacks:
        if owners.get(callback.execution_id, callback.tenant_id) != callback.tenant_id:
            yield Violation("I7", callback.execution_id, f"tenant {owners[callback.execution_id]}", callback.tenant_id)
    for tool_call in evidence.tool_calls:
        if owners.get(tool_call.execution_id, tool_call.tenant_id) != tool_call.tenant_id:
            yield Violation("I7", tool_call.key, f"tenant {owners[tool_call.execution_id]}", tool_call.tenant_id)


def cancels(evidence: Evidence, *, patience: float = 1.0) -> Iterator[Violation]:
    """I8: a cancel that was answered ends the execution, soon, and no call begins behind it.

    `patience` stretches both times, for a machine that is slower than what is promised of.
    """
    for cancel in evidence.cancels:
        execution = evidence.by_id.get(cancel.execution_id)
        if execution is None:
            continue  # I1 says so
        if not cancel.requested:
            if execution.terminal is None or execution.terminal.at_ms > cancel.answered_at_ms:
                expected = "over before the cancel was answered so"
                yield Violation("I8", cancel.execution_id, expected, "its terminal event is later")
            continue
        error = (execution.response or {}).get("error")
        if error is None or error["code"] != "cancelled":
            yield Violation("I8", cancel.execution_id, "failed as cancelled", f"{execution.status}: {error}")
        for began_at_ms, ended_at_ms, what in _calls_of(evidence, execution):
            began_ms = evidence.served_ms(cancel.answered_at_ms, began_at_ms)
            if began_at_ms > cancel.answered_at_ms and began_ms > LAST_CALL_AFTER_MS * patience:
                expected = f"no call {LAST_CALL_AFTER_MS * patience:.0f} ms behind the cancel"
                yield Violation("I8", cancel.execution_id, expected, f"{what}, {began_ms} ms behind it")
            if ended_at_ms is None:
                yield Violation("I8", cancel.execution_id, "its sockets closed", f"{what} was never closed")
            open_ms = open_behind_ms(evidence, cancel.answered_at_ms, began_at_ms, ended_at_ms)
            if open_ms is not None and open_ms > CLOSED_AFTER_MS * patience:
                expected = f"its socket closed {CLOSED_AFTER_MS * patience:.0f} ms behind the cancel"
                yield Violation("I8", cancel.execution_id, expected, f"{what} closed {open_ms} ms behind it")


def _calls_of(evidence: Evidence, execution: Execution) -> Iterator[tuple[int, int | None, str]]:
    for turn in (1, 2):
        for call in evidence.calls_by_step.get((execution.execution_id, turn), []):
            yield call.at_ms, call.ended_at_ms, f"the call of turn {turn} by {call.worker} ({call.outcome})"
    for tool_call in evidence.tool_calls:
        if tool_call.execution_id == execution.execution_id:
            yield tool_call.at_ms, tool_call.at_ms, f"the call of {tool_call.tool}"


def open_behind_ms(evidence: Evidence, answered_at_ms: int, began_at_ms: int, ended_at_ms: int | None) -> int | None:
    """Return how long a call that was open when a cancel was answered stayed so, while Redis was there; null: it was not."""
    if began_at_ms > answered_at_ms or ended_at_ms is None or ended_at_ms <= answered_at_ms:
        return None
    return evidence.served_ms(answered_at_ms, ended_at_ms)


#: In the order of their names; `cancels` besides, which has a parameter.
INVARIANTS: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    lost,
    doubled,
    gaps,
    steps,
    notices,
    callbacks,
    clean,
    tenants,
)


def check(evidence: Evidence, *, patience: float = 1.0) -> list[Violation]:
    """Return everything that breaks any of them."""
    found = [violation for invariant in INVARIANTS for violation in invariant(evidence)]
    return [*found, *cancels(evidence, patience=patience)]
