"""The scripted LLM behind a provider's HTTP: keys, errors, a believable pace, and a journal of every call.

Owns the socket side. Does not know what the model says (scripted_model.py), the JSON of it (completion.py), nor which faults
are ordered (faults.py).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sandbox.chat_request import BadRequest, read_request
from sandbox.completion import Completion, Provider, completion_of
from sandbox.faults import Fault, Faults, read_faults
from sandbox.journal import Journal, canaries_in
from sandbox.scripted_model import next_turn, prompt_tokens

#: The last two are real names, so that their prices are known.
MODELS = frozenset({"sandbox-1", "sandbox-mini", "gpt-4o-mini", "llama-3.3-70b-versatile"})
#: Each key that begins so is answered 429 once, with `Retry-After: 1`, and served from then on.
LIMITED_KEY = "sk-sandbox-limited"

#: What hosted models of this size take: to the first token, and from one to the next.
FIRST_TOKEN_S = 0.25
TOKEN_S = 0.025
#: How far a pause strays from its length, either way.
JITTER = 0.3

#: High enough that nobody who learns limits from these headers is slowed down.
_LIMIT_HEADERS = {
    "x-ratelimit-limit-requests": "1000000",
    "x-ratelimit-remaining-requests": "999999",
    "x-ratelimit-reset-requests": "60ms",
    "x-ratelimit-limit-tokens": "1000000000",
    "x-ratelimit-remaining-tokens": "999999999",
    "x-ratelimit-reset-tokens": "1ms",
}
_QUESTION_CHARS = 200
#: OpenAI's code and type beside a status; of what is not here it says neither more than that the server is in trouble.
_WORDS = {
    400: (None, "invalid_request_error"),
    401: ("invalid_api_key", "invalid_request_error"),
    404: ("model_not_found", "invalid_request_error"),
    429: ("rate_limit_exceeded", "requests"),
}
_PATHS: dict[Provider, str] = {"openai": "/v1/chat/completions", "groq": "/openai/v1/chat/completions"}


@dataclass(slots=True)
class CallRecord:
    """One call. `request_sha256` tells a call that came twice; of the key there is a fingerprint only. `turn` counts the
    model's answers to the question, this one included.
    """

    at_ms: int
    provider: Provider
    key_fingerprint: str
    request_sha256: str
    model: str = ""
    messages: int = 0
    turn: int = 0
    canaries: list[str] = field(default_factory=list)
    question: str = ""
    stream: bool = False
    status: int = 0
    tokens_sent: int = 0
    outcome: Literal["open", "finished", "disconnected", "refused"] = "open"
    ended_at_ms: int | None = None

    def end(self, outcome: Literal["finished", "disconnected", "refused"]) -> None:
        """Close the record."""
        self.outcome = outcome
        self.ended_at_ms = time.time_ns() // 1_000_000


class Refused(Exception):
    """Answered with `status` and an error of the OpenAI wire."""

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        kind: str = "invalid_request_error",
        retry_after_s: int = 0,
    ) -> None:
        """Keep them."""
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": kind, "param": None, "code": code}
        self.headers = {"retry-after": str(retry_after_s)} if retry_after_s else {}


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of an answer, the pause before them, and the tokens they carry."""

    body: bytes
    pause_s: float
    tokens: int


