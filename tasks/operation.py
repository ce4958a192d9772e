"""The operation step: ask the orchestrator for the documents that the agent's retrieval wants.

Owns the query. Does not know how the documents are shown to the model.
"""

from __future__ import annotations

from agent_exec.contract.event import EventName, ProgressData
from agent_exec.contract.operation import Query
from agent_exec.ledger.ledger import Event
from tasks.next_step import AskModel
from tasks.step import Done, Step


async def retrieve(step: Step) -> Done:
    """Do the step."""
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
        )
    )
    progress = ProgressData(
        stage="retrieving", step=step.ref.step, detail={"documents": [document.id for document in found.documents]}
    )
    return Done(
        result=found.model_dump_json(),
        events=[Event(EventName.PROGRESS, progress.model_dump_json())],
        next=AskModel(1),
    )
