"""The peers' and our common neighbours: an OpenAI-compatible stream, a tool registry, and an orchestrator that hears all and
says nothing, as light as ASGI allows.

Who offers tools is asked for one in the first turn; any other turn is `TOKENS` tokens, `--gap` seconds apart. `/streams`
says how many streams are open; after `/hold/N` none begins before N are. `python -m benchmarks.wire --port N --gap 0.05`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

TOKENS = 100
#: A model of this name answers without a gap.
QUICK = b'"quick"'
TOOL = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "effect": "read",
}

#: What OpenAI tells of its limits with each answer. A server that tells none is asked sixteen times in its first second, and
#: whoever comes before its turn is put off: that is no part of what an execution costs.
HEAD = [
    (b"content-type", b"text/event-stream"),
    (b"x-ratelimit-limit-requests", b"30000"),
    (b"x-ratelimit-remaining-requests", b"29999"),
    (b"x-ratelimit-reset-requests", b"2ms"),
    (b"x-ratelimit-limit-tokens", b"150000000"),
    (b"x-ratelimit-remaining-tokens", b"149999000"),
    (b"x-ratelimit-reset-tokens", b"0s"),
]

Send = Callable[[dict[str, Any]], Awaitable[None]]


def _chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return _event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "script", "choices": choices})


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _call(arguments: str, **first: Any) -> dict[str, Any]:
    name = {"name": "get_weather"} if first else {}
    return {"tool_calls": [{"index": 0, **first, "function": {"arguments": arguments, **name}}]}


_USAGE = {"prompt_tokens": 20, "completion_tokens": TOKENS, "total_tokens": 20 + TOKENS}
_END = [
    _event(
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "script", "choices": [], "usage": _USAGE}
    ),
    b"data: [DONE]\n\n",
]
TOOL_TURN = [
    _chunk({"role": "assistant", "content": None}),
    _chunk(_call("", id="call_1", type="function")),
    *[_chunk(_call(part)) for part in ('{"ci', 'ty": "', "Lima", '"}')],
    _chunk({}, "tool_calls"),
    *_END,
]
TEXT_TURN = [
    _chunk({"role": "assistant", "content": ""}),
    *[_chunk({"content": f" word{number}"}) for number in range(TOKENS)],
    _chunk({}, "stop"),
    *_END,
]


class Wire:
    """The application; `gap_s` is the pause before each token."""

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._open = 0
        self._hold = 0
        self._enough = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] == "websocket":
            await _listen(receive, send)
            return
        body = await _body(receive)
        if scope["path"].endswith("/chat/completions"):
            turn = TOOL_TURN if b'"tools"' in body and b'"tool_call_id"' not in body else TEXT_TURN
            with self._counted():
                await self._enough.wait()
                await self._stream(turn, send, gap_s=0 if QUICK in body else self._gap_s)
        elif scope["path"].endswith("/execute"):
            await _json(send, {"result": "sunny"})
        elif scope["path"].endswith("/tools"):
            await _json(send, {"tools": [TOOL]})
        elif scope["path"].startswith("/hold/"):
            self._hold = int(scope["path"].removeprefix("/hold/"))
            self._enough.clear()
            await _json(send, {"hold": self._hold})
        elif scope["path"] == "/streams":
            await _json(send, {"open": self._open})
        else:
            await _json(send, {}, status=404)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._open += 1
        if self._open >= self._hold:
            self._enough.set()
        try:
            yield
        finally:
            self._open -= 1

    async def _stream(self, turn: list[bytes], send: Send, *, gap_s: float) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEAD})
        for piece in turn:
            if gap_s:
                await asyncio.sleep(gap_s)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _live(receive: Any, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"].endswith("shutdown"):
            return


async def _listen(receive: Any, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message["type"] == "websocket.disconnect":
            return


async def _body(receive: Any) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def _json(send: Send, body: Any, *, status: int = 200) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gap", type=float, default=0.0)
    options = parser.parse_args()
    uvicorn.run(Wire(options.gap), port=options.port, log_level="warning", access_log=False)
