from __future__ import annotations

from types import ModuleType
from typing import Any

import groq
import httpx
import httpx2
import openai
import pytest
from pydantic import SecretStr

import providers.groq
import providers.openai
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
from providers.failure import TRANSPORT_KINDS, Failures, Kinds, kind_of, read_complaint, retry_after_s
from tests.providers.wire_server import KEY

FAILURES = Failures("openai", kinds=TRANSPORT_KINDS, secret=SecretStr(KEY))

#: Of parts of the SDK that no completion passes through.
NOT_OF_COMPLETIONS = {
    openai.InvalidWebhookSignatureError,
    openai.WebSocketConnectionClosedError,
    openai.WebSocketQueueFullError,
}
#: These say nothing by themselves; an exception whose nearest row is one of them has not been thought about.
BASES = {openai.OpenAIError, openai.APIError, groq.GroqError, groq.APIError}


def exceptions_of(module: ModuleType) -> set[type[Exception]]:
    return {
        member
        for name, member in vars(module).items()
        if type(member) is type and issubclass(member, Exception) and not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("sdk", "kinds"), [(openai, providers.openai.KINDS), (groq, providers.groq.KINDS)], ids=["openai", "groq"]
)
def test_every_exception_of_the_sdk_has_a_row(sdk: ModuleType, kinds: Kinds) -> None:
    def nearest(exception: type[Exception]) -> type | None:
        return next((base for base in exception.__mro__ if base in kinds), None)

    thought_about = exceptions_of(sdk) - NOT_OF_COMPLETIONS - BASES
    assert {cls.__name__: nearest(cls) for cls in thought_about if nearest(cls) in BASES | {None}} == {}
    assert len(thought_about) >= 11


@pytest.mark.parametrize(
    ("http", "kinds"), [(httpx2, providers.openai.KINDS), (httpx, providers.groq.KINDS)], ids=["httpx2", "httpx"]
)
def test_every_exception_of_the_transport_is_caught(http: ModuleType, kinds: Kinds) -> None:
    mistakes_of_ours = {http.CookieConflict, http.StreamError}
    unmapped = {
        cls.__name__
        for cls in exceptions_of(http)
        if not issubclass(cls, tuple(kinds)) and not issubclass(cls, tuple(mistakes_of_ours))
    }
    assert unmapped == set()


@pytest.mark.parametrize(
    ("status", "error", "ours"),
    [
        (400, {"code": "context_length_exceeded"}, ContextTooLong),
        (400, {"message": "This model's maximum context length is 4096 tokens."}, ContextTooLong),
        (400, {"type": "exceed_context_size_error"}, ContextTooLong),
        (413, {"code": "rate_limit_exceeded", "message": "Request too large for model"}, ContextTooLong),
        (429, {"code": "rate_limit_exceeded", "message": "Request too large for gpt-4o"}, ContextTooLong),
        (413, "<html>413 Request Entity Too Large</html>", ContextTooLong),
        (400, {"code": "content_filter"}, ContentFiltered),
        (400, {"code": "ResponsibleAIPolicyViolation"}, ContentFiltered),
        (404, {"code": "model_not_found"}, ModelNotFound),
        (403, {"code": "model_not_found"}, ModelNotFound),
        (404, "nothing here", ModelNotFound),
        (401, {"code": "invalid_api_key"}, ProviderAuth),
        (401, None, ProviderAuth),
        (403, {"message": "no"}, ProviderAuth),
        (402, {"message": "pay"}, ProviderAuth),
        (429, {"type": "insufficient_quota", "code": "insufficient_quota"}, ProviderAuth),
        (429, {"type": "tokens", "code": "rate_limit_exceeded"}, ProviderRateLimited),
        (429, {}, ProviderRateLimited),
        (400, {"code": "tool_use_failed"}, ProviderProtocol),
        (400, {"message": "temperature is too high", "type": "invalid_request_error"}, ProviderBadRequest),
        (422, {"detail": [{"loc": ["body"], "msg": "no"}]}, ProviderBadRequest),
        (302, "", ProviderBadRequest),
        (408, {}, ProviderTimeout),
        (504, {}, ProviderTimeout),
        (409, {}, ProviderOverloaded),
        (498, {}, ProviderOverloaded),
        (500, {"message": "the maximum context length"}, ProviderOverloaded),
        (503, {}, ProviderOverloaded),
        (529, {}, ProviderOverloaded),
        (None, {"code": 404}, ModelNotFound),
        (None, {"code": "503"}, ProviderOverloaded),
        (None, {"message": "prompt is too long"}, ContextTooLong),
        (None, {"message": "?"}, None),
        (None, {"code": 12}, None),
        (None, 7, None),
    ],
)
def test_codes_words_and_statuses(status: int | None, error: Any, ours: type[ProviderError] | None) -> None:
    assert kind_of(read_complaint(error, status=status)) is ours
    assert kind_of(read_complaint({"error": error}, status=status)) is ours


@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [
        ({}, None),
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "1e9"}, 86_400.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:00 GMT"}, 20.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:00 -0000"}, 20.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86_400.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "later", "retry-after": "9"}, 9.0),
    ],
)
def test_the_pause_asked_for(headers: dict[str, str], pause_s: float | None) -> None:
    assert retry_after_s(headers, now_s=100.0) == pause_s


@pytest.mark.parametrize(
    "said",
    [
        f"Incorrect API key provided: {KEY}.",
        "Incorrect API key provided: sk-proj-abc***********************xyz.",
        "Authorization: Bearer eyJhbGciOi.abc",
        "gsk_abcdefghijklmnop is no key",
    ],
)
def test_no_key_in_a_message(said: str) -> None:
    """S29."""
    message = str(FAILURES.of_answer({"message": said}, status=401))
    assert "[key]" in message
    assert not any(part in message for part in (KEY, "CANARY", "abc", "eyJ", "xyz"))


def test_a_key_that_is_none_hides_no_words() -> None:
    failures = Failures("local", kinds=TRANSPORT_KINDS, secret=SecretStr("none"))
    assert "none here" in str(failures.of_answer("none here", status=404))


def test_a_message_is_one_short_line() -> None:
    """S29: what a provider says is summarised."""
    message = str(FAILURES.of_answer({"message": "\x1b[31mred\n\ttext\u202e " + "x" * 10_000}, status=500))
    assert message.isprintable()
    assert "[31mred text x" in message
    assert len(message) < 300


def test_a_message_says_what_why_and_what_now() -> None:
    error = FAILURES.of_answer({"code": "model_not_found", "message": "No model 'gpt-5x'"}, status=404)
    assert str(error) == (
        "Provider 'openai' knows no such model (404 model_not_found: No model 'gpt-5x'). "
        "Check the agent's model, and the provider's base URL."
    )
    assert (error.provider, error.code, error.retryable) == ("openai", "model_not_found", False)


def test_what_lies_beneath_an_exception_decides() -> None:
    refused = TimeoutError("connect")
    refused.__cause__ = ConnectionRefusedError("refused")
    error = FAILURES.of_exception(refused, now_s=0)
    assert type(error) is ProviderUnreachable
    assert "ConnectionRefusedError: refused" in str(error)
