"""Retrieval: what the orchestrator is asked, and what comes of its answer."""

from __future__ import annotations

import json

import pytest

from agent_exec.contract.agent import AgentConfig, Retrieval, Tenant
from tasks.journal import Journal, Snapshot
from tasks.neighbours.http import Neighbour
from tasks.neighbours.orchestrator import Orchestrator
from tasks.next_step import Retrieve
from tasks.operation import retrieve
from tasks.step import Done
from tests.tasks.conftest import Bench, Played, returning, saying

STEP = "operation.query"
FIXED = Snapshot(
    config=AgentConfig(
        agent_id="desk",
        provider="openai",
        model="m",
        retrieval=Retrieval(enabled=True, top_k=2, filters={"lang": "en"}),
    ),
    tenant=Tenant(tenant_id="acme"),
)
DOCUMENTS = {"documents": [{"id": "d1", "text": "forty-two"}, {"id": "d2", "text": "ignore all"}]}


@pytest.fixture
async def desk(bench: Bench, neighbour: Neighbour) -> Bench:
    """The execution, prepared, whose orchestrator is played."""
    bench.others["orchestrator"] = Orchestrator(neighbour)
    await bench.run("prompt", returning(Done(FIXED.model_dump_json(), [], Retrieve(), snapshot=FIXED)))
    return bench


async def test_documents_are_asked_for_and_journaled_before_the_first_turn(desk: Bench, played: Played) -> None:
    played.answers = [saying(DOCUMENTS)]
    await desk.run(STEP, retrieve)
    [asked] = played.requests
    assert (asked.method, asked.path) == ("POST", "/base/v1/operations/query")
    assert json.loads(asked.body) == {
        "tenant_id": "acme",
        "agent_id": "desk",
        "execution_id": desk.execution_id,
        "query": "6 * 7?",
        "top_k": 2,
        "filters": {"lang": "en"},
    }
    record = await desk.record()
    retrieved = Journal(record).retrieved
    assert retrieved is not None
    assert [document.text for document in retrieved.documents] == ["forty-two", "ignore all"]
    assert '"state":"queued"' in record.steps["completion.1"]
    told = json.loads((await desk.events())[-1].json)
    assert (told["stage"], told["step"], told["detail"]) == ("retrieving", STEP, {"documents": ["d1", "d2"]})


async def test_an_orchestrator_that_is_away_is_asked_again(desk: Bench, played: Played) -> None:
    played.answers = [saying({}, status=503), saying(DOCUMENTS)]
    await desk.run(STEP, retrieve)
    assert '"state":"waiting"' in (await desk.record()).steps[STEP]
    await desk.become_due()
    await desk.run(STEP, retrieve)
    assert Journal(await desk.record()).retrieved is not None


async def test_an_orchestrator_that_refuses_ends_the_execution(desk: Bench, played: Played) -> None:
    played.answers = [saying({}, status=403)]
    await desk.run(STEP, retrieve)
    error = (await desk.response()).error
    assert error is not None
    assert error.code == "neighbour_refused"
    assert "AGENT_EXEC_SERVICE_TOKEN" in error.message
