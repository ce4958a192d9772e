"""Agent Management over HTTP."""

from __future__ import annotations

import httpx
import pytest

from agent_exec.contract.agent import AgentConfig, Tenant


@pytest.mark.parametrize(("tenant_id", "plan"), [("acme", "pro"), ("globex", "enterprise"), ("initech", "free")])
async def test_knows_three_tenants(http: httpx.AsyncClient, tenant_id: str, plan: str) -> None:
    answer = await http.get(f"/management/v1/tenants/{tenant_id}")

    assert Tenant.model_validate_json(answer.content).plan == plan


@pytest.mark.parametrize(
    ("tenant_id", "agent_id", "agent_type", "provider"),
    [
        ("acme", "desk", "interactive", "openai"),
        ("acme", "editor", "interactive", "openai"),
        ("acme", "extractor", "workflow", "openai"),
        ("globex", "researcher", "workflow", "groq"),
        ("initech", "summariser", "batch", "openai"),
    ],
)
async def test_knows_their_agents(
    http: httpx.AsyncClient, tenant_id: str, agent_id: str, agent_type: str, provider: str
) -> None:
    answer = await http.get(f"/management/v1/tenants/{tenant_id}/agents/{agent_id}")

    agent = AgentConfig.model_validate_json(answer.content)
    assert (agent.agent_type, agent.provider) == (agent_type, provider)


async def test_an_agents_version_is_its_etag(http: httpx.AsyncClient) -> None:
    path = "/management/v1/tenants/acme/agents/desk"
    first = await http.get(path)
    unchanged = await http.get(path, headers={"If-None-Match": first.headers["etag"]})
    changed = await http.post("/management/_agents", json={"tenant_id": "acme", "agent_id": "desk", "temperature": 0.9})
    second = await http.get(path, headers={"If-None-Match": first.headers["etag"]})
    reads = (await http.get("/management/journal")).json()["reads"]

    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert changed.json()["version"] == "2"
    assert second.status_code == 200
    assert (second.json()["temperature"], second.json()["model"]) == (0.9, "sandbox-1")
    assert second.headers["etag"] != first.headers["etag"]
    assert [read["status"] for read in reads] == [200, 304, 200]


async def test_takes_new_tenants_and_agents(http: httpx.AsyncClient) -> None:
    new_agent = {"tenant_id": "hooli", "agent_id": "box", "tools": ["slow"]}
    too_early = await http.post("/management/_agents", json=new_agent)
    await http.post("/management/_tenants", json={"tenant_id": "hooli", "plan": "pro"})
    made = await http.post("/management/_agents", json=new_agent)
    wrong = await http.post("/management/_agents", json={**new_agent, "agent_type": "sleepy"})
    agent = await http.get("/management/v1/tenants/hooli/agents/box")

    assert too_early.status_code == 404
    assert made.json()["version"] == "1"
    assert wrong.status_code == 400
    assert agent.json()["tools"] == ["slow"]


async def test_says_in_json_what_it_does_not_know(base_url: str, http: httpx.AsyncClient) -> None:
    agent = await http.get("/management/v1/tenants/globex/agents/desk")
    tenant = await http.get("/management/v1/tenants/nobody")
    async with httpx.AsyncClient(base_url=base_url) as stranger:
        unauthorized = await stranger.get("/management/v1/tenants/acme")

    assert (agent.status_code, agent.json()["error"]["code"]) == (404, "agent_not_found")
    assert (tenant.status_code, tenant.json()["error"]["code"]) == (404, "tenant_not_found")
    assert unauthorized.status_code == 401
