"""What is wrong with a tool call as the model made it, if anything. Pure.

Owns which call may leave us at all: of a tool that the execution was given, with arguments of its schema. Does not know how
a tool is run, nor who approves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from agent_exec.contract.tool import ToolCall, ToolDefinition, ToolError
from tasks.structured import faults

#: What the model can mend by calling otherwise.
MENDABLE = frozenset({"invalid_arguments", "unknown_tool"})


@dataclass(frozen=True, slots=True)
class Sound:
    """A call that may be made."""

    tool: ToolDefinition
    arguments: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Unsound:
    """A call that reaches no tool, and why. The arguments are decoded where they can be."""

    arguments: JsonValue
    error: ToolError


def examined(call: ToolCall, tools: Sequence[ToolDefinition]) -> Sound | Unsound:
    """Return what a call comes to, for an execution that was given these tools."""
    try:
        arguments = call.decoded_arguments()
    except ValueError as error:
        return _invalid(call.arguments, f"The arguments are no JSON: {error}.")
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return Unsound(arguments, ToolError(code="unknown_tool", message=f"There is no tool '{call.name[:64]}' here."))
    if not isinstance(arguments, dict):
        return _invalid(arguments, "The arguments must be a JSON object.")
    try:
        wrong = faults(arguments, tool.parameters)
    except ValueError as error:
        message = f"The tool's own schema does not do: {error}"[:500]
        return Unsound(arguments, ToolError(code="invalid_schema", message=message))
    return _invalid(arguments, "; ".join(wrong)) if wrong else Sound(tool, arguments)


def _invalid(arguments: JsonValue, message: str) -> Unsound:
    return Unsound(arguments, ToolError(code="invalid_arguments", message=message))
