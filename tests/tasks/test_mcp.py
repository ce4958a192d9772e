"""Tools of MCP servers, behind the same boundary as the registry's: a real server, of both eras, and one that misbehaves."""

from __future__ import annotations

import asyncio
import gzip
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from agent_exec.configuration import FIRST, Edition
from agent_exec.contract.completion import CompletionResponse, Usage
from agent_exec.contract.tool import ToolCall, ToolDefinition, ToolError, ToolExecution, ToolResult
from agent_exec.errors import NeighbourRefused, NeighbourUnavailable, SettingsInvalid
from agent_exec.settings import McpServer, read_settings
from tasks.journal import Journal
from tasks.neighbours.http import MAX_ANSWER_BYTES, Neighbour
from tasks.neighbours.mcp import MAX_PAGES, McpTools
from tasks.neighbours.registry import ToolRegistry
from tasks.neighbours.tools import ToolSource, open_tools
from tasks.next_step import CallTools
from tasks.prompt import prepare
from tasks.step import Done
from tasks.tool_call import call_tool
from tests.processes import Process, answers, free_port, wait_until
from tests.tasks.conftest import Asked, Bench, Handler, Played, drops, hangs, returning, saying, text

EXECUTION_ID = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"


class Served:
    """The server's process, and what it has seen."""

    def __init__(self, era: str, directory: Path) -> None:
        port = free_port()
        self.root = f"http://127.0.0.1:{port}"
        command = ("-m", "tests.tasks.mcp_server", str(port), era)
        self.process = Process(f"mcp-{era}", command, env={}, log=directory / "mcp.log")
        wait_until(lambda: answers(f"{self.root}/seen"), what="the MCP server", within_s=30)

    @property
    def url(self) -> str:
        return f"{self.root}/mcp"

    @property
    def seen(self) -> Any:
        with urllib.request.urlopen(f"{self.root}/seen", timeout=5) as answer:  # noqa: S310 the server's own
            return json.load(answer)


@pytest.fixture(scope="module", params=["modern", "legacy"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(request.param, tmp_path_factory.mktemp("mcp"))
    yield served
    served.process.stop()


def source(url: str, *, ttl_s: float = 60.0, timeout_s: float = 10.0, **changes: Any) -> McpTools:
    config = McpServer(url=url, token=SecretStr("s3cret-token"), **changes)
    return McpTools("desk", config, ttl_s=ttl_s, timeout_s=timeout_s)


@pytest.fixture
async def tools(server: Served) -> AsyncIterator[McpTools]:
    async with source(server.url) as opened:
        yield opened


async def run(
    tools: ToolSource, name: str, *, tenant_id: str = "acme", timeout_s: float = 10, **arguments: Any
) -> ToolResult | ToolError:
    call = ToolExecution(
        tenant_id=tenant_id, agent_id="desk", execution_id=EXECUTION_ID, tool_call_id="call_1", arguments=arguments
    )
    return await tools.execute(f"desk__{name}", call, idempotency_key=f"key-{name}", timeout_s=timeout_s)


async def test_tools_are_listed_under_the_servers_name_with_what_they_may_do(tools: McpTools) -> None:
    listed = {tool.name: tool for tool in await tools.tools("acme", "desk")}
    assert set(listed) == {
        f"desk__{name}" for name in ("add", "store", "send", "send_and_hang", "die", "fail", "look", "write")
    }
    effects = {name: listed[f"desk__{name}"].effect for name in ("add", "store", "send")}
    assert effects == {"add": "read", "store": "idempotent", "send": "effect"}
    assert listed["desk__add"].description == "Add two numbers."
    assert listed["desk__add"].parameters["required"] == ["a", "b"]


async def test_a_list_is_kept_for_its_time_and_for_its_tenant(server: Served, played: Played) -> None:
    def asked() -> int:
        return len(server.seen["methods"])

    async with source(server.url) as tools:
        await tools.tools("acme", "desk")
        before = asked()
        await tools.tools("acme", "other")
        assert asked() == before
        await tools.tools("globex", "desk")
        assert asked() > before, "what one tenant was shown is not another's"
    async with source(server.url, ttl_s=0) as tools:
        await tools.tools("acme", "desk")
        before = asked()
        await tools.tools("acme", "desk")
        assert asked() > before


async def test_only_its_tenants_are_served(server: Served) -> None:
    async with source(server.url, tenants=frozenset({"acme"})) as tools:
        assert await tools.tools("acme", "desk")
        assert await tools.tools("globex", "desk") == []
        assert await run(tools, "add", a=1, b=2) == ToolResult(result={"result": 3})
        refused = await run(tools, "add", tenant_id="globex", a=1, b=2)
        assert isinstance(refused, ToolError)
        assert refused.code == "unknown_tool"


async def test_approval_is_asked_for_what_is_no_read(server: Served) -> None:
    async with source(server.url, requires_approval=True, timeout_s=7.0) as tools:
        listed = {tool.name: tool for tool in await tools.tools("acme", "desk")}
    assert not listed["desk__add"].requires_approval
    assert listed["desk__store"].requires_approval
    assert listed["desk__send"].requires_approval


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("add", {"a": 1, "b": 2}, {"result": 3}),
        ("store", {"text": "x"}, "stored x"),
        ("look", {}, ["a cat", {"type": "image", "left_out": "no text"}]),
        ("write", {"chars": 1_500_000}, "x" * 1_500_000),
    ],
)
async def test_what_a_tool_answers_is_its_result(
    tools: McpTools, name: str, arguments: dict[str, Any], result: Any
) -> None:
    assert await run(tools, name, **arguments) == ToolResult(result=result)


