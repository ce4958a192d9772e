"""The frame that answers a command on a WebSocket: the orchestrator's and a caller's alike.

Owns its fields, and what it says of a cancel. Does not know who may ask for what.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, computed_field
from pydantic_core import to_json

from agent_exec.contract.model import ContractModel, ExecutionId, OpaqueId

#: What a cancel comes to: it is durable, or the execution had ended before, so.
CancelStatus = Literal["cancel_requested", "completed", "failed"]


class CommandResult(ContractModel):
    """The frame `command_result`. What does not apply is left out."""

    event: Literal["command_result"] = "command_result"
    service: Literal["agent-execution"] = "agent-execution"
    command: Annotated[str | None, Field(description="null: it was none")]
    execution_id: ExecutionId | None
    status: Annotated[CancelStatus | None, Field(description="what a cancel came to")] = None
    code: Annotated[str | None, Field(description="why it was not done")] = None
    message: str | None = None
    tool_call_id: OpaqueId | None = None

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated properties
    @property
    def ok(self) -> bool:
        """Whether it was done."""
        return self.code is None

    @classmethod
    def of_cancel(cls, execution_id: str, status: CancelStatus) -> CommandResult:
        """Return the answer to a cancel."""
        if status == "cancel_requested":
            return cls(command="cancel_execution", execution_id=execution_id, status=status)
        return cls(
            command="cancel_execution",
            execution_id=execution_id,
            status=status,
            code="already_over",
            message=f"It had ended before, as {status}.",
        )

    def frame(self) -> str:
        """Return it as JSON text."""
        always = {"command", "execution_id"}
        return to_json(
            {name: told for name, told in self if told is not None or name in always} | {"ok": self.ok}
        ).decode()
