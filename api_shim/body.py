"""A request's body, read with suspicion: its type, its size, its pace, and JSON that means one thing only.

Owns what is refused before the contract is asked. Does not know the contract.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from starlette.requests import ClientDisconnect, Request

from agent_exec.contract.model import MAX_BODY_BYTES, MAX_JSON_DEPTH
from agent_exec.errors import InvalidMessage
from api_shim.problem import Refused, printable

JSON = "application/json"
#: The deepest JSON that the contract takes, and the levels of its own around it.
MAX_BODY_DEPTH = MAX_JSON_DEPTH + 8
_TOO_DEEP = f"The body is nested deeper than {MAX_BODY_DEPTH} levels."


async def read_json(request: Request, *, timeout_s: float) -> bytes:
    """Return the body: bytes that are UTF-8 JSON without a doubled key or a number that is none.

    Raises:
        Refused: not JSON by its type or its text, too large, or too slow.
        InvalidMessage: JSON that two readers could understand differently.
    """
    check_type(request, JSON)
    try:
        async with asyncio.timeout(timeout_s):
            body = await _read(request)
    except TimeoutError:
        late = f"The body did not come within {timeout_s:g} s."
        raise Refused("body_timeout", late, headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise Refused("invalid_json", "The connection ended within the body.") from None
    check_json(body)
    return body


def check_json(body: bytes) -> None:
    """Check that `body` is JSON that means one thing only; the errors are those of `read_json`."""
    try:
        value = json.loads(
            body.decode(), object_pairs_hook=_once_each, parse_constant=_no_constant, parse_float=_finite
        )
        # Nothing is nested deeper than it has brackets, so few bodies are looked through.
        if body.count(b"[") + body.count(b"{") > MAX_BODY_DEPTH:
            _check_depth(value)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f"character {error.pos}" if isinstance(error, json.JSONDecodeError) else f"byte {error.start}"
        raise Refused("invalid_json", f"The body is not UTF-8 JSON at {where}.") from None
    except RecursionError:
        raise InvalidMessage(_TOO_DEEP) from None
    except ValueError:  # an integer longer than Python reads
        raise InvalidMessage("The body holds a number that is too long.") from None


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_BODY_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    if level:
        raise InvalidMessage(_TOO_DEEP)


def check_type(request: Request, *taken: str) -> str:
    """Return the media type of a body, which has to be one of those.

    Raises:
        Refused: it is not, or not in UTF-8, or compressed.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused("unsupported_media_type", "Compressed bodies are not taken: send the JSON as it is.")
    media_type, *parameters = request.headers.get("content-type", "").lower().split(";")
    charsets = [
        value.strip().strip('"')
        for name, _, value in (parameter.partition("=") for parameter in parameters)
        if name.strip() == "charset"
    ]
    if media_type.strip() not in taken or any(charset not in ("utf-8", "utf8") for charset in charsets):
        raise Refused("unsupported_media_type", f"Send Content-Type: {' or '.join(taken)}, in UTF-8.")
    return media_type.strip()


async def _read(request: Request) -> bytes:
    """Read no further than the limit. What a client still sends after our answer, the server throws away."""
    too_large = Refused("body_too_large", f"A body has at most {MAX_BODY_BYTES} bytes.")
    if int(request.headers.get("content-length", "0")) > MAX_BODY_BYTES:  # the server has checked that it is a number
        raise too_large
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise too_large
        pieces.append(piece)
    return b"".join(pieces)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise InvalidMessage(f"The body gives '{printable(name)}' twice in one object.")
        members[name] = value
    return members


def _no_constant(name: str) -> None:
    raise InvalidMessage(f"The body holds {name}, which is no JSON.")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InvalidMessage("The body holds a number that is too large.")
    return number
