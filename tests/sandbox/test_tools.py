"""The Tool Registry over HTTP."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from agent_exec.contract.tool import ToolError, ToolFailure, ToolList, ToolResult
from sandbox import tools
from sandbox.serving import serving
from sandbox.toolbox import BadArguments, toolbox

EXECUTION = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"


async def execute(
    http: httpx.AsyncClient, name: str, arguments: dict[str, Any], *, key: str | None = None, prefix: str = "/registry"
) -> httpx.Response:
    body = {
        "tenant_id": "acme",
        "agent_id": "desk",
        "execution_id": EXECUTION,
        "tool_call_id": "c1",
        "arguments": arguments,
    }
    headers = {"X-Tenant-Id": "acme"} | ({"Idempotency-Key": key} if key else {})
    return await http.post(f"{prefix}/v1/tools/{name}/execute", json=body, headers=headers)


async def test_lists_tools_of_the_contract(http: httpx.AsyncClient) -> None:
    answer = await http.get("/registry/v1/tenants/acme/agents/desk/tools")

    listed = {tool.name: tool for tool in ToolList.model_validate_json(answer.content).tools}
    assert listed["calculator"].effect == "read"
    assert listed["send_note"].effect == "effect"
    assert listed["publish_note"].requires_approval
    assert listed["slow"].timeout_s > 30


@pytest.mark.parametrize(
    ("name", "arguments", "part"),
    [
        ("calculator", {"expression": "(12 + 3) * 4 / 8"}, {"value": 7.5}),
        ("calculator", {"expression": "0.1 + 0.2"}, {"value": 0.3}),
        ("calculator", {"expression": "sqrt(2^10)"}, {"value": 32.0}),
        ("convert_units", {"value": 100, "from_unit": "C", "to_unit": "Fahrenheit"}, {"result": 212.0}),
        ("convert_units", {"value": 26.2, "from_unit": "miles", "to_unit": "km"}, {"result": 42.1648128}),
        ("send_note", {"recipient": "ada", "text": "Hi"}, {"delivered_to": "ada"}),
        ("slow", {"seconds": 0.01}, {"slept_s": 0.01}),
    ],
)
async def test_the_tools_work(name: str, arguments: dict[str, Any], part: dict[str, Any]) -> None:
    result = await toolbox()[name].call(arguments)

    assert isinstance(result, dict)
    assert result.items() >= part.items()


async def test_finds_the_passage_about_travel(http: httpx.AsyncClient) -> None:
    result = (await execute(http, "search_documents", {"query": "booking flights for travel"})).json()["result"]
    nothing = (await execute(http, "search_documents", {"query": "dragons"})).json()["result"]

    assert result["documents"][0]["title"] == "Travel"
    assert nothing == {"documents": []}


async def test_tells_the_time_where_it_is_asked_for() -> None:
    noon = toolbox(now=lambda: datetime(2026, 7, 1, 12, 30, tzinfo=UTC))
    async with serving(tools.create_app(tools=noon)) as url, httpx.AsyncClient(base_url=url) as http:
        told = [
            (await execute(http, "clock", {"city": city}, prefix="")).json()["result"]["time"]
            for city in ("Oslo", "New York", "san francisco", "Asia/Kolkata", "UTC")
        ]

    assert told == ["14:30", "08:30", "05:30", "18:00", "12:30"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("calculator", {}),
        ("calculator", {"expression": 3}),
        ("calculator", {"expression": "1 + 1", "extra": True}),
        ("calculator", {"expression": "__import__('os').system('true')"}),
        ("calculator", {"expression": "9 ** 9 ** 9"}),
        ("calculator", {"expression": "1e308 * 10"}),
        ("calculator", {"expression": "(-8) ** 0.5"}),
        ("calculator", {"expression": "1 / 0"}),
        ("calculator", {"expression": "2^4096"}),
        ("calculator", {"expression": "1" * 400}),
        ("calculator", {"expression": "2 +"}),
        ("calculator", {"expression": "(" * 150 + "1" + ")" * 150}),
        ("calculator", {"expression": "True + 1"}),
        ("clock", {"city": "Atlantis"}),
        ("convert_units", {"value": 1, "from_unit": "km", "to_unit": "kg"}),
        ("convert_units", {"value": 1, "from_unit": "parsnip", "to_unit": "kg"}),
        ("slow", {"seconds": 31}),
    ],
)
async def test_the_tools_refuse_bad_arguments(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(BadArguments, match=r"\w"):
        await toolbox()[name].call(arguments)


async def test_answers_with_the_result_or_with_the_reason(http: httpx.AsyncClient) -> None:
    good = await execute(http, "calculator", {"expression": "6 * 7"}, key="k1")
    bad = await execute(http, "calculator", {"expression": "1 / 0"}, key="k2")

    assert good.status_code == 200
    assert ToolResult.model_validate_json(good.content).result == {"expression": "6 * 7", "value": 42}
    assert bad.status_code == 400
    assert ToolFailure.model_validate_json(bad.content).error == ToolError(
        code="bad_arguments", message="division by zero"
    )


async def test_an_effect_happens_once_for_its_key(http: httpx.AsyncClient) -> None:
    note = {"recipient": "ada", "text": "Hi"}

    answers = await asyncio.gather(*(execute(http, "send_note", note, key="k1") for _ in range(5)))
    other = await execute(http, "send_note", {**note, "text": "Bye"}, key="k1")
    keyless = await execute(http, "send_note", note)
    journal = (await http.get("/registry/journal")).json()

    assert {answer.text for answer in answers} == {answers[0].text}
    assert other.status_code == 409
    assert keyless.json()["error"]["code"] == "idempotency_key_required"
    assert journal["effects"] == {"k1": 1}
    assert [call["repeated"] for call in journal["calls"]] == [False, True, True, True, True, True]


async def test_journals_whose_texts_a_call_holds(http: httpx.AsyncClient) -> None:
    note = {"recipient": "ada", "text": "canary-globex was here, not canary-acme"}
    await execute(http, "send_note", note, key="k1")

    [call] = (await http.get("/registry/journal")).json()["calls"]

    assert call["canaries"] == ["canary-acme", "canary-globex"]


async def test_a_key_whose_call_failed_is_free_again(http: httpx.AsyncClient) -> None:
    failed = await execute(http, "calculator", {"expression": "1 / 0"}, key="k1")
    again = await execute(http, "calculator", {"expression": "1 / 1"}, key="k1")

    assert (failed.status_code, again.status_code) == (400, 200)


async def test_refuses_strangers_unknown_tools_and_mixed_up_tenants(base_url: str, http: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=base_url) as stranger:
        unauthorized = await stranger.get("/registry/v1/tenants/acme/agents/desk/tools")
    unknown = await execute(http, "teleport", {})
    body = {"tenant_id": "acme", "agent_id": "desk", "execution_id": EXECUTION, "tool_call_id": "c1", "arguments": {}}
    mixed = await http.post("/registry/v1/tools/clock/execute", json=body, headers={"X-Tenant-Id": "globex"})
    broken = await http.post("/registry/v1/tools/clock/execute", content=b"{")

    assert unauthorized.status_code == 401
    assert unauthorized.json()["error"]["code"] == "unauthorized"
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "tool_not_found")
    assert (mixed.status_code, mixed.json()["error"]["code"]) == (403, "tenant_mismatch")
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_request")
