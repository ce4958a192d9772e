"""The scripted LLM under the real SDKs, over a real socket."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import jsonschema_rs
import openai
import pytest
from groq import AsyncGroq
from openai import AsyncOpenAI

from sandbox import llm
from sandbox.serving import serving
from sandbox.toolbox import toolbox

DEFINITIONS = {name: tool.definition() for name, tool in toolbox().items()}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }
    for tool in DEFINITIONS.values()
]
THREE_THINGS = "What is 17 * 23, what time is it in Oslo, and how many miles is 20 km?"


def asked(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}]


async def streamed(client: Any, **request: Any) -> tuple[str, dict[int, dict[str, str]], str | None, list[Any]]:
    """The joined text, the joined calls by index, the finish reason and all chunks."""
    text, calls, finish = "", {}, None
    chunks = [chunk async for chunk in await client.chat.completions.create(stream=True, **request)]
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for part in choice.delta.tool_calls or []:
                call = calls.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
                call["id"] += part.id or ""
                call["name"] += part.function.name or ""
                call["arguments"] += part.function.arguments or ""
    return text, calls, finish, chunks


@pytest.mark.parametrize("provider", ["openai", "groq"])
async def test_asks_for_several_tools_at_once_and_then_answers_from_their_results(
    provider: str, openai_client: AsyncOpenAI, groq_client: AsyncGroq
) -> None:
    client: Any = openai_client if provider == "openai" else groq_client
    messages = asked(THREE_THINGS)

    text, calls, finish, chunks = await streamed(client, model="sandbox-1", messages=messages, tools=TOOLS)

    assert text == ""
    assert finish == "tool_calls"
    assert [call["name"] for call in calls.values()] == ["calculator", "clock", "convert_units"]
    assert len({call["id"] for call in calls.values()}) == 3
    assert len(chunks) > 12, "the arguments come in pieces"
    for call in calls.values():
        jsonschema_rs.validate(DEFINITIONS[call["name"]].parameters, json.loads(call["arguments"]))

    results = {call["id"]: await toolbox()[call["name"]].call(json.loads(call["arguments"])) for call in calls.values()}
    messages += [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": call["id"], "type": "function", "function": {key: call[key] for key in ("name", "arguments")}}
                for call in calls.values()
            ],
        },
        *({"role": "tool", "tool_call_id": key, "content": json.dumps(result)} for key, result in results.items()),
    ]
    text, calls, finish, _ = await streamed(client, model="sandbox-1", messages=messages, tools=TOOLS)

    assert calls == {}
    assert finish == "stop"
    assert "17 * 23 is 391." in text
    assert "In Oslo it is " in text
    assert "20 kilometres are 12.4274 miles." in text


async def test_openai_counts_tokens_in_a_last_chunk_when_asked(openai_client: AsyncOpenAI) -> None:
    request = {"model": "gpt-4o-mini", "messages": asked("Write 40 words about work.")}

    text, _, finish, chunks = await streamed(openai_client, **request, stream_options={"include_usage": True})
    *_, unasked = (await streamed(openai_client, **request))[3]

    assert finish == "stop"
    assert len(text.split()) == 40
    usage = chunks[-1].usage
    assert chunks[-1].choices == []
    assert usage.completion_tokens == sum(bool(c.choices and c.choices[0].delta.content) for c in chunks)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert unasked.usage is None


async def test_groq_reports_usage_its_own_way(groq_client: AsyncGroq) -> None:
    _, _, _, chunks = await streamed(groq_client, model="llama-3.3-70b-versatile", messages=asked("Hello"))

    usage = chunks[-1].x_groq.usage
    assert usage.completion_tokens > 5
    assert usage.total_time > 0


async def test_groq_answers_in_one_piece_too(groq_client: AsyncGroq) -> None:
    whole: Any = await groq_client.chat.completions.create(model="sandbox-1", messages=asked("Hello"))  # type: ignore[arg-type]

    assert whole.choices[0].message.content.startswith("Hello!")
    assert whole.x_groq.id
    assert whole.usage.total_time > 0


async def test_says_the_same_in_one_piece(openai_client: AsyncOpenAI) -> None:
    whole: Any = await openai_client.chat.completions.create(model="sandbox-1", messages=asked("Hello"))  # type: ignore[arg-type]
    text, _, _, _ = await streamed(openai_client, model="sandbox-1", messages=asked("Hello"))
    called: Any = await openai_client.chat.completions.create(
        model="sandbox-1",
        messages=asked(THREE_THINGS),  # type: ignore[arg-type]
        tools=TOOLS,  # type: ignore[arg-type]
        parallel_tool_calls=False,
    )

    assert whole.choices[0].message.content == text
    assert whole.usage.completion_tokens > 0
    (call,) = called.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"expression": "17 * 23"}


async def test_honours_the_choice_of_tools(openai_client: AsyncOpenAI) -> None:
    async def names(choice: Any, question: str = "Tell me a joke.") -> list[str]:
        request = {"model": "sandbox-1", "messages": asked(question), "tools": TOOLS, "tool_choice": choice}
        return [call["name"] for call in (await streamed(openai_client, **request))[1].values()]

    assert await names("auto") == []
    assert await names("none", THREE_THINGS) == []
    assert await names("required") == ["calculator"]
    assert await names({"type": "function", "function": {"name": "slow"}}, THREE_THINGS) == ["slow"]


async def test_calls_a_tool_of_anybodys_when_it_is_spoken_of(openai_client: AsyncOpenAI) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    weather = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}

    _, calls, _, _ = await streamed(
        openai_client, model="sandbox-1", messages=asked("What is the weather in Bergen?"), tools=[weather]
    )

    assert calls[0]["name"] == "get_weather"
    assert json.loads(calls[0]["arguments"]) == {"city": "Bergen"}


async def test_stops_at_the_token_limit(openai_client: AsyncOpenAI) -> None:
    text, _, finish, _ = await streamed(
        openai_client, model="sandbox-1", messages=asked("Write 40 words about work."), max_completion_tokens=5
    )

    assert finish == "length"
    assert 1 <= len(text.split()) <= 5


async def test_answers_in_the_form_that_is_asked_for(openai_client: AsyncOpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "customer": {"type": "string"},
            "email": {"type": "string", "format": "email"},
            "quantity": {"type": "integer", "minimum": 1, "maximum": 10},
            "currency": {"enum": ["EUR", "USD"]},
            "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]+$"},
            "lines": {"type": "array", "minItems": 2, "uniqueItems": True, "items": {"$ref": "#/$defs/line"}},
            "note": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 10}]},
        },
        "required": ["customer", "email", "quantity", "currency", "code", "lines", "note"],
        "additionalProperties": False,
        "$defs": {"line": {"type": "string", "minLength": 3}},
    }
    question = "Order for Ada Lovelace, ada@lovelace.org: 3 boxes, reference XYZ-77, to be paid in USD."

    text, _, _, _ = await streamed(
        openai_client,
        model="sandbox-1",
        messages=asked(question),
        response_format={"type": "json_schema", "json_schema": {"name": "order", "schema": schema}},
    )

    order = json.loads(text)
    jsonschema_rs.validate(schema, order)
    assert order["customer"] == "Ada Lovelace"
    assert order["email"] == "ada@lovelace.org"
    assert order["quantity"] == 3
    assert order["currency"] == "USD"


async def test_quotes_the_documents_it_was_given(openai_client: AsyncOpenAI) -> None:
    messages = [
        {"role": "system", "content": "You are the librarian. Never guess."},
        {
            "role": "system",
            "content": "Documents:\n\n[d1]\nThe moon base opens in March. Bring warm socks.\n\n[d2]\nTea is free.",
        },
        {"role": "user", "content": "When does the moon base open?"},
    ]

    text, _, _, _ = await streamed(openai_client, model="sandbox-1", messages=messages)

    assert text == "From what I have here: The moon base opens in March."


async def test_sums_up_the_text_after_the_colon(openai_client: AsyncOpenAI) -> None:
    question = "Summarise this: The ship sank. Nobody saw it. The ship was old and the ship was slow."

    text, _, _, _ = await streamed(openai_client, model="sandbox-1", messages=asked(question))

    assert text == "The ship sank. The ship was old and the ship was slow."


async def test_refuses_as_openai_does(base_url: str, openai_client: AsyncOpenAI) -> None:
    create: Any = openai_client.chat.completions.create
    nameless: Any = openai_client.with_options(default_headers={"Authorization": ""})

    with pytest.raises(openai.NotFoundError) as unknown:
        await create(model="gpt-99", messages=asked("Hello"))
    with pytest.raises(openai.AuthenticationError):
        await nameless.chat.completions.create(model="sandbox-1", messages=asked("Hello"))
    with pytest.raises(openai.NotFoundError, match="Unknown request URL"):
        await openai_client.models.list()
    with pytest.raises(openai.BadRequestError, match="empty array"):
        await create(model="sandbox-1", messages=[])
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    with pytest.raises(openai.BadRequestError, match="had no response: c1"):
        await create(
            model="sandbox-1",
            messages=[*asked("Hello"), {"role": "assistant", "tool_calls": [call]}, *asked("Well?")],
        )

    assert unknown.value.code == "model_not_found"


async def test_limits_a_limited_key_once(base_url: str) -> None:
    async with AsyncOpenAI(api_key="sk-sandbox-limited", base_url=f"{base_url}/openai/v1", max_retries=0) as client:
        request: Any = {"model": "sandbox-1", "messages": asked("Hello")}
        with pytest.raises(openai.RateLimitError) as limited:
            await client.chat.completions.create(**request)
        await client.chat.completions.create(**request)

    assert limited.value.response.headers["retry-after"] == "1"


async def test_keeps_a_journal_of_calls_without_the_keys(openai_client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    await streamed(openai_client, model="sandbox-1", messages=asked("Hello"))
    with pytest.raises(openai.NotFoundError):
        await streamed(openai_client, model="gpt-99", messages=asked("Hello"))

    answer = await http.get("/openai/journal")
    first, second = answer.json()["calls"]

    assert (first["status"], first["outcome"], first["question"]) == (200, "finished", "Hello")
    assert first["tokens_sent"] > 5
    assert first["ended_at_ms"] >= first["at_ms"]
    assert (second["status"], second["outcome"]) == (404, "refused")
    assert "sk-sandbox-test" not in answer.text
    assert (await http.get("/openai/journal?after=1")).json()["calls"][0]["number"] == 2
    assert (await http.get("/groq/journal")).json()["calls"] == []


async def test_journals_the_turn_and_whose_texts_a_call_holds(
    openai_client: AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    called = {
        "id": "c1",
        "type": "function",
        "function": {"name": "calculator", "arguments": '{"expression": "2 * 3"}'},
    }
    earlier = [*asked("Hello"), {"role": "assistant", "content": "Hello! I am canary-globex."}]
    question = {"role": "user", "content": "canary-acme. What is 2 * 3?"}
    answered = [
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"expression": "2 * 3", "value": 6}'},
    ]
    await streamed(openai_client, model="sandbox-1", messages=[question], tools=TOOLS)
    await streamed(openai_client, model="sandbox-1", messages=[*earlier, question, *answered], tools=TOOLS)

    first, second = (await http.get("/openai/journal")).json()["calls"]

    assert (first["turn"], first["canaries"]) == (1, ["canary-acme"])
    assert (second["turn"], second["canaries"]) == (2, ["canary-acme", "canary-globex"])


async def test_notices_that_the_client_left() -> None:
    async with (
        serving(llm.create_app("openai", pace=1)) as url,
        AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client,
        httpx.AsyncClient(base_url=url) as http,
    ):
        stream: Any = await client.chat.completions.create(
            model="sandbox-1",
            messages=asked("Write 5000 words about work."),  # type: ignore[arg-type]
            stream=True,
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()

        call: dict[str, Any] = {"outcome": "open"}
        while call["outcome"] == "open":
            await asyncio.sleep(0.01)
            (call,) = (await http.get("/journal")).json()["calls"]

    assert call["outcome"] == "disconnected"
    assert 1 <= call["tokens_sent"] < 100


async def test_speaks_at_a_believable_pace() -> None:
    async with (
        serving(llm.create_app("openai", pace=1)) as url,
        AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client,
    ):
        begun_s = time.monotonic()
        stream: Any = await client.chat.completions.create(model="sandbox-1", messages=asked("Hi"), stream=True)  # type: ignore[arg-type]
        arrivals_s = [time.monotonic() - begun_s async for _ in stream]

    assert arrivals_s[0] >= llm.FIRST_TOKEN_S * (1 - llm.JITTER)
    tokens = len(arrivals_s) - 3
    assert arrivals_s[-1] - arrivals_s[0] >= tokens * llm.TOKEN_S * (1 - llm.JITTER)


async def test_goes_wrong_as_ordered(openai_client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    faults = [{"status": 429, "retry_after_s": 2}, {"cut_after_tokens": 3}, {"status": 503, "times": None}]
    assert (await http.put("/openai/faults", json=faults)).status_code == 204
    request = {"model": "sandbox-1", "messages": asked("Write 50 words about work.")}

    with pytest.raises(openai.RateLimitError) as refused:
        await streamed(openai_client, **request)
    text, _, finish, _ = await streamed(openai_client, **request)
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            await streamed(openai_client, **request)
    assert (await http.put("/openai/faults", json=[])).status_code == 204
    whole, *_ = await streamed(openai_client, **request)

    assert refused.value.response.headers["retry-after"] == "2"
    assert finish is None
    assert text
    assert whole.startswith(text)
    assert len(text.split()) < 5 < len(whole.split())


async def test_faults_that_cannot_be_are_refused(http: httpx.AsyncClient) -> None:
    for order in ("{", '[{"status": 99}]', '[{"color": "red"}]'):
        assert (await http.put("/openai/faults", content=order)).status_code == 400
