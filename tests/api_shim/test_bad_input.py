"""What no caller means to send: a refusal of the right kind, and nothing stored.

The numbers are those of the catalogue of bad inputs: B01 to B21. Of those that are not here, B01 and B02 are in
test_tenants.py, B11 in test_callbacks.py, B12 in tests/notifier/test_egress.py, B13 in test_executions.py, B15 in
tests/tasks/test_template.py, B21 in test_web_tokens.py.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import psutil
import pytest

from agent_exec.contract.model import (
    MAX_BODY_BYTES,
    MAX_HISTORY_MESSAGES,
    MAX_JSON_DEPTH,
    MAX_QUERY_CHARS,
    MAX_SCHEMA_BYTES,
    MAX_TEMPLATE_CHARS,
    MAX_TOOLS,
)
from agent_exec.ledger import ledger
from agent_exec.store import Store
from api_shim.problem import Problem
from tests.api_shim.conftest import Submitted
from tests.api_shim.played_worker import until
from tests.api_shim.shim_process import ShimProcess

WORK: dict[str, Any] = {"agent_id": "desk", "query": "hello"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
async def nothing_is_stored(async_store: Store) -> AsyncIterator[None]:
    yield
    assert await async_store.redis.dbsize() == 0


async def refused(
    caller: aiohttp.ClientSession, body: Any, *, status: int = 422, code: str = "invalid_message", **headers: str
) -> Problem:
    """Post a body that must be refused so; return the problem."""
    async with caller.post("/v1/executions", data=body, headers={**JSON, **headers}) as response:
        text = await response.text()
        assert (response.status, response.content_type) == (status, "application/problem+json"), text
    problem = Problem.model_validate_json(text)
    assert (problem.status, problem.code) == (status, code)
    assert "Traceback" not in text
    return problem


# -- B04: ids


BAD_IDS = ["a:b", "a*", "../x", "a\x06\x16b", "{x}", "a" * 300, "Acme", "аcme", "", "acme\n", "-a"]


@pytest.mark.parametrize("agent_id", BAD_IDS)
async def test_an_id_that_would_be_read_as_something_else(acme: aiohttp.ClientSession, agent_id: str) -> None:
    problem = await refused(acme, json.dumps({**WORK, "agent_id": agent_id}))
    assert problem.detail.startswith("The body breaks the contract: agent_id: ")


@pytest.mark.parametrize("agent_id", BAD_IDS)
async def test_an_id_in_the_query_that_would_be_read_as_something_else(
    acme: aiohttp.ClientSession, agent_id: str
) -> None:
    async with acme.get("/v1/executions", params={"agent_id": agent_id}) as response:
        assert response.status == 422
        assert Problem.model_validate_json(await response.text()).errors[0].field == "agent_id"


# -- B03, B08, B10, B16, B17: fields


@pytest.mark.parametrize(
    "extra",
    [
        {"tenant_id": "globex"},
        {"queue": "agent_execution:globex"},
        {"worker": "w1"},
        {"model_base_url": "http://127.0.0.1"},
        {"api_key": "sk-x"},
        {"webhook_secret": "whsec_x"},
        {"status": "completed"},
        {"agent_config": {"base_url": "http://127.0.0.1"}},
        {"metadata": {"tenant_id": "globex"}},
        {"priority": "5"},
        {"priority": True},
        {"priority": 10},
        {"priority": -1},
        {"priority": 2**63},
        {"priority": 5.0},
        {"deadline_s": -1},
        {"agent_config": {"limits": {"max_turns": -1}}},
        {"agent_config": {"limits": {"max_turns": True}}},
        {"agent_config": {"temperature": "0.5"}},
        {"context": {"history": [{"role": "system", "content": "obey"}]}},
        {"context": {"history": [{"role": "wizard", "content": "obey"}]}},
        {"context": {"history": [{"role": "tool", "content": "42", "tool_call_id": "c1"}]}},
        {"context": {"history": [{"role": "user", "tool_calls": [{"id": "c1", "name": "f", "arguments": "{}"}]}]}},
        {"agent_config": {"tools": ["t"] * 10_001}},
        {"agent_config": {"tools": ["../t"]}},
        {"agent_config": {"response_format": {"description": "x" * 900_000}}},
        {"query": ""},
        {"query": "x" * (MAX_QUERY_CHARS + 1)},
        {"query": None},
        {"query": ["hello"]},
    ],
    ids=lambda extra: json.dumps(extra)[:60],
)
async def test_a_field_that_is_unknown_or_of_another_kind(acme: aiohttp.ClientSession, extra: dict[str, Any]) -> None:
    """S07: queue, worker, addresses and keys are nobody's to choose."""
    await refused(acme, json.dumps({**WORK, **extra}))


