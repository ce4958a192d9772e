"""What a provider's failure is to us: exceptions, HTTP statuses and error objects → `ProviderError`.

Owns the tables of codes, words and statuses, the table of transport exceptions, and what an error's message may show.
Does not know an SDK: each names its own exceptions in its own module. No I/O.
"""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import aiohttp
from pydantic import SecretStr

from agent_exec.errors import (
    ContentFiltered,
    ContextTooLong,
    ModelNotFound,
    ProviderAuth,
    ProviderBadRequest,
    ProviderError,
    ProviderOverloaded,
    ProviderProtocol,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnreachable,
)

#: From an exception to our class; None: its HTTP status decides.
Kinds = Mapping[type[Exception], type[ProviderError] | None]

#: What may come through any SDK unmapped, or lie beneath what it raised.
TRANSPORT_KINDS: Kinds = {
    aiohttp.ServerTimeoutError: ProviderTimeout,
    aiohttp.ClientResponseError: ProviderProtocol,  # a server that does not speak HTTP
    aiohttp.InvalidURL: ProviderBadRequest,
    aiohttp.NonHttpUrlClientError: ProviderBadRequest,
    aiohttp.ClientError: ProviderUnreachable,
    TimeoutError: ProviderTimeout,
    ssl.SSLError: ProviderUnreachable,
    OSError: ProviderUnreachable,
}

#: `error.code` and `error.type`, where they say more than the status: OpenAI's, Groq's, Azure's, OpenRouter's, vLLM's.
_BY_CODE: Mapping[str, type[ProviderError]] = {
    "context_length_exceeded": ContextTooLong,
    "exceed_context_size_error": ContextTooLong,  # llama.cpp
    "string_above_max_length": ContextTooLong,
    "content_filter": ContentFiltered,
    "content_policy_violation": ContentFiltered,
    "responsibleaipolicyviolation": ContentFiltered,
    "model_not_found": ModelNotFound,
    "model_decommissioned": ModelNotFound,
    "deploymentnotfound": ModelNotFound,
    "notfounderror": ModelNotFound,  # vLLM
    "invalid_api_key": ProviderAuth,
    "authentication_error": ProviderAuth,
    "permission_error": ProviderAuth,
    "insufficient_quota": ProviderAuth,
    "billing_hard_limit_reached": ProviderAuth,
    "billing_not_active": ProviderAuth,
    "account_deactivated": ProviderAuth,
    "rate_limit_exceeded": ProviderRateLimited,
    "rate_limit_error": ProviderRateLimited,
    "too_many_requests": ProviderRateLimited,
    # The model wrote a call or an answer that the server could not read: the dice may fall otherwise next time.
    "tool_use_failed": ProviderProtocol,
    "json_validate_failed": ProviderProtocol,
    "server_error": ProviderOverloaded,
    "internal_server_error": ProviderOverloaded,
    "internalservererror": ProviderOverloaded,
    "overloaded_error": ProviderOverloaded,
    "service_unavailable": ProviderOverloaded,
    "over_capacity": ProviderOverloaded,
}

#: Servers without codes say it in words, and two with codes say `rate_limit_exceeded` of what no waiting makes fit.
_TOO_LONG = re.compile(
    r"maximum context length|context (?:size|window|length)|prompt is too long|request too large", re.IGNORECASE
)
_TOO_LONG_STATUSES = (400, 413, 422, 429)

_BY_STATUS: Mapping[int, type[ProviderError]] = {
    401: ProviderAuth,
    402: ProviderAuth,
    403: ProviderAuth,
    404: ModelNotFound,
    408: ProviderTimeout,
    409: ProviderOverloaded,
    413: ContextTooLong,
    425: ProviderOverloaded,
    429: ProviderRateLimited,
    498: ProviderOverloaded,  # Groq: no capacity in the flex tier
    504: ProviderTimeout,
}

#: What happened, and what to do now.
_WORDS: Mapping[type[ProviderError], tuple[str, str]] = {
    ProviderAuth: ("refuses our key, or the account has no money", "Check the key and the account."),
    ProviderBadRequest: ("refuses the request as it stands", "Check the agent's configuration and the base URL."),
    ModelNotFound: ("knows no such model", "Check the agent's model, and the provider's base URL."),
    ContextTooLong: ("says that the conversation does not fit the model", "Shorten it, or take a larger model."),
    ContentFiltered: ("stopped it with its content filter", "Change the prompt."),
    ProviderRateLimited: ("gets too many requests or tokens from us", "It is tried again later."),
    ProviderOverloaded: ("is in trouble", "It is tried again later."),
    ProviderTimeout: ("took too long", "It is tried again later."),
    ProviderUnreachable: ("cannot be reached, or the connection broke", "It is tried again later."),
    ProviderProtocol: ("gave an answer that is not of the wire", "It is tried again later."),
}

#: Of what the provider wrote, as much as a person needs.
MAX_SUMMARY_CHARS = 200
#: Pauses beyond a day are mistakes, or the same as never.
MAX_RETRY_AFTER_S = 86_400.0
#: A key shorter than this opens nothing (`none`), and its letters are in every sentence.
_MIN_SECRET_CHARS = 8
_KEY = re.compile(r"\b(?:sk|gsk|xai|hf|rk|pk)[-_][\w*.…-]{4,}|\bbearer\s+\S+", re.IGNORECASE)


