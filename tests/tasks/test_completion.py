"""A completion: what the model is asked, and what becomes of everything that a provider may say."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from agent_exec.contract.agent import AgentConfig, Tenant
from agent_exec.contract.completion import ChatMessage, CompletionRequest, CompletionResponse, Usage
from agent_exec.contract.tool import ToolCall, ToolDefinition
from agent_exec.errors import ProviderBadRequest, ProviderOverloaded
from agent_exec.settings import read_settings
from providers.catalog import Providers
from providers.provider import Delta, Finished, Provider, Reasoning, Text
from tasks.completion import complete
from tasks.journal import Snapshot
from tasks.next_step import AskModel, Join
from tasks.step import Done
from tests.tasks.conftest import Bench, returning

USAGE = Usage(prompt_tokens=10, completion_tokens=5, total_tokens=15, cost_usd=0.25)
STOP = Finished("stop", (), USAGE, "sandbox-1-2026")


class PlayedProvider:
    """A provider that says what the test says, a list a call; an exception is raised in its place."""

    name = "openai"

    def __init__(self, *answers: Sequence[Delta | Exception]) -> None:
        self.answers = list(answers)
        self.requests: list[CompletionRequest] = []
        self.open = 0

    @contextlib.asynccontextmanager
    async def stream(self, request: CompletionRequest) -> AsyncIterator[AsyncIterator[Delta]]:
        self.requests.append(request)
        self.open += 1
        try:
            yield self._deltas(self.answers.pop(0))
        finally:
            self.open -= 1

    async def _deltas(self, answer: Sequence[Delta | Exception]) -> AsyncIterator[Delta]:
        for delta in answer:
            if isinstance(delta, Exception):
                raise delta
            yield delta

    async def aclose(self) -> None:
        raise AssertionError("a step does not close its provider")


class PlayedProviders:
    """The catalog of one provider."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def named(self, name: str) -> Provider:
        assert name == self._provider.name
        return self._provider


def saying(desk: Bench, *answers: Sequence[Delta | Exception]) -> PlayedProvider:
    provider = PlayedProvider(*answers)
    desk.others["providers"] = PlayedProviders(provider)
    return provider


async def prepare(desk: Bench, **config: Any) -> Snapshot:
    """Journal the prompt step."""
    fixed = Snapshot(
        config=AgentConfig(agent_id="desk", provider="openai", model="sandbox-1", **config),
        tenant=Tenant(tenant_id="acme"),
        system_prompt="You are a clerk.",
        tools=[ToolDefinition(name="clock"), ToolDefinition(name="weather")],
    )
    await desk.run("prompt", returning(Done(fixed.model_dump_json(), [], AskModel(1), snapshot=fixed)))
    return fixed


async def told(desk: Bench, name: str) -> list[dict[str, Any]]:
    return [json.loads(event.json) for event in await desk.events() if event.name == name]


async def tokens(desk: Bench) -> list[tuple[str, bool]]:
    return [(token["token"], token["is_final"]) for token in await told(desk, "agent_response_token")]


async def test_text_is_streamed_and_ends_the_execution(bench: Bench) -> None:
    provider = saying(bench, [Text("forty"), Reasoning("is it?"), Text("-two “ok” \n"), STOP])
    await prepare(bench)
    await bench.run("completion.1", complete)
    final = await bench.response()
    assert (final.status, final.output.text, final.usage, final.turns) == ("completed", "forty-two “ok” \n", USAGE, 1)
    assert (final.provider, final.model) == ("openai", "sandbox-1-2026")
    streamed = await tokens(bench)
    assert "".join(text for text, _ in streamed) == final.output.text, "and nothing of the reasoning"
    assert [is_final for _, is_final in streamed] == [*[False] * (len(streamed) - 1), True]
    assert await told(bench, "agent_execution_progress") == [
        {"stage": "thinking", "step": "completion.1", "turn": 1, "detail": {}}
    ]
    assert provider.open == 0


