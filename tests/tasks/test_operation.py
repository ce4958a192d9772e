"""Operations: what the orchestrator is asked, and what comes of its answer, however long it takes."""

from __future__ import annotations

import json

import pytest
from aiohttp import web

from agent_exec.contract.agent import AgentConfig, ContextWindow, Retrieval, Tenant
from tasks.journal import Journal, Snapshot
from tasks.neighbours.http import Neighbour
from tasks.neighbours.orchestrator import Orchestrator
from tasks.next_step import Rank, Retrieve
from tasks.operation import BATCH_TEXTS, operate
from tasks.step import Done
from tests.tasks.conftest import Bench, Handler, Played, returning, saying

STEP = "operation.query"
RANKING = "operation.embedding"
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
    await desk.run(STEP, operate)
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


async def test_an_operation_that_is_under_way_is_asked_again_under_its_key_and_counts_no_retry(
    desk: Bench, played: Played
) -> None:
    desk.settings = desk.settings.model_copy(update={"max_retries": 0, "max_attempts": 1})
    played.answers = [saying({}, status=202), saying({}, status=202), saying(DOCUMENTS)]
    for _ in range(2):
        await desk.run(STEP, operate)
        waits = json.loads((await desk.record()).steps[STEP])
        assert (waits["state"], waits["retries"]) == ("waiting", 0)
        told = json.loads((await desk.events())[-1].json)
        assert (told["stage"], told["detail"]) == ("waiting", {"code": "operation_under_way", "due_in_s": 1.0})
        await desk.become_due()
    await desk.run(STEP, operate)
    assert Journal(await desk.record()).retrieved is not None
    keys = {asked.headers["Idempotency-Key"] for asked in played.requests}
    assert keys == {f"{desk.execution_id}.{STEP}"}


@pytest.fixture
async def overfull(desk: Bench) -> Bench:
    """An execution with 40 documents that do not fit, one of them about apples, whose next step ranks them."""
    documents = [{"id": f"d{n}", "text": f"{'apple' if n == 30 else 'pear'} {'x' * 500}"} for n in range(40)]
    await desk.accept(context={"documents": documents})
    config = FIXED.config.model_copy(
        update={"retrieval": Retrieval(), "context": ContextWindow(max_tokens=2_000), "max_output_tokens": 300}
    )
    fixed = FIXED.model_copy(update={"config": config})
    await desk.run("prompt", returning(Done(fixed.model_dump_json(), [], Rank(), snapshot=fixed)))
    return desk


def embedding(near: str) -> Handler:
    """Return an answer in which texts with this word are nearer to the query than others."""

    async def answer(request: web.Request) -> web.Response:
        texts = (await request.json())["texts"]
        query = "6 * 7?"
        vectors = [[1.0, 0.0] if near in text or text == query else [0.5, 0.5] for text in texts]
        return web.json_response({"model": "played", "embeddings": vectors})

    return answer


async def test_documents_that_do_not_fit_are_ranked_and_the_nearest_kept(overfull: Bench, played: Played) -> None:
    played.answers = [embedding("apple")]
    await overfull.run(RANKING, operate)
    batches = [json.loads(asked.body) for asked in played.requests]
    assert sorted(len(batch["texts"]) for batch in batches) == [9, BATCH_TEXTS, BATCH_TEXTS], (
        "the query, and 40 documents"
    )
    assert {(batch["tenant_id"], batch["execution_id"]) for batch in batches} == {("acme", overfull.execution_id)}
    assert {asked.path for asked in played.requests} == {"/base/v1/operations/embedding"}
    assert len({asked.headers["Idempotency-Key"] for asked in played.requests}) == 3
    journal = Journal(await overfull.record())
    kept = [document.id for document in journal.documents]
    assert kept[:2] == ["d30", "d0"]
    assert len(kept) == 5, "in half of the room"
    told = json.loads((await overfull.events())[-1].json)
    assert (told["stage"], told["step"], told["detail"]) == ("retrieving", RANKING, {"documents": kept, "left_out": 35})
    assert '"state":"queued"' in (await overfull.record()).steps["completion.1"]


async def test_one_batch_under_way_has_all_of_them_asked_again(overfull: Bench, played: Played) -> None:
    played.answers = [saying({}, status=202, Retry_After="2"), embedding("apple")]
    await overfull.run(RANKING, operate)
    told = json.loads((await overfull.events())[-1].json)
    assert (told["stage"], told["detail"]["due_in_s"]) == ("waiting", 2.0)
    await overfull.become_due()
    await overfull.run(RANKING, operate)
    assert Journal(await overfull.record()).documents[0].id == "d30"


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([saying({}, status=400)], "neighbour_refused"),
        ([embedding("apple"), saying({"model": "e", "embeddings": []})], "neighbour_refused"),
        ([saying({"model": "e", "embeddings": [[1.0]] * BATCH_TEXTS}), embedding("apple")], "neighbour_refused"),
    ],
)
async def test_an_embedding_that_is_of_no_use_ends_the_execution(
    overfull: Bench, played: Played, answers: list[Handler], code: str
) -> None:
    played.answers = answers
    await overfull.run(RANKING, operate)
    error = (await overfull.response()).error
    assert error is not None
    assert error.code == code


async def test_an_orchestrator_that_is_away_is_asked_again(desk: Bench, played: Played) -> None:
    played.answers = [saying({}, status=503), saying(DOCUMENTS)]
    await desk.run(STEP, operate)
    assert '"state":"waiting"' in (await desk.record()).steps[STEP]
    await desk.become_due()
    await desk.run(STEP, operate)
    assert Journal(await desk.record()).retrieved is not None


async def test_an_orchestrator_that_refuses_ends_the_execution(desk: Bench, played: Played) -> None:
    played.answers = [saying({}, status=403)]
    await desk.run(STEP, operate)
    error = (await desk.response()).error
    assert error is not None
    assert error.code == "neighbour_refused"
    assert "AGENT_EXEC_SERVICE_TOKEN" in error.message