async def test_a_call_carries_tenant_token_and_key(tools: McpTools, server: Served) -> None:
    """S34."""
    assert await run(tools, "send", text="x") == ToolResult(result="sent x")
    assert server.seen["effects"][-1] == {
        "idempotency-key": "key-send",
        "x-tenant-id": "acme",
        "authorization": "Bearer s3cret-token",
    }


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [("fail", {}, "the drawer is stuck"), ("add", {"a": "one"}, "validation error"), ("nothing", {}, "nothing")],
)
async def test_what_a_server_says_against_a_call_is_for_the_model_to_read(
    tools: McpTools, name: str, arguments: dict[str, Any], words: str
) -> None:
    outcome = await run(tools, name, **arguments)
    assert isinstance(outcome, ToolError)
    assert words in outcome.message


async def test_a_longer_answer_than_any_is_refused(tools: McpTools) -> None:
    with pytest.raises(NeighbourRefused, match=str(MAX_ANSWER_BYTES)):
        await run(tools, "write", chars=MAX_ANSWER_BYTES + 1)
    assert await run(tools, "store", text="and then?") == ToolResult(result="stored and then?")


async def test_what_hangs_after_it_took_effect_may_have_taken_effect(tools: McpTools, server: Served) -> None:
    before = len(server.seen["effects"])
    with pytest.raises(NeighbourUnavailable, match="in time") as unavailable:
        await run(tools, "send_and_hang", timeout_s=2)
    assert not unavailable.value.unheard
    assert len(server.seen["effects"]) == before + 1


async def test_a_call_that_is_cancelled_lets_go_of_its_socket(tools: McpTools, server: Served) -> None:
    before = len(server.seen["effects"])
    calling = asyncio.create_task(run(tools, "send_and_hang", timeout_s=60))
    while len(server.seen["effects"]) == before:
        await asyncio.sleep(0.02)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert await run(tools, "store", text="x") == ToolResult(result="stored x")


async def test_a_server_that_dies_in_the_middle_and_one_that_is_not_there(tmp_path: Path) -> None:
    served = Served("modern", tmp_path)
    async with source(served.url) as tools:
        with pytest.raises(NeighbourUnavailable) as died:
            await run(tools, "die")
        assert not died.value.unheard
        with pytest.raises(NeighbourUnavailable) as away:
            await run(tools, "store", text="x")
        assert away.value.unheard
        with pytest.raises(NeighbourUnavailable, match="cannot be reached"):
            await tools.tools("acme", "desk")
    served.process.stop()


def rpc(request: Asked) -> dict[str, Any]:
    return json.loads(request.body) if request.body else {}


