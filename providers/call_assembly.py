"""The tool calls of one answer: pieces, in whatever order and labelling → calls.

Owns which piece belongs to which call, ids for calls that have none of their own, and the bounds. Does not know what a
tool is, or whether arguments fit it. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from pydantic import TypeAdapter, ValidationError

from agent_exec.contract.model import OpaqueId
from agent_exec.contract.tool import ToolCall
from providers.chunk import CallPart, FunctionPart

#: More calls than this in one answer are a model gone astray; OpenAI allows as many tools.
MAX_CALLS = 128
#: What the contract's ToolCall takes.
MAX_ARGUMENTS_CHARS = 256_000
MAX_NAME_CHARS = 256

_opaque_id: TypeAdapter[str] = TypeAdapter(OpaqueId)
_NOTHING = FunctionPart()


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    arguments_chars: int = 0
    #: The server repeats the name with every piece; it then marks no beginning.
    echoes_name: bool = False

    def is_whole(self) -> bool:
        try:
            msgspec.json.decode("".join(self.arguments))
        except (ValueError, RecursionError):
            return False
        return True


class CallAssembly:
    """Collects the calls of one answer."""

    def __init__(self, *, new_id: Callable[[], str]) -> None:
        """Take what makes an id for a call whose server gives none, or one that is no use."""
        self._new_id = new_id
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    def add(self, part: CallPart) -> bool:
        """Take one piece; False if it does not fit the bounds any more, and nothing after it will."""
        function = part.function or _NOTHING
        name, arguments = function.name or "", function.arguments or ""
        call = self._meant(part, name, arguments)
        if call is None:
            if len(self._calls) == MAX_CALLS:
                return False
            call = _Call()
            self._calls.append(call)
            if part.index is not None:
                self._by_index[part.index] = call
        call.id = call.id or part.id or ""
        call.name = call.name or name[:MAX_NAME_CHARS]
        fitting = arguments[: MAX_ARGUMENTS_CHARS - call.arguments_chars]
        if fitting:
            call.arguments.append(fitting)
            call.arguments_chars += len(fitting)
        return len(fitting) == len(arguments)

    def calls(self) -> tuple[ToolCall, ...]:
        """Return the calls in the order of their beginning, each with an id of its own."""
        seen: set[str] = set()
        calls = []
        for call in self._calls:
            arguments = "".join(call.arguments)
            if not call.name and not arguments:
                continue
            identity = call.id if _is_opaque_id(call.id) and call.id not in seen else self._new_id()
            seen.add(identity)
            calls.append(ToolCall(id=identity, name=whole_text(call.name), arguments=whole_text(arguments) or "{}"))
        return tuple(calls)

    def _meant(self, part: CallPart, name: str, arguments: str) -> _Call | None:
        """Return the call that the piece goes on with, or None if it begins one."""
        if part.index is not None:
            call = self._by_index.get(part.index)
        else:
            same_id = (call for call in reversed(self._calls) if part.id and call.id == part.id)
            call = next(same_id, self._calls[-1] if self._calls else None)
        if call is None:
            return None
        if name and call.name and name != call.name:
            return None
        if part.id and call.id and part.id != call.id and (name or part.index is None):
            # Ollama and its family put every parallel call at index 0. Without a name it is the same call under an id
            # that the server makes anew for each piece.
            return None
        if name and call.name and not call.echoes_name and arguments.startswith("{"):
            # The same tool twice, told apart by nothing: whole arguments cannot go on.
            if call.is_whole():
                return None
            call.echoes_name = True
        return call


def whole_text(text: str) -> str:
    """Return `text` with half surrogate pairs joined, and those that stay halves replaced: such text has no bytes."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _is_opaque_id(text: str) -> bool:
    try:
        _opaque_id.validate_python(text)
    except ValidationError:
        return False
    return True
