"""Azure, vLLM, Ollama and llama.cpp as they write the wire, each set up as docs/operations.md says.

The streams below have the fields that these servers send, in their order; what the wire has everywhere is in test_wire.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

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
)
from agent_exec.settings import Settings
from providers.catalog import Providers
from providers.provider import Provider, Reasoning, Text
from tests.providers.asking import DONE, WEATHER, answering, ask, end_of, failure, request, said
from tests.providers.wire_server import KEY, TENANT, Exchange, WireServer, event

LIMA = '{"city": "Lima"}'

DEPLOYMENT = "/openai/deployments/gpt-4o"
FILTERED = {"hate": {"filtered": False, "severity": "safe"}}
#: The prompt's verdict comes first, in a chunk that has neither choices nor a model.
VERDICT = {
    "id": "",
    "object": "",
    "created": 0,
    "model": "",
    "choices": [],
    "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": FILTERED}],
}
AZURE = {"model": "gpt-4o-2024-11-20", "system_fingerprint": "fp_1"}

VLLM = {"model": "Qwen/Qwen3-8B"}
OLLAMA = {"model": "qwen3:8b", "system_fingerprint": "fp_ollama"}
LLAMA_CPP = {"model": "smollm2", "system_fingerprint": "b6000-0"}


@contextlib.asynccontextmanager
async def compatible(wire: WireServer, path: str, **fields: Any) -> AsyncIterator[Provider]:
    """Set up the one endpoint 'there', at `path` of `wire`."""
    endpoint = {"base_url": f"{wire.url}{path}", **fields}
    providers = Providers(Settings(openai_api_key=None, groq_api_key=None, providers={"there": endpoint}))
    try:
        yield await providers.named("there", tenant_id=TENANT)
    finally:
        await providers.aclose()


def part(delta: Any, reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, **more.pop("beside", {})}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "choices": [choice], **more}


def counts(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "choices": [], "usage": usage, **more}


def stream(*chunks: dict[str, Any]) -> bytes:
    return b"".join(map(event, chunks)) + DONE


async def refused(provider: Provider, wire: WireServer, status: int, body: Any, **headers: str) -> ProviderError:
    async def refuse(exchange: Exchange) -> None:
        await exchange.refuse(status, body, headers=headers)

    wire.answer = refuse
    return await failure(provider)


class TestAzure:
    @pytest.fixture
    async def azure(self, wire: WireServer) -> AsyncIterator[Provider]:
        fields = {"key_header": "api-key", "query": {"api-version": "2024-10-21"}, "api_key": KEY}
        async with compatible(wire, DEPLOYMENT, **fields) as provider:
            yield provider

    async def test_its_address_its_version_and_its_header(self, azure: Provider, wire: WireServer) -> None:
        verdict = {"content_filter_results": FILTERED}
        wire.answer = answering(
            stream(
                VERDICT,
                part({"role": "assistant", "content": "", "refusal": None}, **AZURE, beside=verdict),
                part({"content": "Hello"}, **AZURE, beside=verdict),
                part({}, "stop", **AZURE, beside=verdict),
                counts(20, 7, **AZURE),
            )
        )
        deltas = await ask(azure)
        assert (said(deltas), end_of(deltas).model) == ("Hello", "gpt-4o-2024-11-20")
        [call] = wire.calls
        assert call.path == f"{DEPLOYMENT}/chat/completions?api-version=2024-10-21"
        assert call.headers["api-key"] == KEY
        assert "authorization" not in call.headers

    async def test_its_newer_address_takes_the_header_of_everybody(self, wire: WireServer) -> None:
        wire.answer = answering(stream(part({"content": "Hello"}, "stop"), counts(20, 7)))
        async with compatible(wire, "/openai/v1/", api_key=KEY) as azure:
            assert said(await ask(azure)) == "Hello"
        assert wire.calls[0].path == "/openai/v1/chat/completions"
        assert wire.calls[0].headers["authorization"] == f"Bearer {KEY}"

    async def test_reasoning_models_refuse_the_older_limit(self, wire: WireServer) -> None:
        wire.answer = answering(stream(part({"content": "Hello"}, "stop"), counts(20, 7)))
        async with compatible(wire, "/openai/v1", output_limit="max_completion_tokens") as azure:
            await ask(azure)
        assert "max_tokens" not in wire.calls[0].body
        assert wire.calls[0].body["max_completion_tokens"] == 1024

    async def test_its_filter_of_prompts(self, azure: Provider, wire: WireServer) -> None:
        body = {
            "message": "The response was filtered",
            "code": "content_filter",
            "status": 400,
            "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": FILTERED},
        }
        assert type(await refused(azure, wire, 400, body)) is ContentFiltered

    async def test_its_filter_of_answers(self, azure: Provider, wire: WireServer) -> None:
        wire.answer = answering(stream(VERDICT, part({"content": "He"}, **AZURE), part({}, "content_filter", **AZURE)))
        deltas = await ask(azure)
        assert (said(deltas), end_of(deltas).reason) == ("He", "content_filter")

    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (401, {"code": "401", "message": "Access denied due to invalid subscription key"}, ProviderAuth),
            (404, {"code": "DeploymentNotFound", "message": "The API deployment does not exist"}, ModelNotFound),
            (404, {"code": "404", "message": "Resource not found"}, ModelNotFound),
            (429, {"code": "429", "message": "exceeded token rate limit"}, ProviderRateLimited),
        ],
    )
    async def test_its_refusals(
        self, azure: Provider, wire: WireServer, status: int, body: Any, kind: type[ProviderError]
    ) -> None:
        error = await refused(azure, wire, status, body, **{"retry-after-ms": "1500", "retry-after": "2"})
        assert (type(error), error.retry_after_s) == (kind, 1.5)


class TestVllm:
    @pytest.fixture
    async def vllm(self, wire: WireServer) -> AsyncIterator[Provider]:
        async with compatible(wire, "/v1") as provider:
            yield provider

    async def test_thoughts_and_nulls_in_every_delta(self, vllm: Provider, wire: WireServer) -> None:
        wire.answer = answering(
            stream(
                part({"role": "assistant", "content": "", "reasoning_content": None}, **VLLM, prompt_token_ids=None),
                part({"reasoning": "hm", "reasoning_content": "hm"}, **VLLM),
                part({"content": "Hello", "reasoning_content": None, "tool_calls": []}, **VLLM),
                part({"content": ""}, "stop", **VLLM, beside={"stop_reason": None, "token_ids": None}),
                counts(20, 7, **VLLM),
            )
        )
        deltas = await ask(vllm)
        assert deltas[:-1] == [Reasoning("hm"), Text("Hello")]
        assert end_of(deltas).model == "Qwen/Qwen3-8B"
        assert wire.calls[0].headers["authorization"] == "Bearer none", "who asks for no key takes any"
        assert wire.calls[0].body["max_tokens"] == 1024

    async def test_calls_with_ids_at_their_beginning_alone(self, vllm: Provider, wire: WireServer) -> None:
        def piece(index: int, **fields: Any) -> dict[str, Any]:
            return part({"tool_calls": [{"index": index, **fields}]}, **VLLM)

        wire.answer = answering(
            stream(
                piece(0, id="chatcmpl-tool-1", type="function", function={"name": "get_weather"}),
                piece(0, function={"arguments": LIMA[:6]}),
                piece(0, function={"arguments": LIMA[6:]}),
                # Some parsers put the second call at the first one's place, and an empty id on every other piece.
                piece(0, id="chatcmpl-tool-2", type="function", function={"name": "get_weather", "arguments": ""}),
                piece(0, id="", function={"arguments": "{}", "name": None}),
                part({"content": ""}, "tool_calls", **VLLM),
                counts(20, 7),
            )
        )
        end = end_of(await ask(vllm, request(tools=[WEATHER])))
        assert [(call.id, call.arguments) for call in end.tool_calls] == [
            ("chatcmpl-tool-1", LIMA),
            ("chatcmpl-tool-2", "{}"),
        ]

    async def test_a_forced_tool_stops_like_text(self, vllm: Provider, wire: WireServer) -> None:
        call = {"index": 0, "type": "function", "function": {"name": "get_weather", "arguments": LIMA}}
        wire.answer = answering(stream(part({"tool_calls": [call]}), part({"content": ""}, "stop"), counts(20, 7)))
        end = end_of(await ask(vllm, request(tools=[WEATHER], tool_choice={"name": "get_weather"})))
        assert end.reason == "tool_calls"
        assert end.tool_calls[0].id.startswith("call_")

    @pytest.mark.parametrize(
        "error",
        [
            {"object": "error", "message": "the engine has died", "type": "InternalServerError", "code": 500},
            {"error": {"message": "the engine has died", "type": "InternalServerError", "param": None, "code": 500}},
        ],
    )
    async def test_an_error_is_followed_by_done(self, vllm: Provider, wire: WireServer, error: Any) -> None:
        wire.answer = answering(event(part({"content": "He"})) + event(error) + DONE)
        assert type(await failure(vllm)) is ProviderOverloaded

    async def test_an_abort_is_no_answer(self, vllm: Provider, wire: WireServer) -> None:
        wire.answer = answering(stream(part({"content": "He"}), part({"content": ""}, "abort")))
        assert type(await failure(vllm)) is ProviderOverloaded

    @pytest.mark.parametrize(
        ("status", "message", "kind"),
        [
            (400, "This model's maximum context length is 4096 tokens. However, you requested 9000", ContextTooLong),
            (404, "The model `qwen` does not exist.", ModelNotFound),
            (400, '"auto" tool choice requires --enable-auto-tool-choice', ProviderBadRequest),
        ],
    )
    async def test_its_refusals(
        self, vllm: Provider, wire: WireServer, status: int, message: str, kind: type[ProviderError]
    ) -> None:
        body = {"message": message, "type": "BadRequestError" if status == 400 else "NotFoundError", "code": status}
        assert type(await refused(vllm, wire, status, body)) is kind


class TestOllama:
    @pytest.fixture
    async def ollama(self, wire: WireServer) -> AsyncIterator[Provider]:
        async with compatible(wire, "/v1") as provider:
            yield provider

    async def test_calls_come_whole_and_all_at_index_0(self, ollama: Provider, wire: WireServer) -> None:
        def call(id: str, arguments: Any) -> dict[str, Any]:
            function = {"name": "get_weather", "arguments": arguments}
            calls = [{"id": id, "index": 0, "type": "function", "function": function}]
            return part({"role": "assistant", "content": "", "tool_calls": calls}, **OLLAMA)

        wire.answer = answering(
            stream(
                part({"role": "assistant", "content": "", "reasoning": "hm"}, **OLLAMA),
                call("call_a", LIMA),
                call("call_b", {"city": "Oslo"}),
                part({"role": "assistant", "content": ""}, "stop", **OLLAMA),
                counts(20, 7, **OLLAMA),
            )
        )
        end = end_of(await ask(ollama, request(tools=[WEATHER])))
        assert end.reason == "tool_calls"
        assert [(call.id, call.decoded_arguments()) for call in end.tool_calls] == [
            ("call_a", {"city": "Lima"}),
            ("call_b", {"city": "Oslo"}),
        ]
        assert (end.model, end.usage.cost_usd) == ("qwen3:8b", None)

    async def test_a_runner_that_dies_ends_the_stream_early(self, ollama: Provider, wire: WireServer) -> None:
        wire.answer = answering(event(part({"role": "assistant", "content": "He"}, **OLLAMA)))
        assert type(await failure(ollama)) is ProviderProtocol

    async def test_a_model_that_was_not_pulled(self, ollama: Provider, wire: WireServer) -> None:
        body = {"message": "model 'qwen' not found", "type": "not_found_error", "param": None, "code": None}
        assert type(await refused(ollama, wire, 404, body)) is ModelNotFound


class TestLlamaCpp:
    @pytest.fixture
    async def llama_cpp(self, wire: WireServer) -> AsyncIterator[Provider]:
        async with compatible(wire, "/v1") as provider:
            yield provider

    async def test_timings_beside_the_usage(self, llama_cpp: Provider, wire: WireServer) -> None:
        timings = {"prompt_n": 20, "prompt_ms": 11.5, "predicted_n": 7, "predicted_per_second": 61.2}
        wire.answer = answering(
            stream(
                part({"role": "assistant", "content": None}, **LLAMA_CPP),
                part({"content": "Hello"}, **LLAMA_CPP),
                part({}, "stop", **LLAMA_CPP),
                counts(20, 7, **LLAMA_CPP, timings=timings),
            )
        )
        deltas = await ask(llama_cpp)
        assert (said(deltas), end_of(deltas).usage.total_tokens) == ("Hello", 27)

    async def test_calls_without_ids(self, llama_cpp: Provider, wire: WireServer) -> None:
        def piece(**function: str) -> dict[str, Any]:
            return part({"tool_calls": [{"index": 0, "type": "function", "id": "", "function": function}]}, **LLAMA_CPP)

        wire.answer = answering(
            stream(
                piece(name="get_weather", arguments="{"),
                piece(arguments='"city": "Lima"'),
                piece(arguments="}"),
                part({}, "tool_calls", **LLAMA_CPP),
                counts(20, 7),
            )
        )
        [call] = end_of(await ask(llama_cpp, request(tools=[WEATHER]))).tool_calls
        assert call.id.startswith("call_")
        assert call.arguments == LIMA

    @pytest.mark.parametrize("field", [b"data: ", b"error: "])
    async def test_an_error_in_a_field_of_its_own(self, llama_cpp: Provider, wire: WireServer, field: bytes) -> None:
        error = b'{"code":500,"message":"context shift failed","type":"server_error"}'
        octets = field + (b'{"error":' + error + b"}" if field == b"data: " else error) + b"\n\n"
        wire.answer = answering(event(part({"content": "He"}, **LLAMA_CPP)) + octets + DONE)
        error_of_ours = await failure(llama_cpp)
        assert type(error_of_ours) is ProviderOverloaded
        assert "context shift failed" in str(error_of_ours)

    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (503, {"code": 503, "message": "Loading model", "type": "unavailable_error"}, ProviderOverloaded),
            (
                400,
                {"code": 400, "message": "request (9000 tokens) exceeds it", "type": "exceed_context_size_error"},
                ContextTooLong,
            ),
            (
                500,
                {"code": 500, "message": "tools param requires --jinja flag", "type": "server_error"},
                ProviderOverloaded,
            ),
            (401, {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}, ProviderAuth),
        ],
    )
    async def test_its_refusals(
        self, llama_cpp: Provider, wire: WireServer, status: int, body: Any, kind: type[ProviderError]
    ) -> None:
        assert type(await refused(llama_cpp, wire, status, body)) is kind