def speaking(**results: Any) -> Handler:
    """Play a legacy server: each method of the protocol answers with what is given, or by the handler that is."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=405)
        asked = await request.json()
        method = asked["method"].replace("/", "_")
        if method == "initialize":
            return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": INITIALIZED})
        if "id" not in asked:
            return web.Response(status=202)
        if method == "server_discover":
            return web.Response(status=400)
        result = results[method]
        if callable(result):
            answered: web.StreamResponse = await result(request)
            return answered
        return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": result})

    return answer


INITIALIZED = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "played", "version": "1"},
}


@pytest.mark.parametrize(
    ("answer", "error", "unheard", "words"),
    [
        (drops, NeighbourUnavailable, False, "broke off"),
        (hangs, NeighbourUnavailable, False, "in time"),
        (saying({}, status=503, Retry_After="7"), NeighbourUnavailable, False, "answered 503"),
        (saying({}, status=429), NeighbourUnavailable, True, "answered 429"),
        (saying({}, status=307, Location="http://169.254.169.254/"), NeighbourRefused, None, "never followed"),
        (saying({}, status=307, Location="/base/elsewhere"), NeighbourRefused, None, "never followed"),
        (saying({}, status=401), NeighbourRefused, None, "token"),
        (text(gzip.compress(b"0" * 50_000_000), Content_Encoding="gzip"), NeighbourRefused, None, "packs"),
        (text("x" * (MAX_ANSWER_BYTES + 1), Content_Type="application/json"), NeighbourRefused, None, "bytes"),
        (
            text("data: x\n" * (MAX_ANSWER_BYTES // 6), Content_Type="text/event-stream"),
            NeighbourRefused,
            None,
            "bytes",
        ),
    ],
)
async def test_a_call_that_went_wrong_says_whether_it_may_have_taken_effect(
    played: Played, answer: Handler, error: type[Exception], unheard: bool | None, words: str
) -> None:
    played.answers = [speaking(tools_call=answer)]
    async with source(f"{played.url}mcp") as tools:
        with pytest.raises(error, match=words) as failed:
            await run(tools, "send", timeout_s=1)
    if isinstance(failed.value, NeighbourUnavailable):
        assert failed.value.unheard is unheard
        assert failed.value.retry_after_s == (7.0 if "503" in words else None)
    assert not [asked for asked in played.requests if asked.path != "/base/mcp"]


@pytest.mark.parametrize("answer", [drops, hangs, saying({}, status=502)])
async def test_a_call_that_never_got_so_far_went_unheard(played: Played, answer: Handler) -> None:
    played.answers = [answer]
    async with source(f"{played.url}mcp") as tools:
        with pytest.raises(NeighbourUnavailable) as failed:
            await run(tools, "send", timeout_s=0.5)
    assert failed.value.unheard


@pytest.mark.parametrize(
    "answer",
    [
        text("<html>", Content_Type="text/html"),
        text("{", Content_Type="application/json"),
        text('{"jsonrpc": "2.0", "id": 1}', Content_Type="application/json"),
        text("", status=202),
        text("no such session", status=404),
    ],
)
async def test_an_answer_that_is_none_of_the_protocol_is_told_to_the_model(played: Played, answer: Handler) -> None:
    played.answers = [speaking(tools_call=answer)]
    async with source(f"{played.url}mcp") as tools:
        outcome = await run(tools, "send", timeout_s=5)
    assert isinstance(outcome, ToolError)
    assert outcome.code == "tool_protocol"


@pytest.mark.parametrize(
    "result",
    [
        {"content": "text"},
        {"content": [{"type": "text", "text": "x"}], "structuredContent": json.loads("[" * 40 + "]" * 40)},
        {"nothing": 1},
    ],
)
async def test_a_result_that_may_not_cross_our_borders_is_told_to_the_model(played: Played, result: Any) -> None:
    played.answers = [speaking(tools_call=result)]
    async with source(f"{played.url}mcp") as tools:
        outcome = await run(tools, "send")
    assert isinstance(outcome, ToolError)
    assert outcome.code == "tool_protocol"


async def test_links_and_resources_are_texts_or_named(played: Played) -> None:
    content = [
        {"type": "resource", "resource": {"uri": "file:///a", "text": "its text"}},
        {"type": "resource", "resource": {"uri": "file:///b", "blob": "AAAA"}},
        {"type": "resource_link", "uri": "https://evil/", "name": "a link"},
    ]
    played.answers = [speaking(tools_call={"content": content})]
    async with source(f"{played.url}mcp") as tools:
        outcome = await run(tools, "send")
    assert outcome == ToolResult(
        result=[
            "its text",
            {"type": "resource", "left_out": "no text"},
            {"type": "resource_link", "uri": "https://evil/", "name": "a link"},
        ]
    )


async def test_a_list_without_an_end_is_read_so_far(played: Played) -> None:
    page = {"tools": [{"name": "a", "inputSchema": {"type": "object"}}], "nextCursor": "more"}
    played.answers = [speaking(tools_list=page)]
    async with source(f"{played.url}mcp") as tools:
        assert len(await tools.tools("acme", "desk")) == MAX_PAGES
    assert sum(rpc(asked).get("method") == "tools/list" for asked in played.requests) == MAX_PAGES


async def test_tools_that_we_cannot_offer_are_left_out(played: Played) -> None:
    listed = [
        {"name": name, "inputSchema": schema}
        for name, schema in (
            ("fine", {"type": "object"}),
            ("a" * 64, {"type": "object"}),
            ("large", {"type": "object", "description": "x" * 70_000}),
        )
    ]
    played.answers = [speaking(tools_list={"tools": listed})]
    async with source(f"{played.url}mcp") as tools:
        assert [tool.name for tool in await tools.tools("acme", "desk")] == ["desk__fine"]


async def test_a_server_that_refuses_to_list(played: Played) -> None:
    async def refuses(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        error = {"code": -32603, "message": "the catalogue is closed"}
        return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "error": error})

    played.answers = [speaking(tools_list=refuses)]
    async with source(f"{played.url}mcp") as tools:
        with pytest.raises(NeighbourRefused, match="the catalogue is closed"):
            await tools.tools("acme", "desk")


class Listed:
    """A registry that lists these names, and says which it ran."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.asked = 0

    async def tools(self, tenant_id: str, agent_id: str, *, edition: Edition = FIRST) -> list[ToolDefinition]:
        self.asked += 1
        return [ToolDefinition(name=name) for name in self.names]

    async def execute(
        self, name: str, call: ToolExecution, *, idempotency_key: str, timeout_s: float
    ) -> ToolResult | ToolError:
        return ToolResult(result=f"the registry ran {name}")


