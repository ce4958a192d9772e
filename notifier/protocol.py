"""What is said on the WebSocket: what the orchestrator may say, how it is answered, and what is on its way to it.

Owns the parsing of messages, and the window of frames whose arrival is not known. Does not know sockets or Redis. The
events' own frames are `agent_exec.events.Page.frame`; a command's answer is `agent_exec.contract.command.CommandResult`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from agent_exec.contract.approval import Approval
from agent_exec.contract.model import EXECUTION_ID_PATTERN, ContractModel, ExecutionId, OpaqueId, TenantId

#: What an IEEE double, hence Lua and JavaScript, counts without a gap; no execution has as many events.
MAX_SEQUENCE = 2**53 - 1
#: A number of at most 15 digits is below `MAX_SEQUENCE`.
_EVENT_ID_PATTERN = rf"{EXECUTION_ID_PATTERN.removesuffix('$')}:[1-9][0-9]{{0,14}}$"


class Ack(ContractModel):
    """`{"ack": event_id}`: every event of its execution, up to that one, need not be sent again."""

    ack: Annotated[str, Field(pattern=_EVENT_ID_PATTERN)]

    @property
    def execution_id(self) -> str:
        """Whose events are acknowledged."""
        return self.ack.partition(":")[0]

    @property
    def sequence(self) -> int:
        """Up to which event, from 1."""
        return int(self.ack.partition(":")[2])


class CancelExecution(ContractModel):
    """Ask for the end of an execution. Who knows the tenant may name it."""

    command: Literal["cancel_execution"]
    execution_id: ExecutionId
    tenant_id: TenantId | None = None


class ResolveApproval(Approval):
    """Approve a tool call that waits for it, or reject it."""

    command: Literal["resolve_approval"]
    execution_id: ExecutionId
    tool_call_id: OpaqueId
    tenant_id: TenantId | None = None


class ReplayFrom(ContractModel):
    """Send the events of an execution again, from `sequence` on."""

    command: Literal["replay_from"]
    execution_id: ExecutionId
    sequence: Annotated[int, Field(ge=1, le=MAX_SEQUENCE)]
    tenant_id: TenantId | None = None


@dataclass(frozen=True, slots=True)
class BadCommand:
    """A command that we have, with fields that we do not understand. It is answered, and nothing is done."""

    command: str
    execution_id: str | None
    complaint: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """Anything else: counted, and otherwise as if it had not been said."""

    reason: Literal["not_text", "not_json", "bad_ack", "unknown_command", "other_shape"]


Command = CancelExecution | ResolveApproval | ReplayFrom
Heard = Ack | Command | BadCommand | Ignored

_ACK = TypeAdapter(Ack)
_COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="command")])
_COMMANDS = ("cancel_execution", "resolve_approval", "replay_from")


def hear(message: str | bytes) -> Heard:
    """Return what a message of the orchestrator says. Nothing it could hold raises."""
    if isinstance(message, bytes):
        return Ignored("not_text")
    try:
        said = from_json(message, allow_inf_nan=False)
    except ValueError:
        return Ignored("not_json")
    match said:
        case {"ack": _}:
            try:
                return _ACK.validate_python(said)
            except ValidationError:
                return Ignored("bad_ack")
        case {"command": str(command)} if command in _COMMANDS:
            try:
                return _COMMAND.validate_python(said)
            except ValidationError as error:
                return BadCommand(command, _execution_id(said), _complaints(error))
        case {"command": _}:
            return Ignored("unknown_command")
        case _:
            return Ignored("other_shape")


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the events of one execution."""

    tenant_id: str
    execution_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Probe:
    """What has been sent when a ping goes out. Its pong says that all of it has reached the other socket."""

    frames: int
    positions: Sequence[Position]


@dataclass(slots=True)
class Window:
    """The frames on their way, at most `size`, and how far each execution has been sent since the last probe."""

    size: int
    on_their_way: int = 0
    _unprobed: int = 0
    _positions: dict[str, Position] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """How many more frames may be sent before another probe is answered."""
        return self.size - self.on_their_way

    def sent(self, position: Position, *, frames: int) -> None:
        """Count `frames` of one execution that were sent, the last of them at `position`."""
        self.on_their_way += frames
        self._unprobed += frames
        self._positions[position.execution_id] = position

    def probe(self) -> Probe:
        """Return what a ping that goes out now will be the proof of."""
        probe = Probe(self._unprobed, list(self._positions.values()))
        self._unprobed = 0
        self._positions.clear()
        return probe

    def arrived(self, probe: Probe) -> None:
        """Make room: the probe was answered."""
        self.on_their_way -= probe.frames


def _execution_id(said: dict[str, Any]) -> str | None:
    try:
        return TypeAdapter(ExecutionId).validate_python(said.get("execution_id"), strict=True)
    except ValidationError:
        return None


def _complaints(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors()[:5])
