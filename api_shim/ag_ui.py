"""AG-UI: the events of an execution as a user interface of that protocol takes them. Pure.

Owns what each of our events comes to there: none, one or several of theirs. That depends on the events before it, so a
`Run` is told all of them from the first on, and a reader who resumes is shown those behind its place. Does not know HTTP.

Source: AG-UI 1.0, docs.ag-ui.com, "Events". A run is an execution, a thread the conversation it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from agent_exec.contract.event import EventName
from agent_exec.contract.message import HistoryMessage, Message
from agent_exec.errors import Cancelled
from agent_exec.events import LoggedEvent, event_id

PROTOCOL_VERSION = "1.0"
#: Before the names of what the protocol has no event for.
NAMESPACE = "agent_execution"


class Place(NamedTuple):
    """A place in a run, written `17` or `17.2`: behind all of event 17, or also the first two parts of the one after it."""

    sequence: int
    parts: int

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.sequence}.{self.parts}" if self.parts else f"{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Return the place that digits, and perhaps a dot and digits, write."""
        sequence, _, parts = text.partition(".")
        return cls(int(sequence), int(parts or 0))


@dataclass(frozen=True, slots=True)
class Told:
    """One event of theirs as JSON text, and the place behind it."""

    place: Place
    json: str


class Run:
    """One run, so far."""

    def __init__(self, message: Message) -> None:
        """Take what was asked for: it names the thread, and begins the conversation."""
        self._execution_id = message.execution_id
        self._ids = {
            "threadId": message.metadata.conversation_id or message.execution_id,
            "runId": message.execution_id,
        }
        self._messages = [self._earlier(number, one) for number, one in enumerate(message.payload.context.history)]
        self._messages.append({"id": f"{message.execution_id}:query", "role": "user", "content": message.payload.query})
        self._step: str | None = None
        self._answer: str | None = None  # the id of the message that this turn's text and calls belong to
        self._text: list[str] | None = None  # what was said of it, while it is open

    def tell(self, event: LoggedEvent) -> list[Told]:
        """Return what the next event of the execution comes to."""
        parts = [json.dumps({**part, "timestamp": event.at_ms}) for part in self._parts(event)]
        places = [Place(event.sequence - 1, number) for number in range(1, len(parts))]
        return [Told(*one) for one in zip([*places, Place(event.sequence, 0)], parts, strict=False)]

    def _parts(self, event: LoggedEvent) -> Iterator[dict[str, Any]]:
        said = json.loads(event.json)
        match event.name:
            case EventName.STARTED:
                yield {"type": "RUN_STARTED", **self._ids, "protocolVersion": PROTOCOL_VERSION}
            case EventName.PROGRESS:
                yield from self._progress(event, said)
            case EventName.TOKEN:
                yield from self._token(event, said)
            case EventName.STEP_RESTARTED:
                yield from self._restarted(said)
            case EventName.TOOL_CALL_REQUESTED:
                yield from self._requested(event, said)
            case EventName.TOOL_CALL_COMPLETED:
                yield self._result(event, said)
            case EventName.COMPLETED | EventName.FAILED:
                yield from self._close_text()
                yield from self._enter(None)
                yield self._end(said)
            case other:  # an approval that is asked for; and whatever a newer release has to say
                yield _custom(other, said)

    def _progress(self, event: LoggedEvent, said: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if said["stage"] in ("waiting", "flagged"):  # no step begins
            yield _custom("progress", said)
            return
        if said["stage"] == "thinking":
            yield from self._close_text()
            self._answer = self._id(event)
        yield from self._enter(said["step"])

    def _token(self, event: LoggedEvent, said: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._answer = self._answer or self._id(event)
        if said["token"]:
            if self._text is None:
                self._text = []
                yield {"type": "TEXT_MESSAGE_START", "messageId": self._answer, "role": "assistant"}
            self._text.append(said["token"])
            yield {"type": "TEXT_MESSAGE_CONTENT", "messageId": self._answer, "delta": said["token"]}
        if said["is_final"]:
            yield from self._close_text()

    def _restarted(self, said: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What was said of this answer is void: the conversation as it stands without it replaces the reader's."""
        void = self._answer if self._text is not None else None
        if void is not None:
            yield {"type": "TEXT_MESSAGE_END", "messageId": void}
            yield {"type": "MESSAGES_SNAPSHOT", "messages": self._messages}
        self._answer = self._text = None
        yield _custom("step_restarted", {**said, "void_message_id": void})

    def _requested(self, event: LoggedEvent, said: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close_text()
        self._answer = self._answer or self._id(event)
        call_id, arguments = said["tool_call_id"], json.dumps(said["arguments"])
        yield {
            "type": "TOOL_CALL_START",
            "toolCallId": call_id,
            "toolCallName": said["name"],
            "parentMessageId": self._answer,
        }
        yield {"type": "TOOL_CALL_ARGS", "toolCallId": call_id, "delta": arguments}
        yield {"type": "TOOL_CALL_END", "toolCallId": call_id}
        if self._messages[-1]["id"] != self._answer:
            self._messages.append({"id": self._answer, "role": "assistant"})
        self._messages[-1].setdefault("toolCalls", []).append(_call(call_id, said["name"], arguments))

    def _result(self, event: LoggedEvent, said: dict[str, Any]) -> dict[str, Any]:
        error = said.get("error")
        content = json.dumps(said["result"] if error is None else {"error": error})
        answered = {"toolCallId": said["tool_call_id"], "content": content, "role": "tool"}
        failed = {} if error is None else {"error": error["message"]}
        self._messages.append({"id": self._id(event), **answered, **failed})
        return {"type": "TOOL_CALL_RESULT", "messageId": self._id(event), **answered}

    def _end(self, said: dict[str, Any]) -> dict[str, Any]:
        response, error = said["response"], said.get("error")
        usage = {
            "inputTokens": response["usage"]["prompt_tokens"],
            "outputTokens": response["usage"]["completion_tokens"],
            "totalTokens": response["usage"]["total_tokens"],
            **{name: response[name] for name in ("provider", "model") if response[name] is not None},
        }
        if error is not None and error["code"] != Cancelled.code:
            return {"type": "RUN_ERROR", "message": error["message"], "code": error["code"], "usage": [usage]}
        outcome = "success" if error is None else "cancelled"
        return {
            "type": "RUN_FINISHED",
            **self._ids,
            "outcome": {"type": outcome},
            "result": response,
            "usage": [usage],
        }

    def _enter(self, step: str | None) -> Iterator[dict[str, Any]]:
        if step == self._step:
            return
        if self._step is not None:
            yield {"type": "STEP_FINISHED", "stepName": self._step}
        self._step = step
        if step is not None:
            yield {"type": "STEP_STARTED", "stepName": step}

    def _close_text(self) -> Iterator[dict[str, Any]]:
        if self._text is not None:
            yield {"type": "TEXT_MESSAGE_END", "messageId": self._answer}
            self._messages.append({"id": self._answer, "role": "assistant", "content": "".join(self._text)})
            self._text = None

    def _earlier(self, number: int, message: HistoryMessage) -> dict[str, Any]:
        calls = [_call(call.id, call.name, call.arguments) for call in message.tool_calls]
        return {
            "id": f"{self._execution_id}:history.{number}",
            "role": message.role,
            "content": message.content,
            **({"toolCalls": calls} if calls else {}),
            **({"toolCallId": message.tool_call_id} if message.tool_call_id is not None else {}),
        }

    def _id(self, event: LoggedEvent) -> str:
        return event_id(self._execution_id, event.sequence)


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _custom(name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "CUSTOM", "name": f"{NAMESPACE}.{name}", "value": value}
