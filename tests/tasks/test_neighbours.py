"""The clients of the neighbours, against a server that behaves as each test says (faults F40–F43, B44)."""

from __future__ import annotations

import asyncio
import gzip
import socket

import pytest
from aiohttp import web

from agent_exec.configuration import Edition
from agent_exec.contract.operation import Embedding, EmbeddingResult, Query, QueryResult
from agent_exec.contract.tool import ToolError, ToolExecution, ToolResult
from agent_exec.errors import AgentNotFound, NeighbourRefused, NeighbourUnavailable, TenantNotFound
from tasks.neighbours import http, management, registry
from tasks.neighbours.http import MAX_ANSWER_BYTES, Neighbour
from tasks.neighbours.management import AgentManagement
from tasks.neighbours.orchestrator import ASK_AGAIN_S, Orchestrator, UnderWay
from tasks.neighbours.registry import ToolRegistry
from tests.tasks.conftest import Handler, Played, drops, hangs, saying, text

AGENT = {"agent_id": "desk", "provider": "openai", "model": "sandbox-1"}
EXECUTION_ID = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"
EMBEDDING = Embedding(tenant_id="acme", execution_id=EXECUTION_ID, texts=["x"])


async def test_a_request_carries_our_token_and_the_base_path(played: Played, neighbour: Neighbour) -> None:
    played.answers = [saying({})]
    answer = await neighbour.ask("GET", "/v1/x")
    assert (answer.status, answer.body) == (200, b"{}")
    [asked] = played.requests
    assert (asked.method, asked.path, asked.headers["Authorization"]) == ("GET", "/base/v1/x", "Bearer secret")


async def test_a_token_that_changed_counts_at_the_next_request(played: Played) -> None:
    tokens = ["first", "second", ""]
    played.answers = [saying({})]
    async with Neighbour("Tool Registry", played.url, token=lambda: tokens.pop(0), timeout_s=5) as neighbour:
        for _ in range(3):
            await neighbour.ask("GET", "/v1/x")
    assert [asked.headers.get("Authorization") for asked in played.requests] == ["Bearer first", "Bearer second", None]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (saying({}, status=500), "answered 500"),
        (saying({}, status=429), "answered 429"),
        (hangs, "in time"),
        (drops, "cannot be reached"),
    ],
)
async def test_what_may_pass_is_unavailable(played: Played, neighbour: Neighbour, answer: Handler, words: str) -> None:
    played.answers = [answer]
    with pytest.raises(NeighbourUnavailable, match=words) as unavailable:
        await neighbour.ask("GET", "/v1/x")
    assert unavailable.value.neighbour == "Tool Registry"


@pytest.mark.parametrize(("header", "expected"), [("20", 20.0), ("soon", None), ("²", None), ("999999", None)])
async def test_the_pause_that_is_asked_for_is_told(
    played: Played, neighbour: Neighbour, header: str, expected: float | None
) -> None:
    played.answers = [saying({}, status=503, Retry_After=header)]
    with pytest.raises(NeighbourUnavailable) as unavailable:
        await neighbour.ask("GET", "/v1/x")
    assert unavailable.value.retry_after_s == expected


@pytest.mark.parametrize(
    ("answer", "unheard"),
    [(saying({}, status=429), True), (saying({}, status=503), False), (drops, False), (hangs, False)],
)
async def test_what_was_turned_away_did_nothing_and_all_else_may_have(
    played: Played, neighbour: Neighbour, answer: Handler, unheard: bool
) -> None:
    played.answers = [answer]
    with pytest.raises(NeighbourUnavailable) as unavailable:
        await neighbour.ask("POST", "/v1/x")
    assert unavailable.value.unheard is unheard


