"""What is said on the WebSocket, and our end of it without the socket: what is on its way, what has arrived, what was heard.

Owns the parsing of messages, the window of frames whose arrival is not known, and the acknowledgements that are not noted
yet. Does not know sockets or Redis. The events' own frames are `agent_exec.events.Page.frame`; a command's answer is
`agent_exec.contract.command.CommandResult`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, assert_never

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from agent_exec.contract.approval import Approval
from agent_exec.contract.model import EXECUTION_ID_PATTERN, ContractModel, ExecutionId, OpaqueId, TenantId

#: What an IEEE double, hence Lua and JavaScript, counts without a gap; no execution has as many events.
MAX_SEQUENCE = 2**53 - 1
#: Acks that wait to be noted; an orchestrator that floods us finds the rest ignored, and may say it again.
MAX_WAITING_ACKS = 10_000
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
class Unsettled:
    """How far executions have come, that is not noted yet: by the orchestrator's word, and by its socket's."""

    acks: Sequence[Ack]
    received: Sequence[Position]


class Conversation:
    """Our end of one connection. Frames (`sent`) and pings (`ping`) go out, pongs (`pong`), messages (`heard`) come in."""

    def __init__(self, *, window: int, ignore: Callable[[str], None]) -> None:
        """Have at most `window` frames on their way; `ignore` is told the reason of each message that is ignored."""
        self._window = window
        self._ignore = ignore
        #: Frames, and how far executions have come by them, since the last ping; and those before it, if it is not answered.
        self._after_ping = 0
        self._sent_after: dict[str, Position] = {}
        self._before_ping = 0
        self._sent_before: dict[str, Position] = {}
        #: What is not noted yet.
        self._acks: dict[str, Ack] = {}
        self._received: dict[str, Position] = {}

    @property
    def room(self) -> int:
        """How many more frames may be sent before another ping is answered."""
        return self._window - self._before_ping - self._after_ping

    @property
    def is_half_empty(self) -> bool:
        """Whether more than half of the window is room."""
        return self.room > self._window // 2

    def sent(self, position: Position, *, frames: int) -> None:
        """Count `frames` of one execution that were sent, the last of them at `position`."""
        self._after_ping += frames
        self._sent_after[position.execution_id] = position

    def ping(self) -> None:
        """Note that a ping goes out, the only one: its pong proves that all that was sent before it has arrived."""
        self._before_ping, self._sent_before = self._after_ping, self._sent_after
        self._after_ping, self._sent_after = 0, {}

    def pong(self) -> None:
        """Take the answer to the ping: there is room again, and what was sent before it has reached the other socket."""
        self._received |= self._sent_before
        self._before_ping, self._sent_before = 0, {}

    def sends_again(self, execution_id: str) -> None:
        """Let nothing that was sent or said before prove what is sent again of an execution."""
        for positions in (self._sent_before, self._sent_after, self._received):
            positions.pop(execution_id, None)
        self._acks.pop(execution_id, None)

    def heard(self, message: str | bytes) -> Command | BadCommand | None:
        """Take a message; return what it asks for, if it asks for anything."""
        match hear(message):
            case Ack() as ack:
                self._note(ack)
            case Ignored(reason):
                self._ignore(reason)
            case CancelExecution() | ResolveApproval() | ReplayFrom() | BadCommand() as command:
                return command
            case other:
                assert_never(other)
        return None

    @property
    def is_settled(self) -> bool:
        """Whether nothing waits for `unsettled`."""
        return not (self._acks or self._received)

    def unsettled(self) -> Unsettled:
        """Return what is to be noted now, each thing once."""
        taken = Unsettled(list(self._acks.values()), list(self._received.values()))
        self._acks.clear()
        self._received.clear()
        return taken

    def _note(self, ack: Ack) -> None:
        earlier = self._acks.get(ack.execution_id)
        if earlier is None and len(self._acks) >= MAX_WAITING_ACKS:
            self._ignore("too_many_acks")
        elif earlier is None or earlier.sequence < ack.sequence:
            self._acks[ack.execution_id] = ack


def _execution_id(said: dict[str, Any]) -> str | None:
    try:
        return TypeAdapter(ExecutionId).validate_python(said.get("execution_id"), strict=True)
    except ValidationError:
        return None


def _complaints(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors()[:5])