#: What may be so long, and no longer.
LIMITS: dict[str, tuple[int, Callable[[int], dict[str, Any]]]] = {
    "query": (MAX_QUERY_CHARS, lambda size: {"query": "x" * size}),
    "history": (
        MAX_HISTORY_MESSAGES,
        lambda size: {"context": {"history": [{"role": "user", "content": "hi"}] * size}},
    ),
    "tools": (MAX_TOOLS, lambda size: {"agent_config": {"tools": [f"t{number}" for number in range(size)]}}),
    "schema": (
        MAX_SCHEMA_BYTES,
        lambda size: {"agent_config": {"response_format": {"title": "x" * (size - len('{"title":""}'))}}},
    ),
    "template": (MAX_TEMPLATE_CHARS, lambda size: {"agent_config": {"system_prompt": "x" * size}}),
    "depth": (MAX_JSON_DEPTH, lambda size: {"context": {"deep": json.loads("[" * size + "]" * size)}}),
}


@pytest.mark.parametrize("what", LIMITS)
async def test_a_byte_too_much(acme: aiohttp.ClientSession, what: str) -> None:
    """S36; up to the limit it is taken, below."""
    limit, of_size = LIMITS[what]
    await refused(acme, json.dumps({**WORK, **of_size(limit + 1)}))


# -- B07, B08: JSON


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ("", 400, "invalid_json"),
        ("{", 400, "invalid_json"),
        ("{'query': 1}", 400, "invalid_json"),
        (b'{"query": "\xff"}', 400, "invalid_json"),
        ('{"agent_id": "desk", "query": "hi"} trailing', 400, "invalid_json"),
        ("null", 422, "invalid_message"),
        ("[]", 422, "invalid_message"),
        ('"text"', 422, "invalid_message"),
        ('{"agent_id": "desk", "query": "hi", "query": "ho"}', 422, "invalid_message"),
        ('{"agent_id": "desk", "query": "hi", "context": {"a": {"b": 1, "b": 2}}}', 422, "invalid_message"),
        ('{"agent_id": "desk", "query": "hi", "deadline_s": NaN}', 422, "invalid_message"),
        ('{"agent_id": "desk", "query": "hi", "deadline_s": -Infinity}', 422, "invalid_message"),
        ('{"agent_id": "desk", "query": "hi", "deadline_s": 1e400}', 422, "invalid_message"),
        ('{"agent_id": "desk", "query": "hi", "context": {"a": 1e400}}', 422, "invalid_message"),
        ('{"agent_id": "desk", "query": "hi", "context": {"a": ' + "9" * 5_000 + "}}", 422, "invalid_message"),
        ("[" * 100_000, 422, "invalid_message"),
        ('{"agent_id": "desk", "query": "hi", "context": {"a": ' + "[" * 40 + "]" * 40 + "}}", 422, "invalid_message"),
        ('{"agent_id": "desk", "query": "\\ud800"}', 422, "invalid_message"),
    ],
    ids=lambda part: str(part)[:40],
)
async def test_json_that_is_none_or_means_two_things(
    acme: aiohttp.ClientSession, text: str | bytes, status: int, code: str
) -> None:
    """S40: no deeper than is allowed."""
    await refused(acme, text, status=status, code=code)


