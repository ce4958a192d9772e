"""The Tool Registry: lists the tools, runs them, and repeats no call whose idempotency key it knows.

Owns the ledger of keys and the journal of calls. Does not know what a tool does.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import JsonValue
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from agent_exec.contract.tool import ToolExecution
from sandbox.journal import Journal, canaries_in
from sandbox.neighbour import Refused, body_of, guarded, neighbour, number_in
from sandbox.toolbox import BadArguments, Tool, toolbox

#: Keys whose results are remembered; the oldest are forgotten.
KEPT_KEYS = 50_000

#: Tenant, tool and the caller's key: one caller's key says nothing about another's.
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One request to run a tool. `repeated`: answered from the ledger, nothing ran."""

    at_ms: int
    tool: str
    tenant_id: str
    execution_id: str
    tool_call_id: str
    idempotency_key: str | None
    repeated: bool
    canaries: list[str]


@dataclass(slots=True)
class _Known:
    call: ToolExecution
    running: asyncio.Task[JsonValue]
    effects: int = 0


class Registry:
    """The tools, what was asked of them, and what each key came to."""

    def __init__(self, tools: Mapping[str, Tool[Any]]) -> None:
        """Begin with an empty ledger."""
        self._tools = tools
        self._known: OrderedDict[Key, _Known] = OrderedDict()
        self._calls: Journal[CallRecord] = Journal()

    async def list_tools(self, _: Request) -> JSONResponse:
        """Every tool, whoever asks: the agent's configuration picks from them."""
        return JSONResponse({"tools": [tool.definition().model_dump() for tool in self._tools.values()]})

    async def execute(self, request: Request) -> JSONResponse:
        """Run a tool once for its key; a second request joins the first or gets its result."""
        tool = self._tools.get(request.path_params["name"])
        if tool is None:
            raise Refused(404, "tool_not_found", f"There is no tool {request.path_params['name']!r}.")
        call = await body_of(request, ToolExecution)
        if request.headers.get("x-tenant-id") != call.tenant_id:
            raise Refused(403, "tenant_mismatch", "The header X-Tenant-Id and the body name different tenants.")
        idempotency_key = request.headers.get("idempotency-key")
        if idempotency_key is None and tool.effect == "effect":
            raise Refused(400, "idempotency_key_required", f"{tool.name} has an effect: send an Idempotency-Key.")

        key = None if idempotency_key is None else (call.tenant_id, tool.name, idempotency_key)
        repeated = key in self._known
        self._calls.add(
            CallRecord(
                at_ms=time.time_ns() // 1_000_000,
                tool=tool.name,
                tenant_id=call.tenant_id,
                execution_id=call.execution_id,
                tool_call_id=call.tool_call_id,
                idempotency_key=idempotency_key,
                repeated=repeated,
                canaries=canaries_in(await request.body()),
            )
        )
        try:
            if key is None:
                return JSONResponse({"result": await tool.call(call.arguments)})
            return JSONResponse({"result": await self._once(key, tool, call)})
        except BadArguments as error:
            raise Refused(400, "bad_arguments", str(error)) from None

    async def journal(self, request: Request) -> JSONResponse:
        """The calls past `after`, and how often each key took effect (more than 1 is a fault of this registry)."""
        calls = self._calls.after(int(number_in(request, "after")))
        effects: Counter[str] = Counter()
        for (_, _, idempotency_key), known in self._known.items():
            effects[idempotency_key] += known.effects
        return JSONResponse(
            {
                "last": self._calls.last,
                "calls": [{"number": number, **asdict(call)} for number, call in calls],
                "effects": effects,
            }
        )

    async def _once(self, key: Key, tool: Tool[Any], call: ToolExecution) -> JsonValue:
        known = self._known.get(key)
        if known is None:
            known = _Known(call, asyncio.create_task(tool.call(call.arguments)))
            known.running.add_done_callback(lambda task: self._settle(key, task))
            self._known[key] = known
            if len(self._known) > KEPT_KEYS:
                self._known.popitem(last=False)
        elif known.call != call:
            raise Refused(409, "idempotency_mismatch", "This Idempotency-Key came before with another body.")
        return await asyncio.shield(known.running)

    def _settle(self, key: Key, task: asyncio.Task[JsonValue]) -> None:
        # A call that failed took no effect, so its key is free again.
        if task.cancelled() or task.exception() is not None:
            self._known.pop(key, None)
        elif key in self._known:
            self._known[key].effects += 1


def create_app(*, token: str | None = None, tools: Mapping[str, Tool[Any]] | None = None) -> Starlette:
    """Return the registry; with a `token`, `/v1` asks for it."""
    registry = Registry(toolbox() if tools is None else tools)
    return neighbour(
        routes=[
            guarded(
                "/v1",
                token=token,
                routes=[
                    Route("/tenants/{tenant_id}/agents/{agent_id}/tools", registry.list_tools),
                    Route("/tools/{name}/execute", registry.execute, methods=["POST"]),
                ],
            ),
            Route("/journal", registry.journal),
        ]
    )
