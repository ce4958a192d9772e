"""OpenAI's own client on the whole service: another address, another key, and the id of an agent for the model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI

from sandbox.stack import QUESTION
from tests.service.conftest import NO_AUTHORITIES, Service

ASKED: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]


@pytest.fixture
def client(service: Service) -> Iterator[OpenAI]:
    transport = httpx2.Client(trust_env=False, verify=NO_AUTHORITIES)
    options: dict[str, Any] = {"base_url": f"{service.shim_url}/v1", "api_key": service.keys["acme"]}
    with OpenAI(**options, http_client=transport, timeout=30) as opened:
        yield opened


def test_an_answer_whole_and_streamed_with_tools_on_the_way(client: OpenAI, service: Service) -> None:
    completion = client.chat.completions.create(model="desk", messages=ASKED)
    assert "391" in (completion.choices[0].message.content or "")
    assert completion.usage is not None
    assert completion.usage.total_tokens > 0
    with client.chat.completions.create(model="desk", messages=ASKED, stream=True) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "391" in text
    assert chunks[-1].choices[0].finish_reason == "stop"
    with service.client() as ours:
        final = ours.wait("acme", chunks[0].id.removeprefix("chatcmpl-"), timeout_s=5)
    assert final.tool_calls
    assert text.endswith(final.output.text)


def test_an_agent_that_is_not_there_is_a_404_streamed_or_not(client: OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(NotFoundError) as raised:
            client.chat.completions.create(model="nobody", messages=ASKED, stream=stream)
        assert raised.value.code == "agent_not_found"


async def test_many_at_once_by_the_asynchronous_client(service: Service) -> None:
    transport = httpx2.AsyncClient(trust_env=False, verify=NO_AUTHORITIES)
    options: dict[str, Any] = {"base_url": f"{service.shim_url}/v1", "api_key": service.keys["acme"]}
    async with AsyncOpenAI(**options, http_client=transport, timeout=30) as client:

        async def ask(number: int) -> str:
            asked: Any = [{"role": "user", "content": f"What is {number} * 3?"}]
            return (await client.chat.completions.create(model="desk", messages=asked)).choices[0].message.content or ""

        answers = await asyncio.gather(*[ask(number) for number in range(10, 20)])
    assert [str(number * 3) in answer for number, answer in zip(range(10, 20), answers, strict=True)] == [True] * 10
