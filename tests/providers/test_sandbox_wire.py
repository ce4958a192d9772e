"""The sandbox's wire under our own providers: what users see first has to be what providers send."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from agent_exec.contract.completion import ChatMessage
from agent_exec.contract.tool import ToolDefinition
from agent_exec.errors import ModelNotFound, ProviderRateLimited
from agent_exec.settings import Settings
from providers.catalog import Providers
from providers.provider import Provider
from sandbox.app import create_app
from sandbox.serving import serving
from sandbox.toolbox import toolbox
from tests.providers.asking import ask, end_of, failure, request, said
from tests.providers.wire_server import TENANT

CALCULATOR = ToolDefinition.model_validate(toolbox()["calculator"].definition().model_dump())


@pytest.fixture
async def base_url() -> AsyncIterator[str]:
    async with serving(create_app(pace=0)) as url:
        yield url


@pytest.fixture
def key() -> str:
    return "sk-sandbox-test"


@pytest.fixture
async def provider(name: str, base_url: str, key: str) -> AsyncIterator[Provider]:
    """The sandbox as each kind of provider in turn."""
    endpoint = {"base_url": f"{base_url}/openai/v1", "api_key": key}
    providers = Providers(
        Settings(
            openai_api_key=key,
            openai_base_url=f"{base_url}/openai/v1",
            groq_api_key=key,
            groq_base_url=f"{base_url}/groq",
            providers={"local": endpoint},
        )
    )
    yield await providers.named(name, tenant_id=TENANT)
    await providers.aclose()


async def test_two_turns_and_a_tool(provider: Provider, base_url: str) -> None:
    question = ChatMessage(role="user", content="What is 17 * 23?")
    first = end_of(await ask(provider, request(model="sandbox-1", messages=[question], tools=[CALCULATOR])))
    assert first.reason == "tool_calls"
    [call] = first.tool_calls
    assert (call.name, call.decoded_arguments()) == ("calculator", {"expression": "17 * 23"})

    messages = [
        question,
        ChatMessage(role="assistant", tool_calls=[call]),
        ChatMessage(role="tool", tool_call_id=call.id, content='{"value": 391}'),
    ]
    deltas = await ask(provider, request(model="sandbox-1", messages=messages, tools=[CALCULATOR]))
    second = end_of(deltas)
    assert "391" in said(deltas)
    assert (second.reason, second.usage_estimated) == ("stop", False)
    assert 0 < second.usage.completion_tokens < second.usage.total_tokens

    async with httpx.AsyncClient(base_url=base_url, trust_env=False) as http:
        path = "/groq/journal" if provider.name == "groq" else "/openai/journal"
        calls = (await http.get(path)).json()["calls"]
    assert [one["outcome"] for one in calls] == ["finished", "finished"]
    assert {one["key_fingerprint"] for one in calls} == {provider.key_fingerprint[:12]}


@pytest.mark.parametrize("key", ["sk-sandbox-limited-1"])
async def test_a_limit_and_its_pause(provider: Provider) -> None:
    asked = request(model="sandbox-1")
    error = await failure(provider, asked)
    assert (type(error), error.retry_after_s) == (ProviderRateLimited, 1.0)
    assert said(await ask(provider, asked))


async def test_a_model_that_is_not_there(provider: Provider) -> None:
    assert type(await failure(provider, request(model="nobody"))) is ModelNotFound