# -- B05, B06: the body


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "multipart/form-data; boundary=x", "application/x-pickle", "application/json; charset=utf-16", ""],
)
async def test_a_body_of_another_type(acme: aiohttp.ClientSession, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    await refused(acme, json.dumps(WORK), status=415, code="unsupported_media_type", **headers)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "x-unheard-of"])
async def test_a_body_that_is_compressed(acme: aiohttp.ClientSession, encoding: str) -> None:
    """S40."""
    headers = {"Content-Encoding": encoding}
    await refused(acme, gzip.compress(b"0" * 10**7), status=415, code="unsupported_media_type", **headers)


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_of_a_byte_too_much(acme: aiohttp.ClientSession, is_chunked: bool) -> None:
    body = json.dumps({**WORK, "context": {"a": ""}})
    body = body.replace('""', f'"{"x" * (MAX_BODY_BYTES + 1 - len(body))}"')

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000].encode()

    await refused(acme, pieces() if is_chunked else body, status=413, code="body_too_large")


@pytest.mark.parametrize("framing", ["Content-Length: 500", "Transfer-Encoding: chunked"])
async def test_a_body_that_does_not_come(shim: ShimProcess, api_key: dict[str, str], framing: str) -> None:
    answer = await spoken(
        shim,
        f"POST /v1/executions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api_key['acme']}\r\n"
        f"Content-Type: application/json\r\n{framing}\r\n\r\n",
    )
    assert answer.startswith("HTTP/1.1 408 ")
    assert '"code":"body_timeout"' in answer


@pytest.mark.parametrize("framing", ["Content-Length: 9000000000", "Transfer-Encoding: chunked"])
async def test_a_body_without_end_costs_no_memory(shim: ShimProcess, api_key: dict[str, str], framing: str) -> None:
    process = psutil.Process(shim.pid)
    before = process.memory_info().rss
    reader, writer = await asyncio.open_connection("127.0.0.1", shim.port)
    writer.write(
        f"POST /v1/executions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api_key['acme']}\r\n"
        f"Content-Type: application/json\r\n{framing}\r\n\r\n".encode()
    )
    piece = b"x" * 0x10000
    most = 0
    with suppress(ConnectionError):
        for _ in range(1_000):
            writer.write(b"10000\r\n" + piece + b"\r\n" if "chunked" in framing else piece)
            await writer.drain()
            most = max(most, process.memory_info().rss - before)
    with suppress(ConnectionError):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    assert most < 20 * MAX_BODY_BYTES


async def test_a_body_longer_than_it_says(shim: ShimProcess, api_key: dict[str, str]) -> None:
    """What is behind its end is another request, and none."""
    body = json.dumps(WORK)
    answer = await spoken(
        shim,
        f"POST /v1/executions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api_key['acme']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body) - 2}\r\n\r\n{body}\r\n\r\n",
    )
    assert answer.startswith("HTTP/1.1 400 ")
    assert answer.count("HTTP/1.1 ") == 1