async def test_a_tool_is_its_sources_whatever_another_lists(played: Played) -> None:
    played.answers = [speaking(tools_list={"tools": [{"name": "fine", "inputSchema": {"type": "object"}}]})]
    settings = read_settings(
        mcp_servers={"desk": {"url": f"{played.url}mcp"}, "away": {"url": "http://127.0.0.1:9/mcp"}}
    )
    registry = Listed("clock", "desk__fine", "desk__other", "odd__name")
    async with open_tools(registry, settings) as tools:
        names = ["clock", "desk__fine", "desk__other", "odd__name", "nothing"]
        offered = await tools.offered("acme", "desk", names)
        assert list(offered) == ["clock", "odd__name", "desk__fine"]
        assert offered["desk__fine"].parameters == {"type": "object"}, "the server's own"
        assert await run_as(tools, "clock") == ToolResult(result="the registry ran clock")
        assert await run_as(tools, "odd__name") == ToolResult(result="the registry ran odd__name")
        assert list(await tools.offered("acme", "desk", ["desk__fine"])) == ["desk__fine"]
        assert registry.asked == 1, "only a source that is named is asked"
        with pytest.raises(NeighbourUnavailable):
            await tools.offered("acme", "desk", ["clock", "away__tool"])


async def run_as(tools: Any, name: str) -> ToolResult | ToolError:
    call = ToolExecution(
        tenant_id="acme", agent_id="desk", execution_id=EXECUTION_ID, tool_call_id="call_1", arguments={}
    )
    outcome: ToolResult | ToolError = await tools.execute(name, call, idempotency_key="k", timeout_s=5)
    return outcome


async def test_an_execution_calls_a_servers_tool_as_any_other(
    server: Served, bench: Bench, neighbour: Neighbour
) -> None:
    bench.settings = bench.settings.model_copy(update={"mcp_servers": {"desk": McpServer(url=server.url)}})
    agent = {"agent_id": "desk", "provider": "openai", "model": "m", "tools": ["desk__send"]}
    await bench.accept(agent_config=agent)
    said = CompletionResponse(
        provider="openai",
        model="m",
        tool_calls=[ToolCall(id="call_1", name="desk__send", arguments='{"text": "x"}')],
        finish_reason="tool_calls",
        usage=Usage(),
    )
    async with open_tools(ToolRegistry(neighbour, ttl_s=60), bench.settings) as tools:
        bench.others |= {"tools": tools, "management": None}
        await bench.run("prompt", prepare)
        await bench.run("completion.1", returning(Done(said.model_dump_json(), [], CallTools(turn=1, count=1))))
        await bench.run("tool_call.1.0", call_tool)
    journal = Journal(await bench.record())
    assert [tool.effect for tool in journal.fixed.tools] == ["effect"]
    assert [(call.result, call.error) for call in journal.tool_records(1)] == [("sent x", None)]
    assert server.seen["effects"][-1] == {
        "idempotency-key": f"{bench.execution_id}.tool_call.1.0",
        "x-tenant-id": "acme",
        "authorization": None,
    }


async def test_without_the_sdk_servers_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tasks.neighbours.mcp", None)
    settings = read_settings(mcp_servers={"desk": {"url": "http://127.0.0.1:9/mcp"}})
    with pytest.raises(SettingsInvalid, match="extra 'mcp'"):
        async with open_tools(Listed(), settings):
            pass


@pytest.mark.parametrize(
    "servers",
    [
        {"De sk": {"url": "http://h/mcp"}},
        {"a__b": {"url": "http://h/mcp"}},
        {"desk": {"url": "python server.py"}},
        {"desk": {"command": "python"}},
    ],
)
def test_a_server_is_an_address_under_a_name(servers: dict[str, Any]) -> None:
    with pytest.raises(SettingsInvalid, match="AGENT_EXEC_MCP_SERVERS"):
        read_settings(mcp_servers=servers)