async def test_an_answer_without_a_word_still_has_a_last_token(bench: Bench) -> None:
    saying(bench, [Finished("stop", (), USAGE, "")])
    await prepare(bench)
    await bench.run("completion.1", complete)
    final = await bench.response()
    assert (final.status, final.output.text, final.model) == ("completed", "", "sandbox-1")
    assert await tokens(bench) == [("", True)]


async def test_tool_calls_are_told_and_made(bench: Bench) -> None:
    calls = (
        ToolCall(id="1", name="clock", arguments=""),
        ToolCall(id="2", name="weather", arguments='{"city": "Lima"}'),
    )
    saying(bench, [Text("Let me see."), Finished("tool_calls", calls, USAGE, "sandbox-1")])
    await prepare(bench)
    await bench.run("completion.1", complete)
    assert await told(bench, "tool_call_requested") == [
        {"tool_call_id": "1", "name": "clock", "arguments": {}, "turn": 1},
        {"tool_call_id": "2", "name": "weather", "arguments": {"city": "Lima"}, "turn": 1},
    ]
    assert all(not is_final for _, is_final in await tokens(bench)), "the answer is still to come"
    assert "".join(text for text, _ in await tokens(bench)) == "Let me see."
    assert await bench.waiting("agent_tools") == 2
    stored = (await bench.record()).result("completion.1")
    assert stored is not None
    assert CompletionResponse.model_validate_json(stored).tool_calls == list(calls)


async def test_tool_calls_without_a_word_have_no_token(bench: Bench) -> None:
    saying(bench, [Finished("tool_calls", (ToolCall(id="1", name="clock", arguments="{}"),), USAGE, "m")])
    await prepare(bench)
    await bench.run("completion.1", complete)
    assert await tokens(bench) == []


@pytest.mark.parametrize(
    "arguments", ['{"city": "Li', "NaN", '"\\ud800"', "[" * 200_000, "[" * 40 + "]" * 40, "9" * 5_000]
)
async def test_arguments_that_are_no_json_are_told_as_text(bench: Bench, arguments: str) -> None:
    saying(bench, [Finished("tool_calls", (ToolCall(id="1", name="clock", arguments=arguments),), USAGE, "m")])
    await prepare(bench)
    await bench.run("completion.1", complete)
    [requested] = await told(bench, "tool_call_requested")
    assert requested["arguments"] == arguments
    assert await bench.waiting("agent_tools") == 1


async def test_a_refusal_keeps_its_words_and_is_paid(bench: Bench) -> None:
    saying(bench, [Text("I cannot"), Finished("content_filter", (), USAGE, "m")])
    await prepare(bench)
    await bench.run("completion.1", complete)
    final = await bench.response()
    assert final.error is not None
    assert (final.error.code, final.output.text, final.usage) == ("content_filtered", "I cannot", USAGE)


async def test_an_error_that_no_retry_mends_keeps_what_was_said(bench: Bench) -> None:
    provider = saying(bench, [Text("forty"), ProviderBadRequest("no", provider="openai")])
    await prepare(bench)
    await bench.run("completion.1", complete)
    final = await bench.response()
    assert final.error is not None
    assert (final.error.code, final.output.text) == ("provider_bad_request", "forty")
    assert "".join(text for text, _ in await tokens(bench)) == "forty"
    assert provider.open == 0


async def test_an_error_that_may_pass_waits_and_the_tokens_before_it_are_void(bench: Bench) -> None:
    overloaded = ProviderOverloaded("busy", provider="openai", retry_after_s=0.01)
    long = "x" * 5_000  # told at once
    provider = saying(bench, [Text(long), overloaded], [Text("42"), STOP])
    await prepare(bench)
    await bench.run("completion.1", complete)
    assert '"state":"waiting"' in (await bench.record()).steps["completion.1"]
    waits = (await told(bench, "agent_execution_progress"))[-1]
    assert (waits["stage"], waits["detail"]["code"]) == ("waiting", "provider_overloaded")
    await bench.become_due()
    await bench.run("completion.1", complete)
    assert (await bench.response()).output.text == "42"
    names = await bench.logged()
    assert (
        names.index("agent_response_token") < names.index("step_restarted") < names.index("agent_execution_completed")
    )
    last = [json.loads(event.json) for event in (await bench.events())[names.index("step_restarted") :]]
    assert "".join(data["token"] for data in last if "token" in data) == "42"
    assert len(provider.requests) == 2


