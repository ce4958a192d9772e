"""A user interface of the AG-UI protocol, as its specification describes one: events in, a conversation out.

Two independent judges look at each stream: the protocol's own models, and a validator of the rules about their order.
"""

from __future__ import annotations

import json
from typing import Any

from ag_ui.core import Event
from ag_ui_validate.pytest_plugin import validate_agui
from pydantic import TypeAdapter

_EVENT: TypeAdapter[Any] = TypeAdapter(Event)


def judged(events: list[str], *, is_over: bool = True) -> list[dict[str, Any]]:
    """Return the events, decoded, after both judges have seen a stream from its beginning."""
    told = []
    for text in events:
        event = json.loads(text)
        model = _EVENT.validate_json(text)
        known = {field.alias or name for name, field in type(model).model_fields.items()}
        assert set(event) <= known, f"{event['type']} has no {set(event) - known}"
        told.append(event)
    # That a stream ended before its run did is for those to judge who know that the run is over.
    open_ended = {"AGUI003": "off", "AGUI007": "off", "AGUI103": "off", "AGUI508": "off"}
    report = validate_agui(told, severity_overrides={} if is_over else open_ended)
    assert not [one for one in report.diagnostics if one.severity != "info"], report.diagnostics
    return told


class Conversation:
    """The messages that a reader of events shows."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.outcome: str | None = None

    def apply(self, event: dict[str, Any]) -> None:
        """Take one event."""
        match event["type"]:
            case "TEXT_MESSAGE_START":
                self._message(event["messageId"])["content"] = ""
            case "TEXT_MESSAGE_CONTENT":
                self._message(event["messageId"])["content"] += event["delta"]
            case "TOOL_CALL_START":
                calls = self._message(event["parentMessageId"]).setdefault("toolCalls", [])
                calls.append({"id": event["toolCallId"], "name": event["toolCallName"], "arguments": ""})
            case "TOOL_CALL_ARGS":
                self._call(event["toolCallId"])["arguments"] += event["delta"]
            case "TOOL_CALL_RESULT":
                self.messages.append({"id": event["messageId"], "role": "tool", "content": event["content"]})
            case "MESSAGES_SNAPSHOT":
                self.messages = [_shown(message) for message in event["messages"]]
            case "RUN_FINISHED":
                self.outcome = event["outcome"]["type"]
            case "RUN_ERROR":
                self.outcome = event["code"]
            case _:
                pass

    @property
    def texts(self) -> list[str]:
        """What the agent has said, message by message."""
        return [one["content"] for one in self.messages if one["role"] == "assistant" and "content" in one]

    def _message(self, message_id: str) -> dict[str, Any]:
        for message in self.messages:
            if message["id"] == message_id:
                return message
        self.messages.append({"id": message_id, "role": "assistant"})
        return self.messages[-1]

    def _call(self, call_id: str) -> dict[str, Any]:
        (call,) = [call for one in self.messages for call in one.get("toolCalls", []) if call["id"] == call_id]
        return call


def _shown(message: dict[str, Any]) -> dict[str, Any]:
    shown = {name: message[name] for name in ("id", "role", "content") if name in message}
    if calls := message.get("toolCalls"):
        shown["toolCalls"] = [{"id": call["id"], **call["function"]} for call in calls]
    return shown
