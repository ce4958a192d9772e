"""The life of an execution and of its steps: what each event comes to in each state.

The scripts in `lua/` are what decides. These two tables say what they decide, for whoever reads, for docs/ledger.md, and
for the tests: one drives every cell on a real server, another any events in any order. Does not know how anything is stored.

Whatever the table, an event of another tenant is answered as if there were no such execution, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

#: The version of a record's form. An execution keeps the one that it was accepted with; a worker leaves a newer one alone.
SCHEMA_VERSION = 1


class StepState(StrEnum):
    """Where a step stands."""

    ABSENT = "absent"  # there is no such step
    QUEUED = "queued"  # created, or handed back; its hint waits in a queue, or is lost
    WAITING = "waiting"  # put back until it is due
    AWAITING = "awaiting"  # put back until a word comes from outside, or its time is up
    DUE = "due"  # was put back; now its time or its word has come, or its execution has to end
    RUNNING = "running"  # claimed
    EXPIRED = "expired"  # claimed, and its lease has ended: its worker is dead, or stalls
    DONE = "done"  # its result is journaled
    OVER = "over"  # its execution has ended before it had


class ExecutionState(StrEnum):
    """Where an execution stands."""

    ABSENT = "absent"  # never accepted, or expired since
    PENDING = "pending"  # stored; no step of it was claimed yet
    PROCESSING = "processing"
    CANCELLING = "cancelling"  # either of these, and its end was asked for
    COMPLETED = "completed"
    FAILED = "failed"


State = TypeVar("State", StepState, ExecutionState)


class Outcome(NamedTuple, Generic[State]):
    """What the ledger answers, and where the step or the execution stands then."""

    verdict: str
    then: State


Table = Mapping[str, Mapping[State, Outcome[State]]]


# A cell says the answer and, if it changes, the state then. What a worker does is by the fence that its claim handed out; by
# an older one than the step's it is `stale`. A claim or a write that is repeated, because its reply was lost, is
# `claim again`, or is answered `done`: the attempt has ended before, by this very write. A step that waits for a word does
# `await`; where that word had come `early`, its time is up at once. One name has one word: whoever sends another is
# answered `sent`, whenever it is, and the first one.
_STEP = """
event         absent  queued           waiting  awaiting  due              running           expired           done    over
claim         gone    claimed→running  early    early     claimed→running  busy              claimed→running   done    over
claim again   gone    claimed→running  early    early     claimed→running  claimed           claimed→running   done    over
renew         lost    lost             lost     lost      lost             held              held→running      lost    lost
stale renew   lost    lost             lost     lost      lost             lost              lost              lost    lost
tell          fenced  fenced           fenced   fenced    fenced           told              told              fenced  fenced
stale tell    fenced  fenced           fenced   fenced    fenced           fenced            fenced            fenced  fenced
record        gone    done             done     done      done             recorded→done     recorded→done     done    over
join          gone    done             done     done      done             joined→done       joined→done       done    over
mark          gone    done             done     done      done             marked            marked            done    over
wait          gone    done             done     done      done             waiting→waiting   waiting→waiting   done    over
await         gone    done             done     done      done             waiting→awaiting  waiting→awaiting  done    over
release       gone    done             done     done      done             released→queued   released→queued   done    over
finish        gone    done             done     done      done             finished→done     finished→done     done    over
stale write   gone    fenced           fenced   fenced    fenced           fenced            fenced            fenced  over
word          nobody  nobody           nobody   sent→due  nobody           nobody            nobody            nobody  over
early word    sent    sent             sent     sent→due  sent             sent              sent              sent    over
time passes   -       -                -→due    -→due     -                -→expired         -                 -       -
look          forget  hint             later    later     hint             later             hint              forget  forget
"""

# `finish`: the execution ends as completed, as failed, or as the cancel asks. `refused` is an answer of the table above.
# `child`: another one is accepted that this one has asked for. `end above`: the one that asked for this one, or one further
# up, ends or is cancelled.
_EXECUTION = """
event               absent            pending              processing           cancelling        completed  failed
accept              accepted→pending  replayed             replayed             replayed          replayed   replayed
accept otherwise    accepted→pending  mismatch             mismatch             mismatch          mismatch   mismatch
claim               refused           claimed→processing   claimed              claimed           refused    refused
renew               refused           refused              held                 cancelled         refused    refused
cancel              gone              requested→cancelling requested→cancelling requested         completed  failed
prioritise          gone              changed              changed              changed           completed  failed
word                gone              refused              refused              refused           completed  failed
early word          gone              sent                 sent                 sent              completed  failed
finish completed    refused           refused              finished→completed   cancelled         refused    refused
finish failed       refused           refused              finished→failed      cancelled         refused    refused
finish cancelled    refused           refused              finished→failed      finished→failed   refused    refused
child               orphan            accepted             accepted             orphan            orphan     orphan
end above           -                 -→cancelling         -→cancelling         -                 -          -
retention passes    -                 -→absent             -→absent             -→absent          -→absent   -→absent
"""


def _table(text: str, states: type[State]) -> Table[State]:
    """Read a table: columns begin where their heading does."""
    head, *lines = text.strip("\n").splitlines()
    starts: list[int] = [head.index(f" {state}") + 1 for state in states]
    rows = {}
    for line in lines:
        cells = [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        rows[line[: starts[0]].strip()] = {
            state: Outcome(verdict, states(then) if then else state)
            for state, (verdict, _, then) in zip(states, [cell.partition("→") for cell in cells], strict=True)
        }
    return rows


#: What an event comes to for a step in each state.
STEP: Table[StepState] = _table(_STEP, StepState)
#: What an event comes to for an execution in each state.
EXECUTION: Table[ExecutionState] = _table(_EXECUTION, ExecutionState)
