"""The tool call step: check what the model asked for, have the tool's source run it, journal what came back.

Owns which call may be sent, and sent again. A fault of the call is a result for the model to read; only a source that does
not answer makes the step fail. Does not know how a tool is run (neighbours/) or an agent asked (sub_agent.py), nor what a
call has to be (tool_fault.py).
"""

from __future__ import annotations

import time
from typing import assert_never

from pydantic import JsonValue

from agent_exec import logs
from agent_exec.contract.event import EventName, ToolCallCompletedData
from agent_exec.contract.tool import (
    MAX_ERROR_CHARS,
    ToolCall,
    ToolCallRecord,
    ToolDefinition,
    ToolError,
    ToolExecution,
    ToolResult,
)
from agent_exec.errors import NeighbourRefused, NeighbourUnavailable
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Event
from tasks import approval
from tasks.journal import JournaledCall
from tasks.leases import LeaseLost
from tasks.next_step import Join
from tasks.step import Done, Step
from tasks.sub_agent import Answered, ask
from tasks.tool_fault import Sound, Unsound, examined
from tasks.tool_result import cut, struck

#: The note of a step whose request may have left us. An attempt that finds it does not send another one.
SENT = "sent"


async def call_tool(step: Step) -> Done:
    """Do the step."""
    turn, index = step.number, int(step.ref.step.split(".")[2])
    call = step.journal.call(turn, index)
    began = time.monotonic()
    config = step.journal.fixed.config
    outcome: Done | Answered | ToolResult | ToolError
    match examined(call, step.journal.fixed.tools):
        case Unsound(arguments, error):
            outcome = error
        case Sound(_, arguments) if (agent := config.sub_agent(call.name)) is not None:
            outcome = await ask(step, agent, arguments)
        case Sound(tool, arguments) if step.claim.note == SENT:
            outcome = _in_doubt(tool)
        case Sound(tool, arguments):
            held_back = approval.held_back(step, call, arguments) if tool.requires_approval else None
            outcome = held_back or await _execute(step, call, tool, arguments)
        case other:
            assert_never(other)
    if isinstance(outcome, Done):
        return outcome
    if not isinstance(outcome, Answered):
        outcome = Answered(outcome, duration_s=time.monotonic() - began)
    record, journaled = _told(step, call, arguments, outcome)
    completed = ToolCallCompletedData(
        tool_call_id=call.id,
        name=call.name,
        result=record.result,
        error=record.error,
        duration_s=record.duration_s,
        child_execution_id=record.child_execution_id,
    )
    return Done(
        result=journaled,
        events=[Event(EventName.TOOL_CALL_COMPLETED, completed.model_dump_json())],
        next=Join(turn),
    )


async def _execute(
    step: Step, call: ToolCall, tool: ToolDefinition, arguments: dict[str, JsonValue]
) -> ToolResult | ToolError:
    """Have the tool run, under one idempotency key for all attempts of this step."""
    execution = ToolExecution(
        tenant_id=step.ref.tenant_id,
        agent_id=step.claim.execution.agent_id,
        execution_id=step.ref.execution_id,
        tool_call_id=call.id,
        arguments=arguments,
    )
    unsent = step.note
    if tool.effect == "effect":
        await _mark_sent(step)
    try:
        return await step.resources.tools.execute(
            tool.name,
            execution,
            idempotency_key=f"{step.ref.execution_id}.{step.ref.step}",
            timeout_s=min(tool.timeout_s, step.resources.settings.tool_timeout_s),
        )
    except NeighbourRefused as error:
        return ToolError(code="tool_refused", message=str(error))
    except NeighbourUnavailable as error:
        if tool.effect == "effect" and not error.unheard:
            return _in_doubt(tool)
        if step.claim.retries >= step.resources.settings.max_retries:
            return ToolError(code="tool_unavailable", message=str(error))
        step.note = unsent
        raise


async def _mark_sent(step: Step) -> None:
    """Write down that the request may have left, before it does: however this attempt ends, the next one knows."""
    verdict = await step.resources.store.insist(ledger.mark(step.claim.hold, note=SENT))
    if verdict != "marked":
        raise LeaseLost
    step.note = SENT


def _in_doubt(tool: ToolDefinition) -> ToolError:
    return ToolError(
        code="in_doubt",
        message=f"The call of '{tool.name}' was interrupted; it may or may not have taken effect and is not repeated.",
    )


def _told(step: Step, call: ToolCall, arguments: JsonValue, answered: Answered) -> tuple[ToolCallRecord, str]:
    """Return the record for everybody, and what is journaled: with more for the model, where the settings say so, and with
    what another agent has used.
    """
    settings = step.resources.settings
    ours = logs.secrets_of(settings)
    result, error = None, None
    match answered.outcome:
        case ToolError(code=code, message=message):
            error = ToolError(code=code, message=logs.redact(message, secrets=ours)[:MAX_ERROR_CHARS])
        case ToolResult(result=said):
            # Our own secrets, which a tool may have echoed, are for nobody.
            result = struck(cut(said, max_chars=settings.max_tool_result_chars), logs.without(ours))
        case other:
            assert_never(other)
    record = ToolCallRecord(
        id=call.id,
        name=call.name,
        arguments=arguments,
        result=struck(result, logs.redact),
        error=error,
        duration_s=round(answered.duration_s, 6),
        child_execution_id=answered.child_execution_id,
    )
    unredacted = None if settings.redact_tool_results or record.result == result else result
    if unredacted is None and answered.below is None:
        return record, record.model_dump_json()
    return record, JournaledCall(**dict(record), unredacted=unredacted, below=answered.below).model_dump_json()
