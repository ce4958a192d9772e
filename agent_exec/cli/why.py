"""`why`: where an execution stands, step by step, and what to do about it.

Owns the reading of the ledger's record for a person. Decides nothing: the worker's rules are the ledger's scripts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, assert_never

import click
from pydantic import BaseModel
from pydantic_core import to_json

from agent_exec import events, routing
from agent_exec.broker import fair_queue
from agent_exec.broker.fair_queue import FamilyDepth, TenantDepth
from agent_exec.cli.options import connected_store, json_option, tenant_option
from agent_exec.cli.text import columns, moment, one_line
from agent_exec.contract.approval import tool_call_of
from agent_exec.contract.event import EventName
from agent_exec.contract.execution import ErrorDetail
from agent_exec.errors import Cancelled
from agent_exec.events import LoggedEvent
from agent_exec.ledger import ledger
from agent_exec.ledger.parent import child_of
from agent_exec.ledger.record import ExecutionRecord
from agent_exec.store import redis_errors

#: How many of the last events are shown; tokens say nothing about where an execution stands, and are left out.
LAST_EVENTS = 8
#: How an execution ends that has to.
_ENDS = (
    "A step that runs is stopped by its worker's next heartbeat; where none runs, any worker ends it within a second or "
    "two, past every queue and cap. If nothing happens, no worker runs: celery -A tasks worker."
)


class StepState(BaseModel):
    """A step as the ledger's scripts keep it (`ledger/lua/_ledger.lua`)."""

    state: Literal["queued", "running", "waiting", "done"]
    attempts: int
    retries: int
    worker: str = ""
    lease_ms: int = 0
    due_ms: int = 0
    awaits: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """All that is known of an execution at one moment, `now_ms` of Redis's clock."""

    execution_id: str
    record: ExecutionRecord
    last_events: list[LoggedEvent]
    depths: dict[str, FamilyDepth]
    now_ms: int

    @property
    def steps(self) -> dict[str, StepState]:
        """The steps, by name, in the order in which they came to be."""
        return {name: StepState.model_validate_json(packed) for name, packed in self.record.steps.items()}

    def depth(self, step: str) -> TenantDepth:
        """Return what waits and is in flight, of this tenant, in the family of a step's queue."""
        record = self.record
        family = fair_queue.family_of(routing.queue(record.tenant_id, record.agent_id, step))
        return self.depths[family].tenants.get(record.tenant_id, TenantDepth())


@click.command()
@click.argument("execution_id", metavar="ID")
@tenant_option
@json_option
def why(execution_id: str, tenant_id: str, as_json: bool) -> None:
    """Explain why an execution is not further: its steps, attempts and leases, its last events, and what to do."""
    with connected_store() as store:
        record = store.run(ledger.look(tenant_id, execution_id))
        last = int(record.fields["sequence"])
        page = store.run(events.read(tenant_id, execution_id, after=max(0, last - events.READ_AT_ONCE)))
        with redis_errors():
            seconds, microseconds = store.redis.time()
        standing = Standing(
            execution_id=execution_id,
            record=record,
            last_events=[event for event in page.events if event.name != EventName.TOKEN][-LAST_EVENTS:],
            depths=store.run(fair_queue.depths()),
            now_ms=seconds * 1000 + microseconds // 1000,
        )
    click.echo(_json(standing) if as_json else _report(standing))


def advice(standing: Standing) -> Iterator[str]:
    """Say what holds the execution up, and what to do."""
    record, response = standing.record, standing.record.response
    if response is not None and response.error is None:
        yield f"It has completed. See: agent-exec show {standing.execution_id}."
        return
    if response is not None and response.error is not None:
        yield f"It has failed with '{response.error.code}': {response.error.message}"
        yield f"Submitting it again {_again(response.error)}"
        return
    if int(record.fields["v"]) > ledger.SCHEMA_VERSION:
        yield (
            f"A newer release accepted it (record {record.fields['v']}, known here {ledger.SCHEMA_VERSION}): only a "
            "worker of that release runs it. Start one, and use its agent-exec."
        )
        return
    if record.cancel_requested:
        yield f"Its end is asked for. {_ENDS}"
    elif record.deadline_ms is not None and record.deadline_ms < standing.now_ms:
        yield f"Its deadline has passed. {_ENDS}"
    else:
        for name, step in standing.steps.items():
            yield from _advice(standing, name, step)


def _again(error: ErrorDetail) -> str:
    if error.code == Cancelled.code:
        return "begins it anew."
    return "may help: the cause may be gone." if error.retryable else "as it is would fail again."


