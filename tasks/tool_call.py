"""The tool call step: check what the model asked for, have the registry run it, journal what came back.

Owns which call may be sent, and sent again. A fault of the call is a result for the model to read; only a registry that does
not answer makes the step fail. Does not know how the registry runs a tool.
"""

from __future__ import annotations

import time
from typing import Any

from agent_exec.contract.event import EventName, ToolCallCompletedData
from agent_exec.contract.tool import ToolCall, ToolCallRecord, ToolDefinition, ToolError, ToolExecution, ToolResult
from agent_exec.errors import NeighbourRefused, NeighbourUnavailable
from agent_exec.ledger.ledger import Event
from tasks.next_step import Join
from tasks.step import Done, Step
from tasks.structured import faults


async def call_tool(step: Step) -> Done:
    """Do the step."""
    turn, index = step.number, int(step.ref.step.split(".")[2])
    call = step.journal.call(turn, index)
    tool = next((tool for tool in step.journal.fixed.tools if tool.name == call.name), None)
    began = time.monotonic()
    outcome: ToolResult | ToolError
    arguments, fault = _checked(call, tool)
    if fault is None:
        assert tool is not None, "a call of an unknown tool is a fault"
        outcome = await _execute(step, call, tool, arguments)
    else:
        outcome = fault
    record = ToolCallRecord(
        id=call.id,
        name=call.name,
        arguments=arguments,
        result=outcome.result if isinstance(outcome, ToolResult) else None,
        error=outcome if isinstance(outcome, ToolError) else None,
        duration_s=round(time.monotonic() - began, 6),
    )
    completed = ToolCallCompletedData(
        tool_call_id=call.id,
        name=call.name,
        result=record.result,
        error=record.error,
        duration_s=record.duration_s,
    )
    return Done(
        result=record.model_dump_json(),
        events=[Event(EventName.TOOL_CALL_COMPLETED, completed.model_dump_json())],
        next=Join(turn),
    )


def _checked(call: ToolCall, tool: ToolDefinition | None) -> tuple[Any, ToolError | None]:
    """Return the arguments, decoded where they can be, and what is wrong with the call."""
    try:
        arguments = call.decoded_arguments()
    except ValueError as error:
        return call.arguments, ToolError(code="invalid_arguments", message=f"The arguments are no JSON: {error}.")
    if tool is None:
        return arguments, ToolError(code="unknown_tool", message=f"There is no tool '{call.name[:64]}' here.")
    if not isinstance(arguments, dict):
        return arguments, ToolError(code="invalid_arguments", message="The arguments must be a JSON object.")
    try:
        wrong = faults(arguments, tool.parameters)
    except ValueError as error:
        return arguments, ToolError(code="invalid_schema", message=f"The tool's own schema does not do: {error}"[:500])
    if wrong:
        return arguments, ToolError(code="invalid_arguments", message="; ".join(wrong))
    if tool.requires_approval:  # nobody can give it yet, so it is as if it had been refused
        return arguments, ToolError(
            code="approval_unavailable", message=f"The tool '{tool.name}' needs an approval that nobody can give here."
        )
    return arguments, None


async def _execute(step: Step, call: ToolCall, tool: ToolDefinition, arguments: Any) -> ToolResult | ToolError:
    """Ask the registry, under one idempotency key for all attempts of this step."""
    if tool.effect == "effect" and step.claim.hold.fence > 1:  # claimed before, by a worker that may have asked
        return _in_doubt(tool)
    execution = ToolExecution(
        tenant_id=step.ref.tenant_id,
        agent_id=step.claim.execution.agent_id,
        execution_id=step.ref.execution_id,
        tool_call_id=call.id,
        arguments=arguments,
    )
    try:
        return await step.resources.registry.execute(
            tool.name,
            execution,
            idempotency_key=f"{step.ref.execution_id}.{step.ref.step}",
            timeout_s=min(tool.timeout_s, step.resources.settings.tool_timeout_s),
        )
    except NeighbourRefused as error:
        return ToolError(code="tool_refused", message=str(error))
    except NeighbourUnavailable as error:
        if tool.effect == "effect":
            return _in_doubt(tool)
        if step.claim.retries >= step.resources.settings.max_retries:
            return ToolError(code="tool_unavailable", message=str(error))
        raise


def _in_doubt(tool: ToolDefinition) -> ToolError:
    return ToolError(
        code="in_doubt",
        message=f"The call of '{tool.name}' was interrupted; it may or may not have taken effect and is not repeated.",
    )