class Complaint(NamedTuple):
    """An error object of the wire, whatever its shape was. `status` is HTTP's, or the number given as `code`."""

    status: int | None
    code: str
    type: str
    message: str


def read_complaint(body: object, *, status: int | None = None) -> Complaint:
    """Read `body`: an error object, one wrapped in `error`, a text, or anything else."""
    if isinstance(body, dict) and body.get("error"):
        body = body["error"]
    if not isinstance(body, dict):
        return Complaint(status, "", "", body if isinstance(body, str) else "")
    code = body.get("code")
    if isinstance(code, str) and code.isdecimal() and len(code) == len("429"):
        code = int(code)
    if status is None and isinstance(code, int):
        status = code
    message = body.get("message") or body.get("detail") or ""
    return Complaint(
        status,
        code if isinstance(code, str) else "",
        kind if isinstance(kind := body.get("type"), str) else "",
        message if isinstance(message, str) else str(message),
    )


def kind_of(complaint: Complaint) -> type[ProviderError] | None:
    """Return our class for `complaint`; None if neither code, words nor status tell."""
    status = complaint.status
    if _TOO_LONG.search(complaint.message) and (status is None or status in _TOO_LONG_STATUSES):
        return ContextTooLong
    for word in (complaint.code, complaint.type):
        if kind := _BY_CODE.get(word.lower()):
            return kind
    if status is None:
        return None
    if kind := _BY_STATUS.get(status):
        return kind
    if status >= 500:
        return ProviderOverloaded
    return ProviderBadRequest if status >= 300 else None


def retry_after_s(headers: Mapping[str, str], *, now_s: float) -> float | None:
    """Return the pause that `headers` ask for; `now_s` is the time since the epoch, for a date.

    Source: RFC 9110, 10.2.3; `retry-after-ms` is Azure's and OpenAI's.
    """
    if (pause_ms := _number(headers.get("retry-after-ms"))) is not None:
        return _bounded(pause_ms / 1_000)
    asked = headers.get("retry-after")
    if (pause_s := _number(asked)) is not None:
        return _bounded(pause_s)
    try:
        until = parsedate_to_datetime(asked or "")
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return _bounded(until.timestamp() - now_s)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _bounded(pause_s: float) -> float:
    return max(0.0, min(MAX_RETRY_AFTER_S, pause_s))


class Failures:
    """The failures of one provider."""

    def __init__(self, provider: str, *, kinds: Kinds, secret: SecretStr) -> None:
        """Take the provider's name, the table of its SDK, and the key that no message may hold."""
        self._provider = provider
        self._kinds = kinds
        self._secret = secret
        #: What `of_exception` knows: an `except` clause takes it as it is.
        self.caught: tuple[type[Exception], ...] = tuple(kinds)

    def of_exception(self, error: Exception, *, now_s: float) -> ProviderError:
        """Return our error for one that is in `caught`; `now_s` is the time since the epoch."""
        answer = getattr(error, "response", None)
        if answer is not None and self._kind(error) is None:
            pause_s = retry_after_s(answer.headers, now_s=now_s)
            return self.of_answer(getattr(error, "body", None), status=answer.status_code, retry_after_s=pause_s)
        cause = self._root(error)
        kind = self._kind(cause) or ProviderProtocol
        return self.failure(kind, f"{type(cause).__name__}: {cause}")

    def of_answer(self, body: object, *, status: int | None, retry_after_s: float | None = None) -> ProviderError:
        """Return our error for an error object; without a status it came in mid-stream, where only trouble is left."""
        complaint = read_complaint(body, status=status)
        kind = kind_of(complaint) or ProviderOverloaded
        said = " ".join(str(part) for part in (complaint.status, complaint.code or complaint.type) if part)
        return self.failure(kind, f"{said}: {complaint.message}", retry_after_s=retry_after_s)

    def failure(self, kind: type[ProviderError], said: str, *, retry_after_s: float | None = None) -> ProviderError:
        """Return an error of `kind`; `said` is shortened, and freed of keys."""
        what, now = _WORDS[kind]
        message = f"Provider '{self._provider}' {what} ({self._summary(said)}). {now}"
        return kind(message, provider=self._provider, retry_after_s=retry_after_s)

    def _kind(self, error: Exception) -> type[ProviderError] | None:
        return next(self._kinds[base] for base in type(error).__mro__ if base in self._kinds)

    def _root(self, error: Exception) -> Exception:
        # The transports call a refused connection a time-out; what they raised it from is true.
        root = error
        cause = error.__cause__
        while isinstance(cause, Exception):
            if isinstance(cause, self.caught):
                root = cause
            cause = cause.__cause__
        return root

    def _summary(self, said: str) -> str:
        secret = self._secret.get_secret_value()
        if len(secret) >= _MIN_SECRET_CHARS:
            said = said.replace(secret, "[key]")
        printable = "".join(char if char.isprintable() else " " for char in said[: 10 * MAX_SUMMARY_CHARS])
        short = _KEY.sub("[key]", " ".join(printable.split())).strip(": ")
        return short if len(short) <= MAX_SUMMARY_CHARS else short[: MAX_SUMMARY_CHARS - 1] + "…"