def _advice(standing: Standing, name: str, step: StepState) -> Iterator[str]:
    match step.state:
        case "done":
            pass
        case "running" if step.lease_ms > standing.now_ms:
            yield f"Step '{name}' is being done by {step.worker}; there is nothing to do but wait."
        case "running":
            yield (
                f"Step '{name}' was left by {step.worker}, which died or lost Redis. Any running worker takes it up "
                "within a second or two; if none does, start one: celery -A tasks worker."
            )
        case "waiting" if (call := tool_call_of(step.awaits)) is not None:
            ids = f"{standing.execution_id} {call} --tenant {standing.record.tenant_id}"
            yield (
                f"Step '{name}' waits for a person's approval, and gives up {_in(step.due_ms - standing.now_ms)}: "
                f"agent-exec approve {ids}, or reject."
            )
        case "waiting" if (child := child_of(step.awaits)) is not None:
            ids = f"{child} --tenant {standing.record.tenant_id}"
            yield (
                f"Step '{name}' waits for the answer of another agent, execution '{child}', and gives up "
                f"{_in(step.due_ms - standing.now_ms)}. See: agent-exec why {ids}, or watch."
            )
        case "waiting" if step.awaits:
            yield (
                f"Step '{name}' waits for '{step.awaits}', which comes from outside, and gives up "
                f"{_in(step.due_ms - standing.now_ms)}."
            )
        case "waiting" if step.attempts == 0:
            yield f"It is to begin {_in(step.due_ms - standing.now_ms)}, as was asked. Until then there is nothing to do."
        case "waiting" if step.retries == 0:
            yield (
                f"Step '{name}' is put off, and goes on {_in(step.due_ms - standing.now_ms)}. The last 'waiting' event has "
                "the reason's code."
            )
        case "waiting":
            yield (
                f"Step '{name}' failed {_times(step.retries)} and is tried again {_in(step.due_ms - standing.now_ms)}. "
                "The last 'waiting' event has the reason's code; the worker's log has all of it."
            )
        case "queued":
            depth = standing.depth(name)
            if depth.at_cap:
                yield (
                    f"Step '{name}' is queued, and tenant '{standing.record.tenant_id}' is at its cap of "
                    f"{depth.in_flight} in flight: it starts when one of those ends, or when Agent Management gives the "
                    "tenant a higher max_in_flight. See: agent-exec queues."
                )
            else:
                yield (
                    f"Step '{name}' is queued; its tenant has {depth.waiting} waiting and {depth.in_flight} in flight. "
                    "If nothing moves, no worker runs: celery -A tasks worker. A lost hint is sent again by any worker "
                    "within a minute."
                )
        case other:
            assert_never(other)


def _stands(step: StepState, now_ms: int) -> str:
    match step.state:
        case "done":
            return ""
        case "queued":
            return f"claimed {_times(step.attempts)} before" if step.attempts else ""
        case "waiting" if step.awaits:
            return f"awaits {step.awaits}, gives up {_in(step.due_ms - now_ms)}"
        case "waiting" if step.attempts == 0:
            return f"begins {_in(step.due_ms - now_ms)}"
        case "waiting":
            return f"retry {step.retries}, due {_in(step.due_ms - now_ms)}"
        case "running":
            return f"attempt {step.attempts}, held by {step.worker}, lease ends {_in(step.lease_ms - now_ms)}"
        case other:
            assert_never(other)


def _report(standing: Standing) -> str:
    record = standing.record
    head = (
        f"Execution '{standing.execution_id}' of agent '{record.agent_id}', tenant '{record.tenant_id}': {record.status}, "
        f"priority {record.priority}, accepted {_in(int(record.fields['created_ms']) - standing.now_ms)}"
    )
    if record.parent is not None:
        above = " → ".join(record.parent.agents)
        head += f"\nAsked for by execution '{record.parent.execution_id}'; the agents above it: {above}"
    steps = [(f"  {name}", step.state, _stands(step, standing.now_ms)) for name, step in standing.steps.items()]
    last = [
        (
            f"  {event.sequence}",
            moment(datetime.fromtimestamp(event.at_ms / 1000, tz=UTC)),
            event.name,
            one_line(event.json),
        )
        for event in standing.last_events
    ]
    said = [f"  {line}" for line in advice(standing)]
    return "\n".join([head, "", "Steps", columns(steps), "", "Last events", columns(last), "", "So", *said])


def _json(standing: Standing) -> str:
    return to_json(
        {
            "execution": standing.record.view(standing.execution_id),
            "steps": standing.steps,
            "last_events": [
                {"sequence": event.sequence, "event": event.name, "at_ms": event.at_ms, "data": json.loads(event.json)}
                for event in standing.last_events
            ],
            "advice": list(advice(standing)),
        }
    ).decode()


def _in(milliseconds: int) -> str:
    """Return a moment against now: `in 3.4 s`, `0.2 s ago`."""
    return f"in {milliseconds / 1000:.1f} s" if milliseconds >= 0 else f"{-milliseconds / 1000:.1f} s ago"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