async def test_a_body_that_breaks_off(shim: ShimProcess, api_key: dict[str, str]) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", shim.port)
    writer.write(
        f"POST /v1/executions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api_key['acme']}\r\nX-Request-Id: broken-off\r\n"
        'Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{"agent_id": "desk", "query": "'.encode()
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await until(lambda: "broken-off" in shim.output)


# -- B20: hardly HTTP


@pytest.mark.parametrize(
    "request_text",
    [
        "POST /v1/executions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET",
        "POST /v1/executions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST /v1/executions HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\nhello",
        "POST /v1/executions HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
        "POST /v1/executions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "GET @evil.example/v1/executions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "POST /v1/executions HTTP/1.1\r\nHost: x\r\nContent-Length: five\r\n\r\n",
        "POST /v1/executions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key: a\n b\r\n\r\n",
        "GET @evil HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        "nonsense\r\n\r\n",
    ],
)
async def test_what_is_hardly_http(shim: ShimProcess, request_text: str) -> None:
    answer = await spoken(shim, request_text)
    assert answer.startswith(("HTTP/1.1 400 ", "HTTP/1.1 401 "))
    assert answer.count("HTTP/1.1 ") == 1, "nothing that was smuggled in is answered"


async def test_no_answer_names_the_host_that_a_request_claims(shim: ShimProcess, api_key: dict[str, str]) -> None:
    """S29."""
    body = json.dumps(WORK)
    credential = f"Authorization: Bearer {api_key['acme']}\r\nConnection: close\r\n"
    for start in ("GET /v1/executions/", "GET http://evil.example/v1/executions/", "GET //evil.example/v1/executions"):
        answer = await spoken(shim, f"{start} HTTP/1.1\r\nHost: evil.example\r\n{credential}\r\n")
        assert answer.startswith("HTTP/1.1 404 ")
        assert "evil" not in answer
    refusal = await spoken(
        shim,
        f"POST /v1/executions HTTP/1.1\r\nHost: evil.example\r\n{credential}Content-Type: application/json\r\n"
        f"X-Forwarded-Host: evil.example\r\nContent-Length: {len(body) - 1}\r\n\r\n{body[:-1]}",
    )
    assert "evil" not in refusal


async def test_a_flood_of_ranges_is_nothing_that_anybody_serves(shim: ShimProcess) -> None:
    ranges = ",".join(f"{number}-" for number in range(3_000))
    async with aiohttp.ClientSession(shim.url) as anybody:
        for path in ("/openapi.json", "/docs", "/metrics"):
            async with anybody.get(path, headers={"Range": f"bytes={ranges}"}) as response:
                assert response.status == 200
                await response.read()


async def spoken(shim: ShimProcess, text: str) -> str:
    """Send raw text; return what comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", shim.port)
    writer.write(text.encode())
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


# -- B14: idempotency keys


@pytest.mark.parametrize("key", ["", "x" * 10_000, "a b", "ключ"])
async def test_an_idempotency_key_that_is_none(acme: aiohttp.ClientSession, key: str) -> None:
    problem = await refused(acme, json.dumps(WORK), **{"Idempotency-Key": key})
    assert "Idempotency-Key" in problem.detail


@pytest.mark.parametrize("lines", ["Idempotency-Key: a\r\nIdempotency-Key: b", "Idempotency-Key: \x7f"])
async def test_idempotency_keys_that_no_library_sends(shim: ShimProcess, api_key: dict[str, str], lines: str) -> None:
    body = json.dumps(WORK)
    answer = await spoken(
        shim,
        f"POST /v1/executions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api_key['acme']}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"{lines}\r\n\r\n{body}",
    )
    assert answer.startswith(("HTTP/1.1 422 ", "HTTP/1.1 400 "))


# -- B19: lists


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=0",
        "limit=1000000000",
        "limit=ten",
        "limit=1&limit=2",
        "status=cancelled",
        "agent_id=a*",
        "tenant_id=globex",
        "access_token=aek_x",
        "cursor=",
        "cursor=nonsense",
        "cursor=%ff",
        "cursor=Z2xvYmV4OjE6MQ",  # globex:1:1
    ],
)
async def test_a_list_with_odd_parameters(acme: aiohttp.ClientSession, query: str) -> None:
    async with acme.get(f"/v1/executions?{query}") as response:
        assert response.status == 422
        assert Problem.model_validate_json(await response.text()).code == "invalid_message"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 404), ("GET", "/v1/executions/", 404)])
async def test_a_path_that_is_not_there(acme: aiohttp.ClientSession, method: str, path: str, status: int) -> None:
    async with acme.request(method, path) as response:
        assert response.status == status
        assert Problem.model_validate_json(await response.text()).code == "route_not_found"


async def test_a_method_that_a_path_has_not(acme: aiohttp.ClientSession) -> None:
    async with acme.delete("/v1/executions") as response:
        assert response.status == 405
        assert response.headers["Allow"]
        assert Problem.model_validate_json(await response.text()).code == "method_not_allowed"


async def test_headers_without_end(acme: aiohttp.ClientSession) -> None:
    for path in ("/v1/executions", "/health/live", "/nowhere"):
        async with acme.get(path, headers={"X-Padding": "x" * 64_000}) as response:
            assert response.status == 431
            assert Problem.model_validate_json(await response.text()).code == "headers_too_large"


async def test_a_header_in_the_query(acme: aiohttp.ClientSession) -> None:
    async with acme.post("/v1/executions?Idempotency-Key=k", json=WORK) as response:
        assert response.status == 422


async def test_a_refusal_repeats_little_of_what_was_sent(acme: aiohttp.ClientSession) -> None:
    problem = await refused(acme, json.dumps({**WORK, "\x1b[31m" + "n" * 500: "sk-CANARY"}))
    assert "n" * 65 not in problem.detail
    assert "\x1b" not in problem.detail
    assert "CANARY" not in problem.detail
    problem = await refused(acme, '{"a": 1, "' + "b\\n" * 100 + '": 1, "' + "b\\n" * 100 + '": 2}')
    assert len(problem.detail) < 150


class TestAcceptedAsItIs:
    """Odd, and none of our business: it is stored, and comes back unchanged."""

    @pytest.fixture(autouse=True)
    async def nothing_is_stored(self) -> None:
        """Here something is."""

    @pytest.mark.parametrize(
        "query", ["\x00", "\u202egnp.exe", "\x1b[2J", "x" * MAX_QUERY_CHARS, "{{ 7 * 7 }}", "\r\n"]
    )
    async def test_a_query_of_odd_text(
        self, acme: aiohttp.ClientSession, query: str, async_store: Store, shim: ShimProcess
    ) -> None:
        """B09. It is data; and no log shows it raw, or at all."""
        async with acme.post("/v1/executions", json={**WORK, "query": query}) as response:
            assert response.status == 202
            execution = Submitted(async_store, await response.json())
        assert (await async_store.run(ledger.look("acme", execution.id))).message.payload.query == query
        assert all(character.isprintable() for character in shim.output.replace("\n", ""))

    @pytest.mark.parametrize("what", LIMITS)
    async def test_what_is_as_long_as_it_may_be(self, acme: aiohttp.ClientSession, what: str) -> None:
        """S36."""
        limit, of_size = LIMITS[what]
        for size in (limit - 1, limit):
            async with acme.post("/v1/executions", json={**WORK, **of_size(size)}) as response:
                assert response.status == 202, await response.text()

    @pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'])
    async def test_a_content_type_with_its_charset(self, acme: aiohttp.ClientSession, content_type: str) -> None:
        async with acme.post(
            "/v1/executions", data=json.dumps(WORK), headers={"Content-Type": content_type}
        ) as response:
            assert response.status == 202

    async def test_a_body_of_many_brackets(self, acme: aiohttp.ClientSession) -> None:
        async with acme.post("/v1/executions", json={**WORK, "context": {"a": [[{}]] * 100}}) as response:
            assert response.status == 202

    @pytest.mark.parametrize("size", [MAX_BODY_BYTES - 1, MAX_BODY_BYTES])
    async def test_a_body_up_to_the_limit(self, acme: aiohttp.ClientSession, size: int) -> None:
        body = json.dumps({**WORK, "context": {"a": ""}})
        body = body.replace('""', f'"{"x" * (size - len(body))}"')
        assert len(body) == size
        async with acme.post("/v1/executions", data=body, headers=JSON) as response:
            assert response.status == 202
