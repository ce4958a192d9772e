"""Agent Management: tenants and agents, with ETags, and a way to change them while a test runs.

Owns the seeds, the versions and the journal of reads. Does not know what an agent does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agent_exec.contract.agent import AgentConfig, Budget, Limits, ModelChoice, Retrieval, SubAgent, Tenant
from agent_exec.contract.model import TenantId
from sandbox.journal import Journal
from sandbox.neighbour import Refused, body_of, guarded, neighbour, number_in

_GROQ_MODEL = "llama-3.3-70b-versatile"

SEED_TENANTS: tuple[Tenant, ...] = (
    Tenant(tenant_id="acme", plan="pro", weight=4.0, max_in_flight=200, budget=Budget(usd_per_day=50.0)),
    Tenant(tenant_id="globex", plan="enterprise", weight=16.0, max_in_flight=1_000),
    Tenant(tenant_id="initech", plan="free", weight=1.0, max_in_flight=20, budget=Budget(usd_per_day=1.0)),
)
SEED_AGENTS: tuple[tuple[TenantId, AgentConfig], ...] = (
    (
        "acme",
        AgentConfig(
            agent_id="desk",
            version="1",
            agent_type="interactive",
            provider="openai",
            model="sandbox-1",
            fallbacks=[ModelChoice(provider="groq", model=_GROQ_MODEL)],
            system_prompt="You are {{ persona }}. Answer briefly; use the tools for sums, times and units.",
            variables={"persona": "the help desk of Acme"},
            temperature=0.2,
            tools=["calculator", "clock", "convert_units"],
        ),
    ),
    (
        "acme",
        AgentConfig(
            agent_id="editor",
            version="1",
            agent_type="interactive",
            provider="openai",
            model="sandbox-1",
            system_prompt="You write notes, and publish them once a person has agreed.",
            tools=["send_note", "publish_note"],
        ),
    ),
    (
        "acme",
        AgentConfig(
            agent_id="concierge",
            version="1",
            agent_type="interactive",
            provider="openai",
            model="sandbox-1",
            system_prompt="You answer no question yourself: you ask the agent that knows.",
            agents=[
                SubAgent(agent_id="desk", description="Asks the help desk: sums, times and units."),
                SubAgent(
                    agent_id="editor", name="ask_the_editor", description="Has the editor write or publish a note."
                ),
            ],
        ),
    ),
    (
        "acme",
        AgentConfig(
            agent_id="extractor",
            version="1",
            agent_type="workflow",
            provider="openai",
            model="gpt-4o-mini",
            system_prompt="Read the order and fill in the form.",
            temperature=0.0,
            response_format={
                "type": "object",
                "properties": {
                    "customer": {"type": "string"},
                    "email": {"type": "string", "format": "email"},
                    "quantity": {"type": "integer", "minimum": 1},
                    "currency": {"enum": ["EUR", "USD", "NOK"]},
                },
                "required": ["customer", "email", "quantity", "currency"],
                "additionalProperties": False,
            },
        ),
    ),
    (
        "globex",
        AgentConfig(
            agent_id="researcher",
            version="1",
            agent_type="workflow",
            provider="groq",
            model=_GROQ_MODEL,
            fallbacks=[ModelChoice(provider="openai", model="gpt-4o-mini")],
            system_prompt="You look things up in the handbook and say where you found them.",
            tools=["search_documents", "calculator"],
            retrieval=Retrieval(enabled=True, top_k=3),
        ),
    ),
    (
        "initech",
        AgentConfig(
            agent_id="summariser",
            version="1",
            agent_type="batch",
            provider="openai",
            model="gpt-4o-mini",
            system_prompt="Summarise what you are given in two sentences.",
            max_output_tokens=256,
            limits=Limits(max_turns=2, max_cost_usd=0.05),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class ReadRecord:
    """One read of a tenant (`agent_id` null) or an agent, and the status that answered it."""

    at_ms: int
    tenant_id: str
    agent_id: str | None
    status: int


class AgentChange(BaseModel):
    """Any fields of an agent; `agent_id` says which, and may be new."""

    model_config = ConfigDict(extra="allow")

    tenant_id: str
    agent_id: str


class Management:
    """The tenants and their agents, as they stand."""

    def __init__(self, *, tenants: Iterable[Tenant], agents: Iterable[tuple[TenantId, AgentConfig]]) -> None:
        """Begin with these."""
        self._tenants = {tenant.tenant_id: tenant for tenant in tenants}
        self._agents = {(tenant_id, agent.agent_id): agent for tenant_id, agent in agents}
        self._reads: Journal[ReadRecord] = Journal()

    async def tenant(self, request: Request) -> JSONResponse:
        """One tenant."""
        tenant_id = request.path_params["tenant_id"]
        tenant = self._tenants.get(tenant_id)
        self._record(tenant_id, None, 200 if tenant else 404)
        if tenant is None:
            raise Refused(404, "tenant_not_found", f"There is no tenant {tenant_id!r}.")
        return JSONResponse(tenant.model_dump())

    async def agent(self, request: Request) -> Response:
        """One agent; 304 where the caller holds this version already."""
        tenant_id, agent_id = request.path_params["tenant_id"], request.path_params["agent_id"]
        agent = self._agents.get((tenant_id, agent_id))
        if agent is None:
            self._record(tenant_id, agent_id, 404)
            raise Refused(404, "agent_not_found", f"Tenant {tenant_id!r} has no agent {agent_id!r}.")
        etag = f'"{agent_id}-{agent.version}"'
        held = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if held & {etag, "*"}:
            self._record(tenant_id, agent_id, 304)
            return Response(status_code=304, headers={"etag": etag})
        self._record(tenant_id, agent_id, 200)
        return JSONResponse(agent.model_dump(), headers={"etag": etag})

    async def change_agent(self, request: Request) -> JSONResponse:
        """Change an agent, or make one of the sandbox's model; its version rises by one."""
        change = await body_of(request, AgentChange)
        place = (change.tenant_id, change.agent_id)
        if change.tenant_id not in self._tenants:
            raise Refused(404, "tenant_not_found", f"There is no tenant {change.tenant_id!r}: POST /_tenants first.")
        fields = change.model_dump(exclude={"tenant_id"})
        before: dict[str, Any]
        if place in self._agents:
            before = self._agents[place].model_dump()
        else:
            before = {"provider": "openai", "model": "sandbox-1", "version": "0"}
        agent = _agent({**before, **fields, "version": str(int(before["version"]) + 1)})
        self._agents[place] = agent
        return JSONResponse(agent.model_dump())

    async def change_tenant(self, request: Request) -> JSONResponse:
        """Put a tenant in place of the one of its name, or beside the others."""
        tenant = await body_of(request, Tenant)
        self._tenants[tenant.tenant_id] = tenant
        return JSONResponse(tenant.model_dump())

    async def journal(self, request: Request) -> JSONResponse:
        """The reads past `after`."""
        reads = self._reads.after(int(number_in(request, "after")))
        return JSONResponse(
            {"last": self._reads.last, "reads": [{"number": number, **asdict(read)} for number, read in reads]}
        )

    def _record(self, tenant_id: str, agent_id: str | None, status: int) -> None:
        self._reads.add(ReadRecord(time.time_ns() // 1_000_000, tenant_id, agent_id, status))


def _agent(fields: dict[str, JsonValue]) -> AgentConfig:
    try:
        return AgentConfig.model_validate(fields)
    except ValidationError as error:
        raise Refused(400, "invalid_request", str(error)) from None


def create_app(
    *,
    token: str | None = None,
    tenants: Iterable[Tenant] = SEED_TENANTS,
    agents: Iterable[tuple[TenantId, AgentConfig]] = SEED_AGENTS,
) -> Starlette:
    """Return Agent Management; with a `token`, `/v1` asks for it."""
    management = Management(tenants=tenants, agents=agents)
    return neighbour(
        routes=[
            guarded(
                "/v1",
                token=token,
                routes=[
                    Route("/tenants/{tenant_id}", management.tenant),
                    Route("/tenants/{tenant_id}/agents/{agent_id}", management.agent),
                ],
            ),
            Route("/_agents", management.change_agent, methods=["POST"]),
            Route("/_tenants", management.change_tenant, methods=["POST"]),
            Route("/journal", management.journal),
        ]
    )
