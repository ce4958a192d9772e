"""What may be handed to Celery: a wire message is opened and checked before any of Celery's code sees it. Pure.

Owns the rules of a family's messages: Celery's protocol 2, JSON, run now, no larger than their kind may be. A message that
breaks one is a dead letter with the rule as its reason; were it delivered, Celery would drop it (bad body), hold it in
memory (ETA), decode what it should not (pickle), or stop (half of the headers). Does not know what the tasks are, nor what
their arguments mean.

Source: Celery, "Message Protocol", version 2; kombu/transport/virtual/base.py for the envelope.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kombu.utils.json import loads

from agent_exec.broker.fair_queue import MAX_HINT_BYTES, MAX_PLAIN_BYTES, Delivery
from agent_exec.routing import EXECUTE_TASK

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Malformed:
    """Why a message cannot be delivered."""

    reason: str


def open_envelope(
    delivery: Delivery,
    *,
    max_hint_bytes: int = MAX_HINT_BYTES,
    max_plain_bytes: int = MAX_PLAIN_BYTES,
    intake_tasks: Collection[str] = (EXECUTE_TASK,),
    now: datetime | None = None,
) -> dict[str, Any] | Malformed:
    """Return the kombu message of a delivery, its delivery tag and redelivery count filled in, or what is wrong.

    Nothing above `max_plain_bytes` is decoded; above `max_hint_bytes`, only the `intake_tasks` are messages.
    """
    if len(delivery.message) > max_plain_bytes:
        return Malformed(_too_large(delivery, at_most=max_plain_bytes))
    try:
        message = _decode(delivery.message)
    except ValueError as error:
        return Malformed(f"the message is not JSON: {error}")
    if not isinstance(message, dict):
        return Malformed(f"the message is {_kind(message)} and not an object")
    wrong = (
        _wrong_properties(message.get("properties"))
        or _wrong_headers(message.get("headers"), now=now or datetime.now(UTC))
        or _wrong_body(message)
    )
    if wrong is not None:
        return Malformed(wrong)
    if len(delivery.message) > max_hint_bytes and message["headers"]["task"] not in intake_tasks:
        return Malformed(_too_large(delivery, at_most=max_hint_bytes))
    again = delivery.earlier_deliveries
    properties = message["properties"]
    properties["delivery_tag"] = delivery.delivery
    properties["delivery_info"] = {**properties["delivery_info"], "exchange": "", "routing_key": delivery.queue}
    if again:
        message["headers"]["redelivered"] = True
        properties["delivery_info"].update(redelivered=True, redelivery_count=again)
    return message


def _too_large(delivery: Delivery, *, at_most: int) -> str:
    return f"has {len(delivery.message)} bytes; at most {at_most} are taken"


def _wrong_properties(properties: Any) -> str | None:
    if not isinstance(properties, dict):
        return f"its properties are {_kind(properties)} and not an object"
    if not isinstance(properties.setdefault("delivery_info", {}), dict):
        return "its delivery_info is not an object"
    for name in ("correlation_id", "reply_to"):
        if not isinstance(properties.get(name), str | None):
            return f"its {name} is {_kind(properties[name])} and not a string"
    if properties.get("body_encoding") not in ("base64", "utf-8", None):
        return "its body_encoding is neither base64 nor utf-8"
    return None


def _wrong_headers(headers: Any, *, now: datetime) -> str | None:
    if not isinstance(headers, dict):
        return f"its headers are {_kind(headers)} and not an object"
    for name in ("task", "id"):
        if not isinstance(headers.get(name), str) or not headers[name]:
            return f"its header '{name}' is missing or no string: it is not of Celery's protocol 2"
    for name in ("root_id", "parent_id", "group", "shadow", "origin", "argsrepr", "kwargsrepr", "lang"):
        if not isinstance(headers.get(name), str | None):
            return f"its header '{name}' is {_kind(headers[name])} and not a string"
    for name in ("retries", "replaced_task_nesting", "group_index"):
        number = headers.get(name)
        if number is not None and (type(number) is not int or number < 0):
            return f"its header '{name}' is not a number from 0 on"
    if headers.get("eta") is not None:
        return "it has an eta or a countdown: a family's messages run when their turn comes"
    return _wrong_expiry(headers.get("expires"), now=now) or _wrong_time_limit(headers) or _wrong_stamps(headers)


def _wrong_expiry(expires: Any, *, now: datetime) -> str | None:
    if expires is None:
        return None
    try:
        at = expires if isinstance(expires, datetime) else datetime.fromisoformat(expires)
    except (TypeError, ValueError):
        return "its header 'expires' is no ISO date"
    if (at if at.tzinfo else at.replace(tzinfo=UTC)) <= now:
        return "it expired before its turn came"
    return None


def _wrong_time_limit(headers: Mapping[str, Any]) -> str | None:
    limits = headers.get("timelimit")
    if limits is None:
        return None
    if isinstance(limits, list) and len(limits) == 2:
        numbers = [limit for limit in limits if limit is not None]
        if all(type(limit) in (int, float) and limit >= 0 for limit in numbers):
            return None
    return "its header 'timelimit' is not a pair of seconds"


def _wrong_stamps(headers: Mapping[str, Any]) -> str | None:
    if not isinstance(headers.get("stamped_headers"), list | None):
        return "its header 'stamped_headers' is not a list"
    if not isinstance(headers.get("stamps"), dict | None):
        return "its header 'stamps' is not an object"
    return None


def _wrong_body(message: Mapping[str, Any]) -> str | None:
    if message.get("content-type") != JSON:
        return f"its content type is {str(message.get('content-type'))[:64]!r} and not {JSON!r}"
    if str(message.get("content-encoding")).lower() != "utf-8":
        return "its content encoding is not utf-8"
    if message["headers"].get("compression") is not None:
        return "it is compressed"
    body = message.get("body")
    if not isinstance(body, str):
        return f"its body is {_kind(body)} and not a string"
    try:
        encoded = message["properties"].get("body_encoding") == "base64"
        content = _decode(base64.b64decode(body, validate=True) if encoded else body)
    except ValueError as error:  # binascii.Error is one
        return f"its body is not JSON in base64: {error}"
    match content:
        case [list(), dict(), dict() as options]:
            return _wrong_options(options)
        case _:
            return "its body is not a list of arguments, keyword arguments and options"


def _wrong_options(options: Mapping[str, Any]) -> str | None:
    for name in ("callbacks", "errbacks", "chain"):
        signatures = options.get(name)
        if signatures is not None and not (isinstance(signatures, list) and all(map(_is_signature, signatures))):
            return f"its option '{name}' is not a list of signatures"
    if options.get("chord") is not None and not _is_signature(options["chord"]):
        return "its option 'chord' is not a signature"
    return None


def _is_signature(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("task"), str)


def _decode(text: bytes | str) -> Any:
    """Decode JSON as kombu does, which runs decoders that the text names, which raise anything.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return loads(text)  # type: ignore[no-untyped-call]  # kombu says that it is typed, and is not
    except Exception as error:
        raise ValueError(type(error).__name__) from None


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
