"""The operation steps: what the orchestrator does for us before the first turn. It searches, and it measures nearness.

Owns what is asked. An operation that is under way holds no slot: its step waits until it is to be asked again. Does not know
how documents are shown to the model, nor how many of them fit.
"""

from __future__ import annotations

import asyncio

from agent_exec.contract.event import EventName, ProgressData
from agent_exec.contract.operation import Document, Embedding, EmbeddingResult, Query
from agent_exec.errors import NeighbourRefused
from agent_exec.ledger.ledger import Event
from tasks import window
from tasks.journal import RANKING_STEP, RETRIEVAL_STEP, Ranking
from tasks.neighbours.orchestrator import UnderWay
from tasks.next_step import Defer, after_retrieval, ask
from tasks.step import Done, Step
from tasks.summary import summarise

#: In the event of a step that waits for an operation.
UNDER_WAY = "operation_under_way"
#: Vectors of 3,072 numbers are 60 kB of JSON each, and an answer may have two megabytes.
BATCH_TEXTS = 16
#: Embedding models read some 8,000 tokens and refuse more; what a document is about stands in its beginning.
TEXT_CHARS = 8_000


async def operate(step: Step) -> Done:
    """Do the step."""
    if step.ref.step == RETRIEVAL_STEP:
        return await retrieve(step)
    if step.ref.step == RANKING_STEP:
        return await rank(step)
    return await summarise(step)


async def retrieve(step: Step) -> Done:
    """Ask for the documents that the agent's retrieval wants."""
    retrieval = step.journal.fixed.config.retrieval
    message = step.claim.execution.message
    found = await step.resources.orchestrator.query(
        Query(
            tenant_id=message.tenant_id,
            agent_id=message.agent_id,
            execution_id=message.execution_id,
            query=message.payload.query,
            top_k=retrieval.top_k,
            filters=retrieval.filters,
        ),
        idempotency_key=_key(step),
    )
    if isinstance(found, UnderWay):
        return _under_way(found.due_in_s)
    result = found.model_dump_json()
    return Done(
        result=result,
        events=[_told(step, found.documents, left_out=0)],
        next=after_retrieval(step.journal.and_then(RETRIEVAL_STEP, result)),
    )


async def rank(step: Step) -> Done:
    """Ask how near each document is to the query, and keep the nearest that fit."""
    journal, ref = step.journal, step.ref
    texts = [journal.execution.message.payload.query, *(document.text for document in journal.documents)]
    asked = [
        Embedding(
            tenant_id=ref.tenant_id,
            execution_id=ref.execution_id,
            texts=[text[:TEXT_CHARS] for text in texts[start : start + BATCH_TEXTS]],
        )
        for start in range(0, len(texts), BATCH_TEXTS)
    ]
    embed = step.resources.orchestrator.embed
    found = await asyncio.gather(
        *(embed(batch, idempotency_key=f"{_key(step)}.{number}") for number, batch in enumerate(asked)),
        return_exceptions=True,  # so that none is left running by itself
    )
    answered: list[EmbeddingResult] = []
    due_in_s = 0.0
    for answer in found:
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, UnderWay):
            due_in_s = max(due_in_s, answer.due_in_s)
        else:
            answered.append(answer)
    if due_in_s > 0:
        return _under_way(due_in_s)
    query, *vectors = [vector for answer in answered for vector in answer.embeddings]
    if any(len(vector) != len(query) for vector in vectors):
        raise NeighbourRefused("The orchestrator answered with vectors of different lengths.", neighbour="Orchestrator")
    config = journal.fixed.config
    kept = window.nearest(journal, choice=config.choice, query=query, documents=vectors)
    shown = [journal.documents[place] for place in kept]
    return Done(
        result=Ranking(model=answered[0].model, kept=kept).model_dump_json(),
        events=[_told(step, shown, left_out=len(vectors) - len(kept))],
        next=ask(config, turn=1),
    )


def _key(step: Step) -> str:
    """The same for all attempts of the step."""
    return f"{step.ref.execution_id}.{step.ref.step}"


def _under_way(due_in_s: float) -> Done:
    return Done("null", [], Defer(due_in_s, code=UNDER_WAY))


def _told(step: Step, documents: list[Document], *, left_out: int) -> Event:
    progress = ProgressData(
        stage="retrieving",
        step=step.ref.step,
        detail={
            "documents": [document.id for document in documents],
            **({"left_out": left_out} if left_out else {}),
        },
    )
    return Event(EventName.PROGRESS, progress.model_dump_json())