async def test_what_found_no_connection_did_nothing(unused_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECT_TIMEOUT_S", 0.2)
    with socket.socket() as full:  # a host that answers no connection: its queue is full, and nobody takes from it
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with socket.create_connection(address), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(address)
            for port in (unused_port, address[1]):
                async with Neighbour("Tool Registry", f"http://127.0.0.1:{port}", token=str, timeout_s=5) as neighbour:
                    with pytest.raises(NeighbourUnavailable, match="cannot be reached") as unavailable:
                        await neighbour.ask("POST", "/v1/x")
                    assert unavailable.value.unheard


async def test_no_cookie_goes_from_one_tenants_request_into_anothers(played: Played, neighbour: Neighbour) -> None:
    played.answers = [saying({}, Set_Cookie="session=acme; Path=/")]
    for _ in range(2):
        await neighbour.ask("GET", "/v1/x")
    assert not any("Cookie" in asked.headers for asked in played.requests)


async def test_nobody_at_the_address(unused_port: int) -> None:
    async with Neighbour("Agent Management", f"http://127.0.0.1:{unused_port}", token=str, timeout_s=1) as nobody:
        with pytest.raises(NeighbourUnavailable, match="check its address"):
            await nobody.ask("GET", "/v1/x")


async def test_a_connection_that_was_idle_is_not_used_again(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = []

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        return web.json_response({})

    played.answers = [answer]
    monkeypatch.setattr(http, "KEEP_ALIVE_S", 0.01)
    async with Neighbour("Tool Registry", played.url, token=str, timeout_s=5) as neighbour:
        for _ in range(2):
            await neighbour.ask("GET", "/v1/x")
            await asyncio.sleep(0.05)  # idleness is what it is about
    assert peers[0] != peers[1], "its server may be closing it in this very moment"


@pytest.fixture
def unused_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_redirect_is_never_followed(played: Played, neighbour: Neighbour) -> None:
    """S18."""
    played.answers = [saying({}, status=302, Location="http://169.254.169.254/")]
    with pytest.raises(NeighbourRefused, match="never followed"):
        await neighbour.ask("GET", "/v1/x")
    assert len(played.requests) == 1


async def test_an_answer_is_read_so_far_and_no_further(played: Played, neighbour: Neighbour) -> None:
    played.answers = [text("x" * (MAX_ANSWER_BYTES + 1))]
    with pytest.raises(NeighbourRefused, match=str(MAX_ANSWER_BYTES)):
        await neighbour.ask("GET", "/v1/x")


async def test_a_small_answer_that_unpacks_into_a_large_one_is_refused(played: Played, neighbour: Neighbour) -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    assert len(bomb) < MAX_ANSWER_BYTES / 10
    played.answers = [text(bomb, Content_Encoding="gzip")]
    with pytest.raises(NeighbourRefused, match=str(MAX_ANSWER_BYTES)):
        await neighbour.ask("GET", "/v1/x")


async def test_an_agents_configuration_is_cached_and_asked_for_anew_by_its_etag(
    played: Played, neighbour: Neighbour
) -> None:
    agents = AgentManagement(neighbour, ttl_s=0.0)
    played.answers = [saying(AGENT, ETag='"1"'), saying(None, status=304), saying(AGENT | {"model": "m2"}, ETag='"2"')]
    assert (await agents.agent("acme", "desk")).model == "sandbox-1"
    assert (await agents.agent("acme", "desk")).model == "sandbox-1"
    assert (await agents.agent("acme", "desk")).model == "m2"
    assert [asked.headers.get("If-None-Match") for asked in played.requests] == [None, '"1"', '"1"']


async def test_within_its_time_a_configuration_is_not_asked_for(played: Played, neighbour: Neighbour) -> None:
    agents = AgentManagement(neighbour, ttl_s=60)
    played.answers = [saying(AGENT)]
    for _ in range(3):
        await agents.agent("acme", "desk")
    assert len(played.requests) == 1
    await agents.agent("globex", "desk")
    assert len(played.requests) == 2, "no entry serves two tenants"
    for _ in range(2):
        await agents.agent("acme", "desk", edition=Edition(agent="changed"))
    assert len(played.requests) == 3, "what was voided is asked for anew, once"


async def test_what_agent_management_does_not_know_is_an_error_that_says_what_to_do(
    played: Played, neighbour: Neighbour
) -> None:
    agents = AgentManagement(neighbour, ttl_s=60)
    played.answers = [saying({}, status=404)]
    with pytest.raises(AgentNotFound, match="check the id"):
        await agents.agent("acme", "desk")
    with pytest.raises(TenantNotFound, match="create it"):
        await agents.tenant("acme")


@pytest.mark.parametrize("answer", [saying({}, status=401), text("<html>"), saying({"agent_id": "desk"}), saying([])])
async def test_an_answer_that_is_no_use_is_refused(played: Played, neighbour: Neighbour, answer: Handler) -> None:
    played.answers = [answer]
    with pytest.raises(NeighbourRefused):
        await AgentManagement(neighbour, ttl_s=60).agent("acme", "desk")
    with pytest.raises(NeighbourRefused):
        await ToolRegistry(neighbour, ttl_s=60).tools("acme", "desk")
    with pytest.raises(NeighbourRefused):
        await Orchestrator(neighbour).query(
            Query(tenant_id="acme", agent_id="desk", execution_id=EXECUTION_ID, query="x", top_k=1), idempotency_key="k"
        )


async def test_tools_are_listed_and_cached(played: Played, neighbour: Neighbour) -> None:
    tools = ToolRegistry(neighbour, ttl_s=60)
    played.answers = [saying({"tools": [{"name": "clock"}]})]
    for _ in range(2):
        [tool] = await tools.tools("acme", "desk")
    assert (tool.name, tool.effect, len(played.requests)) == ("clock", "effect", 1)
    for _ in range(2):
        await tools.tools("acme", "desk", edition=Edition(agent="changed"))
    assert len(played.requests) == 2, "what was voided is asked for anew, once"


async def test_what_a_tenant_is_shown_comes_from_no_other_tenants_question(
    played: Played, neighbour: Neighbour
) -> None:
    """Fault B43: each tenant's own canary, whoever asked before, of the same agent (S04)."""

    async def canary(request: web.Request) -> web.StreamResponse:
        tenant_id = request.path.split("/")[4]
        if request.path.endswith("/tools"):
            return web.json_response({"tools": [{"name": "clock", "description": f"canary-{tenant_id}"}]})
        return web.json_response(AGENT | {"system_prompt": f"canary-{tenant_id}"})

    played.answers = [canary]
    agents, tools = AgentManagement(neighbour, ttl_s=60), ToolRegistry(neighbour, ttl_s=60)
    for tenant_id in ("acme", "globex", "acme", "globex"):
        assert (await agents.agent(tenant_id, "desk")).system_prompt == f"canary-{tenant_id}"
        assert [tool.description for tool in await tools.tools(tenant_id, "desk")] == [f"canary-{tenant_id}"]
    assert len(played.requests) == 4


async def test_what_is_cached_is_bounded_and_the_oldest_goes(
    played: Played, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (management, registry):
        monkeypatch.setattr(module, "MAX_CACHED", 2)
    agents, tools = AgentManagement(neighbour, ttl_s=60), ToolRegistry(neighbour, ttl_s=60)
    for ask, answer in ((agents.agent, saying(AGENT)), (tools.tools, saying({"tools": []}))):
        played.answers, played.requests = [answer], []
        for tenant_id in ("a", "b", "c", "c", "b", "a"):
            await ask(tenant_id, "desk")
        assert [asked.path.split("/")[4] for asked in played.requests] == ["a", "b", "c", "a"]


CALL = ToolExecution(
    tenant_id="acme", agent_id="desk", execution_id=EXECUTION_ID, tool_call_id="c1", arguments={"city": "Lima"}
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (saying({"result": {"time": "12:00"}}), ToolResult(result={"time": "12:00"})),
        (
            saying({"error": {"code": "no_city", "message": "where?"}}, status=422),
            ToolError(code="no_city", message="where?"),
        ),
        (
            text("<html>oops", status=200),
            ToolError(code="tool_protocol", message="The tool 'clock' answered 200 with no valid JSON result."),
        ),
        (
            text('{"result": NaN}'),
            ToolError(code="tool_protocol", message="The tool 'clock' answered 200 with no valid JSON result."),
        ),
    ],
)
async def test_what_a_tool_says_is_a_value(
    played: Played, neighbour: Neighbour, answer: Handler, expected: ToolResult | ToolError
) -> None:
    played.answers = [answer]
    said = await ToolRegistry(neighbour, ttl_s=60).execute("clock", CALL, idempotency_key="k", timeout_s=5)
    assert said == expected
    [asked] = played.requests
    assert (asked.method, asked.path) == ("POST", "/base/v1/tools/clock/execute")
    assert (asked.headers["Idempotency-Key"], asked.headers["X-Tenant-Id"]) == ("k", "acme")
    assert ToolExecution.model_validate_json(asked.body) == CALL


async def test_the_orchestrators_operations(played: Played, neighbour: Neighbour) -> None:
    orchestrator = Orchestrator(neighbour)
    played.answers = [
        saying({"documents": [{"id": "d", "text": "t", "score": 0.5, "metadata": {}}]}),
        saying({"model": "e", "embeddings": [[0.5]]}),
    ]
    query = Query(tenant_id="acme", agent_id="desk", execution_id=EXECUTION_ID, query="x", top_k=1)
    found = await orchestrator.query(query, idempotency_key="k1")
    assert isinstance(found, QueryResult)
    assert found.documents[0].text == "t"
    vectors = await orchestrator.embed(EMBEDDING, idempotency_key="k2")
    assert isinstance(vectors, EmbeddingResult)
    assert vectors.embeddings == [[0.5]]
    assert [asked.headers["Idempotency-Key"] for asked in played.requests] == ["k1", "k2"]


@pytest.mark.parametrize(("header", "due_in_s"), [("7", 7.0), ("0", ASK_AGAIN_S), ("soon", ASK_AGAIN_S)])
async def test_an_operation_that_is_under_way_says_when_to_ask_again(
    played: Played, neighbour: Neighbour, header: str, due_in_s: float
) -> None:
    played.answers = [saying({}, status=202, Retry_After=header)]
    assert await Orchestrator(neighbour).embed(EMBEDDING, idempotency_key="k") == UnderWay(due_in_s)


async def test_a_vector_too_few_breaks_the_contract(played: Played, neighbour: Neighbour) -> None:
    played.answers = [saying({"model": "e", "embeddings": []})]
    with pytest.raises(NeighbourRefused, match="0 vectors for 1 texts"):
        await Orchestrator(neighbour).embed(EMBEDDING, idempotency_key="k")