async def test_a_stream_that_just_ends_is_no_answer(bench: Bench) -> None:
    saying(bench, [Text("for")], [Text("fort")])
    await prepare(bench)
    await bench.run("completion.1", complete)
    await bench.become_due()
    await bench.run("completion.1", complete)
    final = await bench.response()
    assert final.error is not None
    assert (final.error.code, final.output.text) == ("provider_protocol", "fort")


async def test_a_provider_that_is_not_configured_fails_the_execution(bench: Bench) -> None:
    bench.others["providers"] = Providers(read_settings(openai_api_key=None))
    await prepare(bench)
    await bench.run("completion.1", complete)
    final = await bench.response()
    assert final.error is not None
    assert final.error.code == "provider_not_configured"


async def test_the_request_is_made_of_what_was_fixed(bench: Bench) -> None:
    provider = saying(bench, [STOP])
    fixed = await prepare(
        bench,
        temperature=0.5,
        max_output_tokens=99,
        tool_choice="none",
        parallel_tool_calls=False,
        response_format={"type": "object"},
    )
    await bench.run("completion.1", complete)
    assert provider.requests == [
        CompletionRequest(
            provider="openai",
            model="sandbox-1",
            messages=[
                ChatMessage(role="system", content="You are a clerk."),
                ChatMessage(role="user", content="6 * 7?"),
            ],
            tools=fixed.tools,
            tool_choice="none",
            parallel_tool_calls=False,
            temperature=0.5,
            max_output_tokens=99,
            response_format={"type": "object"},
        )
    ]


async def test_a_forced_tool_is_forced_once_and_its_result_is_shown(bench: Bench) -> None:
    call = ToolCall(id="1", name="clock", arguments="{}")
    provider = saying(bench, [Finished("tool_calls", (call,), USAGE, "m")], [Text("noon"), STOP])
    await prepare(bench, tool_choice="required")
    await bench.run("completion.1", complete)
    record = '{"id":"1","name":"clock","arguments":{},"result":"12:00","duration_s":0.1}'
    await bench.run("tool_call.1.0", returning(Done(record, [], Join(1))))
    await bench.run("completion.2", complete)
    assert [request.tool_choice for request in provider.requests] == ["required", "auto"]
    assert provider.requests[1].messages[2:] == [
        ChatMessage(role="assistant", tool_calls=[call]),
        ChatMessage(role="tool", tool_call_id="1", content="12:00"),
    ]
    final = await bench.response()
    assert (final.output.text, final.turns, final.usage.total_tokens) == ("noon", 2, 30)


async def test_too_many_calls_in_one_turn_are_not_made(bench: Bench) -> None:
    calls = tuple(ToolCall(id="same", name="clock", arguments="{}") for _ in range(1_000))
    saying(bench, [Finished("tool_calls", calls, USAGE, "m")])
    await prepare(bench)
    await bench.run("completion.1", complete)
    final = await bench.response()
    assert final.error is not None
    assert final.error.code == "limit_exceeded"
    assert await bench.waiting("agent_tools") == 0


async def test_calls_of_one_id_are_calls_of_their_own(bench: Bench) -> None:
    calls = tuple(ToolCall(id="same", name="clock", arguments="{}") for _ in range(2))
    saying(bench, [Finished("tool_calls", calls, USAGE, "m")])
    await prepare(bench)
    await bench.run("completion.1", complete)
    assert await bench.waiting("agent_tools") == 2
    for index in range(2):
        record = f'{{"id":"same","name":"clock","arguments":{{}},"result":{index},"duration_s":0.1}}'
        await bench.run(f"tool_call.1.{index}", returning(Done(record, [], Join(1))))
    assert '"state":"queued"' in (await bench.record()).steps["completion.2"]
