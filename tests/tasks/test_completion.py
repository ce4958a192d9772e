"""A completion: what the model is asked, and what becomes of everything that a provider may say."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from agent_exec.broker import fair_queue
from agent_exec.contract.agent import AgentConfig, Budget, Limits, ModelChoice, Tenant
from agent_exec.contract.completion import ChatMessage, CompletionRequest, CompletionResponse, Usage
from agent_exec.contract.spending import Spending, Used
from agent_exec.contract.tool import ToolCall, ToolDefinition
from agent_exec.errors import (
    ContextTooLong,
    ProviderAuth,
    ProviderBadRequest,
    ProviderNotConfigured,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderTimeout,
)
from agent_exec.ledger import ledger
from agent_exec.settings import read_settings
from agent_exec.spending import reservation, usage
from providers.catalog import Providers
from providers.provider import Delta, Finished, Provider, Reasoning, Spent, Text
from providers.quota import Quota
from tasks.completion import complete
from tasks.journal import Snapshot
from tasks.leases import HandBack
from tasks.next_step import AskModel, Join
from tasks.step import Done
from tests.tasks.conftest import Bench, returning

USAGE = Usage(prompt_tokens=10, completion_tokens=5, total_tokens=15, cost_usd=0.25)
STOP = Finished("stop", (), USAGE, "sandbox-1-2026")


class PlayedProvider:
    """A provider that says what the test says, a list a call; an exception is raised in its place."""

    key_fingerprint = "0123456789abcdef"

    def __init__(
        self, *answers: Sequence[Delta | Exception], name: str = "openai", usd_per_token: float | None = 0.0001
    ) -> None:
        self.name = name
        self.usd_per_token = usd_per_token
        self.answers = list(answers)
        self.requests: list[CompletionRequest] = []
        self.open = 0

    def worst_case(self, request: CompletionRequest) -> Usage:
        output = request.max_output_tokens
        cost_usd = None if self.usd_per_token is None else (10 + output) * self.usd_per_token
        return Usage(prompt_tokens=10, completion_tokens=output, total_tokens=10 + output, cost_usd=cost_usd)

    def stream(self, request: CompletionRequest) -> PlayedCall:
        return PlayedCall(self, request)


class PlayedCall(contextlib.AbstractAsyncContextManager[AsyncIterator[Delta]]):
    """One call of it; the prompt alone is spent until the end."""

    def __init__(self, provider: PlayedProvider, request: CompletionRequest) -> None:
        self.provider = provider
        self.request = request
        self.spent: Spent | None = None
        self.quota: Quota | None = None

    async def __aenter__(self) -> AsyncIterator[Delta]:
        self.provider.requests.append(self.request)
        self.provider.open += 1
        self.spent = Spent(Usage(prompt_tokens=10, total_tokens=10, cost_usd=0.125), estimated=True)
        return self._deltas(self.provider.answers.pop(0))

    async def __aexit__(self, *error: object) -> None:
        self.provider.open -= 1

    async def _deltas(self, answer: Sequence[Delta | Exception]) -> AsyncIterator[Delta]:
        for delta in answer:
            if isinstance(delta, Exception):
                raise delta
            if isinstance(delta, Finished):
                self.spent = Spent(delta.usage, delta.usage_estimated)
            yield delta


class PlayedProviders:
    """The catalog of these providers."""

    def __init__(self, *providers: PlayedProvider) -> None:
        self._providers = {provider.name: provider for provider in providers}

    async def named(self, name: str, *, tenant_id: str) -> Provider:
        assert tenant_id == "acme"
        if name not in self._providers:
            raise ProviderNotConfigured("no key", provider=name)
        return self._providers[name]


def saying(desk: Bench, *answers: Sequence[Delta | Exception], beside: PlayedProvider | None = None) -> PlayedProvider:
    provider = PlayedProvider(*answers)
    desk.others["providers"] = PlayedProviders(provider, *([beside] if beside is not None else []))
    return provider


async def prepare(desk: Bench, *, usd_per_day: float | None = None, **config: Any) -> Snapshot:
    """Journal the prompt step."""
    fixed = Snapshot(
        config=AgentConfig(agent_id="desk", provider="openai", model="sandbox-1", **config),
        tenant=Tenant(tenant_id="acme", budget=Budget(usd_per_day=usd_per_day)),
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
    """B49."""
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


async def test_an_id_names_one_call_of_an_execution_whatever_the_turn(bench: Bench) -> None:
    first, again = (
        [Finished("tool_calls", (ToolCall(id="0", name="clock", arguments="{}"),) * count, USAGE, "m")]
        for count in (2, 1)
    )
    saying(bench, first, again)
    await prepare(bench)
    await bench.run("completion.1", complete)
    for index in range(2):
        record = '{"id":"0","name":"clock","arguments":{},"result":0,"duration_s":0.1}'
        await bench.run(f"tool_call.1.{index}", returning(Done(record, [], Join(1))))
    await bench.run("completion.2", complete)
    ids = [asked["tool_call_id"] for asked in await told(bench, "tool_call_requested")]
    assert (ids[0], len(set(ids))) == ("0", 3)


GROQ = ModelChoice(provider="groq", model="llama")


async def spending(desk: Bench) -> Spending:
    """Return what the tenant has spent."""
    return (await desk.store.run(usage.usage("acme"))).total


async def run_until_over(desk: Bench, step: str = "completion.1") -> None:
    """Do the step again and again as it becomes due, until the execution has ended."""
    while (await desk.record()).response is None:
        await desk.run(step, complete)
        if (await desk.record()).response is None:
            await desk.become_due()


async def test_another_model_takes_over_at_once_and_its_tokens_alone_count(bench: Bench) -> None:
    groq = PlayedProvider([Text("42"), STOP], name="groq")
    openai = saying(bench, [Text("x" * 5_000), ProviderTimeout("silent", provider="openai")], beside=groq)
    await prepare(bench, fallbacks=[GROQ])
    await bench.store.run(fair_queue.purge("agent_execution:acme"))
    await bench.run("completion.1", complete)
    assert await bench.waiting() == 1, "its hint is sent at once"
    await run_until_over(bench)
    final = await bench.response()
    assert (final.status, final.output.text, final.provider, final.usage) == ("completed", "42", "groq", USAGE)
    names = await bench.logged()
    after = (await bench.events())[names.index("step_restarted") :]
    assert "".join(json.loads(event.json).get("token", "") for event in after) == "42"
    thinking = [one["detail"] for one in await told(bench, "agent_execution_progress") if one["stage"] == "thinking"]
    assert thinking == [{}, {"from": "openai/sandbox-1", "to": "groq/llama", "code": "provider_timeout"}]
    assert [request.model for request in (*openai.requests, *groq.requests)] == ["sandbox-1", "llama"]
    stored = (await bench.record()).result("completion.1")
    assert stored is not None
    assert CompletionResponse.model_validate_json(stored).wasted.total_tokens == 10
    spent = await spending(bench)
    assert spent.waste == Used(calls=1, prompt_tokens=10, cost_usd=0.125)
    assert spent.used == Used(calls=2, prompt_tokens=20, completion_tokens=5, cost_usd=0.375)
    assert spent.reserved.calls == 0


async def test_a_provider_without_a_key_is_passed_over_without_a_call(bench: Bench) -> None:
    groq = PlayedProvider([Text("42"), STOP], name="groq")
    bench.others["providers"] = PlayedProviders(groq)
    await prepare(bench, fallbacks=[GROQ])
    await bench.run("completion.1", complete)
    assert (await bench.response()).provider == "groq"
    assert (await told(bench, "agent_execution_progress"))[-1]["detail"]["code"] == "provider_not_configured"


async def test_where_no_model_answers_the_error_tells_of_all(bench: Bench) -> None:
    groq = PlayedProvider([ProviderAuth("who are you", provider="groq")], name="groq")
    saying(bench, [Text("forty"), ContextTooLong("too long", provider="openai")], beside=groq)
    await prepare(bench, fallbacks=[GROQ], context={"policy": "fail"})
    await run_until_over(bench)
    error = (await bench.response()).error
    assert error is not None
    assert (error.code, error.retryable) == ("context_too_long", False)
    assert error.detail["tried"] == [
        {"model": "openai/sandbox-1", "code": "context_too_long"},
        {"model": "groq/llama", "code": "provider_auth"},
    ]


async def test_a_refused_conversation_is_asked_again_shorter(bench: Bench) -> None:
    provider = saying(bench, [ContextTooLong("too long", provider="openai")], [Text("42"), STOP])
    bench.settings = bench.settings.model_copy(update={"max_retries": 5})
    await bench.accept(
        context={"history": [{"role": "user", "content": "x" * 2_000}, {"role": "assistant", "content": "y" * 2_000}]}
    )
    await prepare(bench)
    await run_until_over(bench)
    assert (await bench.response()).status == "completed"
    whole, shorter = (sum(len(one.content) for one in request.messages) for request in provider.requests)
    assert shorter < whole / 2 + 500


async def test_a_rate_limit_is_waited_for_and_shared(bench: Bench) -> None:
    provider = saying(
        bench,
        [ProviderRateLimited("slow down", provider="openai", retry_after_s=0.5)],
        [Text("1"), STOP],
        [Text("2"), STOP],
    )
    await prepare(bench)
    await bench.run("completion.1", complete)
    first = bench.execution_id
    await bench.accept()
    await prepare(bench)
    await bench.run("completion.1", complete)
    assert len(provider.requests) == 1, "the second is not sent into the same refusal"
    waits = (await told(bench, "agent_execution_progress"))[-1]
    assert (waits["stage"], waits["detail"]["code"]) == ("waiting", "provider_rate_limited")
    assert json.loads((await bench.record()).steps["completion.1"])["retries"] == 0, "a deferral is no retry"
    second, bench.execution_id = bench.execution_id, first
    await run_until_over(bench)
    bench.execution_id = second
    await run_until_over(bench)
    assert len(provider.requests) == 3


async def test_a_rate_limit_for_ever_ends_the_execution(bench: Bench) -> None:
    limited = ProviderRateLimited("slow down", provider="openai", retry_after_s=0.01)
    provider = saying(bench, *[[limited]] * 2)
    await prepare(bench)
    await run_until_over(bench)
    final = await bench.response()
    assert final.error is not None
    assert (final.error.code, final.error.retryable) == ("provider_rate_limited", True)
    assert len(provider.requests) == 2


async def test_the_fleet_stops_asking_a_provider_that_is_broken(bench: Bench) -> None:
    broken = ProviderOverloaded("in trouble", provider="openai")
    provider = saying(bench, *[[broken]] * 20)
    bench.settings = bench.settings.model_copy(update={"max_retries": 0})
    for _ in range(8):
        await bench.accept()
        await prepare(bench)
        await run_until_over(bench)
        final = await bench.response()
        assert final.error is not None
        assert final.error.code == "provider_overloaded"
    assert len(provider.requests) < 8, "once the breaker is open, nothing is asked"
    groq = PlayedProvider([Text("42"), STOP], name="groq")
    bench.others["providers"] = PlayedProviders(provider, groq)
    asked = len(provider.requests)
    await bench.accept()
    await prepare(bench, fallbacks=[GROQ])
    await bench.run("completion.1", complete)
    assert (await bench.response()).provider == "groq"
    assert len(provider.requests) == asked


async def test_a_budget_that_is_used_up_is_found_before_the_call(bench: Bench) -> None:
    provider = saying(bench, [Text("42"), STOP])
    await prepare(bench, usd_per_day=0.01)
    await bench.run("completion.1", complete)
    error = (await bench.response()).error
    assert error is not None
    assert (error.code, error.retryable) == ("budget_exceeded", False)
    assert "budget.usd_per_day" in error.message
    assert provider.requests == []
    assert (await spending(bench)).used.calls == 0


async def test_money_that_calls_under_way_may_give_back_is_waited_for(bench: Bench) -> None:
    provider = saying(bench, [Text("42"), STOP])
    await prepare(bench, usd_per_day=0.3)
    other = reservation.Attempt("acme", "other", 1)
    await bench.store.run(reservation.reserve(other, usd=0.25, tokens=1, limit_usd_per_day=0.3, holds_s=60))
    await bench.run("completion.1", complete)
    assert (await told(bench, "agent_execution_progress"))[-1]["detail"]["code"] == "budget_exceeded"
    assert provider.requests == []
    await bench.store.run(reservation.refund(other))
    await run_until_over(bench)
    assert (await bench.response()).status == "completed"


async def test_a_model_without_a_price_costs_nobody_knows_what(bench: Bench) -> None:
    unknown = USAGE.model_copy(update={"cost_usd": None})
    provider = saying(bench, [Text("42"), Finished("stop", (), unknown, "m")])
    provider.usd_per_token = None
    await prepare(bench, usd_per_day=0.001, limits=Limits(max_cost_usd=0.0))
    await bench.run("completion.1", complete)
    assert (await bench.response()).usage.cost_usd is None
    spent = await spending(bench)
    assert (spent.used.calls, spent.unpriced_calls, spent.used.cost_usd) == (1, 1, 0)


@pytest.mark.parametrize(
    ("limits", "name"),
    [(Limits(max_total_tokens=20), "max_total_tokens"), (Limits(max_cost_usd=0.002), "max_cost_usd")],
)
async def test_a_limit_without_room_is_found_before_the_call(bench: Bench, limits: Limits, name: str) -> None:
    provider = saying(bench, [Text("42"), STOP])
    await prepare(bench, limits=limits)
    await bench.run("completion.1", complete)
    error = (await bench.response()).error
    assert error is not None
    assert (error.code, error.detail["limit"]) == ("limit_exceeded", name)
    assert f"limits.{name}" in error.message
    assert provider.requests == []


@pytest.mark.parametrize(
    ("limits", "most"),
    [(Limits(max_total_tokens=110), 100), (Limits(max_cost_usd=0.05), 490), (Limits(), 1024)],
)
async def test_with_little_room_a_shorter_answer_is_asked_for(bench: Bench, limits: Limits, most: int) -> None:
    provider = saying(bench, [Text("42"), STOP])
    await prepare(bench, limits=limits)
    await bench.run("completion.1", complete)
    assert (await bench.response()).status == "completed"
    assert provider.requests[0].max_output_tokens == most


async def test_an_answer_that_ends_where_the_limits_do_is_no_answer(bench: Bench) -> None:
    saying(bench, [Text("forty"), Finished("length", (), USAGE, "m")])
    await prepare(bench, limits=Limits(max_total_tokens=110))
    await bench.run("completion.1", complete)
    final = await bench.response()
    assert final.error is not None
    assert (final.error.code, final.output.text, final.usage) == ("limit_exceeded", "forty", USAGE)
    assert "limits.max_total_tokens" in final.error.message


async def test_what_failed_attempts_used_counts_against_the_limits(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update={"max_retries": 5})
    provider = saying(bench, *[[ProviderOverloaded("busy", provider="openai")]] * 5)
    await prepare(bench, limits=Limits(max_total_tokens=50))
    await run_until_over(bench)
    error = (await bench.response()).error
    assert error is not None
    assert error.code == "limit_exceeded"
    assert len(provider.requests) == 3, "10 tokens each, and the fourth would not leave room for an answer"


async def test_what_the_last_attempt_used_is_in_the_response(bench: Bench) -> None:
    saying(bench, [Text("forty"), ProviderBadRequest("no", provider="openai")])
    await prepare(bench)
    await bench.run("completion.1", complete)
    final = await bench.response()
    assert (final.output.text, final.usage.total_tokens, final.usage.cost_usd) == ("forty", 10, 0.125)


async def test_a_step_that_is_handed_back_notes_what_it_has_used(bench: Bench) -> None:
    provider = saying(bench, [Text("forty"), HandBack()], [Text("42"), STOP])
    await prepare(bench)
    await bench.run("completion.1", complete)
    await run_until_over(bench)
    stored = (await bench.record()).result("completion.1")
    assert stored is not None
    answer = CompletionResponse.model_validate_json(stored)
    assert (answer.text, answer.wasted.total_tokens) == ("42", 10)
    assert (await spending(bench)).waste.calls == 1
    assert len(provider.requests) == 2


async def test_what_a_dead_worker_may_have_used_counts_as_its_prompt(bench: Bench) -> None:
    saying(bench, [Text("42"), STOP])
    await prepare(bench)
    await bench.store.run(ledger.claim(bench.ref("completion.1"), lease_s=0.001, worker="dead"))
    await bench.become_due()
    await bench.run("completion.1", complete)
    stored = (await bench.record()).result("completion.1")
    assert stored is not None
    assert CompletionResponse.model_validate_json(stored).wasted.prompt_tokens == 10