class PacedResponse:
    """Sends the parts one by one and notices at once when the client leaves. An ASGI application, as responses are."""

    def __init__(self, parts: Sequence[Part], *, media_type: str, record: CallRecord) -> None:
        """Take the parts, and the record to keep up to date."""
        self._parts = parts
        self._record = record
        headers = {"content-type": media_type, "x-request-id": f"req_{record.request_sha256[:24]}", **_LIMIT_HEADERS}
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all, or until the client has gone."""
        leaving = asyncio.ensure_future(_disconnect(receive))
        outcome: Literal["finished", "disconnected"] = "disconnected"
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
            for part in self._parts:
                # Without a pause the others still get their turn, and the client's leaving is seen.
                if part.pause_s > 0:
                    await asyncio.wait({leaving}, timeout=part.pause_s)
                else:
                    await asyncio.sleep(0)
                if leaving.done():
                    return
                await send({"type": "http.response.body", "body": part.body, "more_body": True})
                self._record.tokens_sent += part.tokens
            outcome = "finished"
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()
            self._record.end(outcome)


class ChatCompletions:
    """One provider's endpoint, and what it remembers."""

    def __init__(self, provider: Provider, *, pace: float) -> None:
        """Begin with an empty journal; `pace` stretches every pause, 0 takes them out."""
        self._provider: Provider = provider
        self._pace = pace
        self._calls: Journal[CallRecord] = Journal()
        self._limited_before: set[str] = set()
        self._faults = Faults()

    async def complete(self, request: Request) -> PacedResponse | JSONResponse:
        """Answer a chat completion."""
        body = await request.body()
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        record = CallRecord(
            at_ms=time.time_ns() // 1_000_000,
            provider=self._provider,
            key_fingerprint=sha256(key.encode()).hexdigest()[:12] if key else "",
            request_sha256=sha256(body).hexdigest(),
            canaries=canaries_in(body),
        )
        self._calls.add(record)
        try:
            self._admit(key)
            return self._answer(body, record, fault=self._fault())
        except Refused as refusal:
            record.status = refusal.status
            record.end("refused")
            return JSONResponse({"error": refusal.error}, status_code=refusal.status, headers=refusal.headers)

    async def journal(self, request: Request) -> JSONResponse:
        """The calls past `after`, with where each stands."""
        after = request.query_params.get("after", "0")
        calls = self._calls.after(int(after) if after.isdecimal() else 0)
        return JSONResponse(
            {"last": self._calls.last, "calls": [{"number": number, **asdict(call)} for number, call in calls]}
        )

    async def order(self, request: Request) -> Response:
        """Take the faults to come; none before them is left."""
        try:
            self._faults = read_faults(await request.body())
        except ValueError as error:
            return JSONResponse({"error": {"message": str(error)}}, status_code=400)
        return Response(status_code=204)

    def _fault(self) -> Fault | None:
        fault = self._faults.next()
        if fault is not None and fault.status != 200:
            code, kind = _WORDS.get(fault.status, (None, "server_error"))
            raise Refused(fault.status, code, "As ordered.", kind=kind, retry_after_s=fault.retry_after_s)
        return fault

    def _admit(self, key: str) -> None:
        if not key:
            raise Refused(401, "invalid_api_key", "You didn't provide an API key in an Authorization header.")
        if key.startswith(LIMITED_KEY) and key not in self._limited_before:
            self._limited_before.add(key)
            message = "Rate limit reached for requests. Please try again in 1s."
            raise Refused(429, "rate_limit_exceeded", message, kind="requests", retry_after_s=1)

    def _answer(self, body: bytes, record: CallRecord, *, fault: Fault | None) -> PacedResponse:
        try:
            asked = read_request(body)
        except BadRequest as error:
            raise Refused(400, None, str(error)) from None
        if asked.model not in MODELS:
            message = f"The model `{asked.model}` does not exist or you do not have access to it."
            raise Refused(404, "model_not_found", message)
        record.model = asked.model
        record.messages = len(asked.messages)
        asked_at = max((place for place, said in enumerate(asked.messages) if said.role == "user"), default=0)
        record.question = asked.messages[asked_at].text[:_QUESTION_CHARS]
        record.turn = 1 + sum(said.role == "assistant" for said in asked.messages[asked_at:])
        record.stream = bool(asked.stream)
        record.status = 200
        completion = completion_of(
            next_turn(asked),
            provider=self._provider,
            model=asked.model,
            created_s=record.at_ms // 1_000,
            prompt_tokens=prompt_tokens(asked),
            token_limit=asked.token_limit,
        )
        if asked.stream:
            parts = self._streamed(completion, with_usage=asked.usage_wanted, seed=record.request_sha256)
            if fault is not None and fault.cut_after_tokens is not None:
                parts = cut(parts, after_tokens=fault.cut_after_tokens)
            return PacedResponse(parts, media_type="text/event-stream; charset=utf-8", record=record)
        pause_s = self._pace * (FIRST_TOKEN_S + TOKEN_S * completion.completion_tokens)
        whole = Part(completion.whole(), pause_s, completion.completion_tokens)
        return PacedResponse([whole], media_type="application/json", record=record)

    def _streamed(self, completion: Completion, *, with_usage: bool, seed: str) -> list[Part]:
        jitter = random.Random(seed)
        parts: list[Part] = []
        for chunk, tokens in completion.chunks(with_usage=with_usage):
            usual_s = FIRST_TOKEN_S if not parts else TOKEN_S if tokens else 0.0
            parts.append(Part(chunk, self._pace * usual_s * jitter.uniform(1 - JITTER, 1 + JITTER), tokens))
        return parts


def create_app(provider: Provider = "openai", *, pace: float = 1.0) -> Starlette:
    """Return a provider: `/v1/chat/completions` for OpenAI, `/openai/v1/chat/completions` for Groq, `/journal`, and
    `PUT /faults` (faults.py).
    """
    endpoint = ChatCompletions(provider, pace=pace)
    return Starlette(
        routes=[
            Route(_PATHS[provider], endpoint.complete, methods=["POST"]),
            Route("/journal", endpoint.journal),
            Route("/faults", endpoint.order, methods=["PUT"]),
        ],
        exception_handlers={404: _not_found},
    )


def cut(parts: Sequence[Part], *, after_tokens: int) -> list[Part]:
    """Return the parts up to so many tokens: a stream that just ends."""
    sent = 0
    kept: list[Part] = []
    for part in parts:
        if sent >= after_tokens and part.tokens:
            break
        kept.append(part)
        sent += part.tokens
    return kept


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _not_found(request: Request, _: Any) -> JSONResponse:
    message = f"Unknown request URL: {request.method} {request.url.path}."
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": "unknown_url"}
    return JSONResponse({"error": error}, status_code=404)
