"""The step that sums up what no longer fits: asked on the agent's route, paid for, and not streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_exec.contract.agent import AgentConfig, ContextWindow, ModelChoice, Tenant
from agent_exec.contract.completion import Usage
from agent_exec.errors import ContextTooLong, ProviderBadRequest, ProviderOverloaded, ProviderRateLimited
from providers.provider import Finished, Reasoning, Text
from tasks.journal import Journal, Snapshot
from tasks.next_step import Summarise
from tasks.operation import operate
from tasks.step import Done
from tests.tasks.conftest import Bench, returning
from tests.tasks.test_completion import STOP, USAGE, PlayedProvider, PlayedProviders, saying

STEP = "operation.summary.1"
GROQ = ModelChoice(provider="groq", model="llama")
HISTORY = [{"role": "user", "content": f"{number} {'x' * 1_000}"} for number in range(6)]


@pytest.fixture
async def desk(bench: Bench) -> Bench:
    """An execution whose history does not fit its agent's window."""
    await prepare(bench, HISTORY)
    return bench


async def prepare(bench: Bench, history: list[dict[str, str]]) -> None:
    await bench.accept(context={"history": history})
    config = AgentConfig(
        agent_id="desk",
        provider="openai",
        model="sandbox-1",
        fallbacks=[GROQ],
        max_output_tokens=100,
        context=ContextWindow(policy="summarise", max_tokens=1_000),
    )
    fixed = Snapshot(config=config, tenant=Tenant(tenant_id="acme"))
    await bench.run("prompt", returning(Done(fixed.model_dump_json(), [], Summarise(1), snapshot=fixed)))


async def journal(desk: Bench) -> Journal:
    return Journal(await desk.record())


async def told(desk: Bench) -> list[dict[str, Any]]:
    return [json.loads(event.json) for event in await desk.events() if event.name == "agent_execution_progress"]


async def test_a_summary_is_journaled_paid_and_told_and_the_turn_follows(desk: Bench) -> None:
    provider = saying(desk, [Text("They "), Reasoning("hm"), Text("said x."), STOP])
    await desk.run(STEP, operate)
    so_far = await journal(desk)
    assert (so_far.summary.covers, so_far.summary.text) == (5, "They said x.")
    assert (so_far.usage, so_far.spent) == (USAGE, USAGE)
    [request] = provider.requests
    assert (request.tools, request.response_format, request.max_output_tokens) == ([], None, 100)
    assert (await told(desk))[-1] == {
        "stage": "thinking",
        "step": STEP,
        "turn": 1,
        "detail": {"policy": "summarise", "summarised": 5},
    }
    assert "agent_response_token" not in await desk.logged()
    assert '"state":"queued"' in (await desk.record()).steps["completion.1"]


async def test_where_all_fits_nobody_is_asked(bench: Bench) -> None:
    await prepare(bench, HISTORY[:1])
    provider = saying(bench)
    await bench.run(STEP, operate)
    assert (await journal(bench)).summary.covers == 0
    assert provider.requests == []
    assert '"state":"queued"' in (await bench.record()).steps["completion.1"]


async def test_a_fallback_sums_up_where_the_first_model_fails(desk: Bench) -> None:
    groq = PlayedProvider([Text("short"), STOP], name="groq")
    saying(desk, [Text("They"), ProviderBadRequest("no", provider="openai")], beside=groq)
    await desk.run(STEP, operate)
    assert '"state":"waiting"' in (await desk.record()).steps[STEP]
    await desk.become_due()
    await desk.run(STEP, operate)
    so_far = await journal(desk)
    assert so_far.summary.text == "short"
    assert so_far.usage == USAGE
    assert so_far.spent.total_tokens == USAGE.total_tokens + 10, "the failed call's prompt was paid for"


async def test_a_summary_too_long_to_be_asked_for_is_asked_for_shorter(desk: Bench) -> None:
    too_long = ContextTooLong("too long", provider="openai")
    groq = PlayedProvider([ContextTooLong("too long", provider="groq")], name="groq")
    provider = saying(desk, [too_long], [Text("short"), STOP], beside=groq)
    while (await desk.record()).result(STEP) is None:
        await desk.run(STEP, operate)
        if (await desk.record()).result(STEP) is None:
            await desk.become_due()
    first, second = provider.requests
    assert len(second.messages[1].content) == len(first.messages[1].content) // 2
    assert len(groq.requests) == 1, "the other model comes before a shorter conversation"


async def test_a_filtered_summary_is_a_gap(desk: Bench) -> None:
    saying(desk, [Text("I cannot"), Finished("content_filter", (), USAGE, "m")])
    await desk.run(STEP, operate)
    assert ((await journal(desk)).summary.covers, (await journal(desk)).summary.text) == (5, "")


async def test_a_provider_that_has_no_room_is_waited_for(desk: Bench) -> None:
    limited = ProviderRateLimited("slow down", provider="openai", retry_after_s=0.2)
    provider = saying(desk, [limited], [Text("They said x."), STOP], beside=PlayedProvider([limited], name="groq"))
    desk.settings = desk.settings.model_copy(update={"max_retries": 5})
    while (await desk.record()).result(STEP) is None:
        await desk.run(STEP, operate)
        if (await desk.record()).result(STEP) is None:
            await desk.become_due()
    assert (await journal(desk)).summary.text == "They said x."
    assert len(provider.requests) == 2


async def test_no_provider_that_is_configured_ends_the_execution_without_a_call(desk: Bench) -> None:
    desk.others["providers"] = PlayedProviders()
    await desk.run(STEP, operate)
    error = (await desk.response()).error
    assert error is not None
    assert error.code == "provider_not_configured"


async def test_a_stream_that_just_ends_is_no_summary(desk: Bench) -> None:
    saying(desk, [Text("They")], [Text("They said x."), STOP], beside=PlayedProvider([Text("g"), STOP], name="groq"))
    await desk.run(STEP, operate)
    assert (await told(desk))[-1]["detail"]["code"] == "provider_protocol"


async def test_no_model_that_sums_up_ends_the_execution(desk: Bench) -> None:
    busy = ProviderOverloaded("busy", provider="openai", retry_after_s=0.01)
    broken = ProviderBadRequest("no", provider="groq")
    saying(desk, *[[busy]] * 5, beside=PlayedProvider(*[[broken]] * 5, name="groq"))
    while (await desk.record()).response is None:
        await desk.run(STEP, operate)
        if (await desk.record()).response is None:
            await desk.become_due()
    final = await desk.response()
    assert final.error is not None
    assert (final.error.code, final.turns) == ("provider_overloaded", 0)
    assert final.usage != Usage()
