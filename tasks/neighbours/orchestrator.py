"""The orchestrator's operations: retrieval and embeddings, which it performs on our behalf.

Owns the two paths, and how it says that an operation takes longer than a request should. Does not know the Query and
Embedding services, which stand behind the orchestrator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from agent_exec.contract.operation import Embedding, EmbeddingResult, Query, QueryResult
from agent_exec.errors import NeighbourRefused
from agent_exec.submission import complaints
from tasks.neighbours.http import Neighbour

M = TypeVar("M", bound=BaseModel)

#: When it is asked again where it does not say, and the soonest where it does: it is to be asked, not to be watched.
ASK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class UnderWay:
    """The orchestrator has begun, and is to be asked again after `due_in_s` under the same key."""

    due_in_s: float


class Orchestrator:
    """The client of the orchestrator's HTTP operations.

    An operation is asked for under an `idempotency_key`; asked again under it, the orchestrator goes on with the same one.
    """

    def __init__(self, neighbour: Neighbour) -> None:
        """Take the connection."""
        self._neighbour = neighbour

    async def query(self, query: Query, *, idempotency_key: str) -> QueryResult | UnderWay:
        """Return the documents that answer a query, best first.

        Raises:
            NeighbourError: the orchestrator failed us.
        """
        return await self._operation("query", query, QueryResult, idempotency_key)

    async def embed(self, embedding: Embedding, *, idempotency_key: str) -> EmbeddingResult | UnderWay:
        """Return a vector for each text, in their order.

        Raises:
            NeighbourError: the orchestrator failed us.
        """
        found = await self._operation("embedding", embedding, EmbeddingResult, idempotency_key)
        if isinstance(found, EmbeddingResult) and len(found.embeddings) != len(embedding.texts):
            raise self._broken("embedding", f"{len(found.embeddings)} vectors for {len(embedding.texts)} texts")
        return found

    async def _operation(self, name: str, body: BaseModel, answer_model: type[M], idempotency_key: str) -> M | UnderWay:
        answer = await self._neighbour.ask(
            "POST",
            f"/v1/operations/{name}",
            body=body.model_dump_json().encode(),
            headers={"Idempotency-Key": idempotency_key},
        )
        if answer.status == 202:
            return UnderWay(max(ASK_AGAIN_S, answer.retry_after_s or 0.0))
        if answer.status != 200:
            raise NeighbourRefused(
                f"The orchestrator answered {answer.status} to the operation '{name}'; check AGENT_EXEC_SERVICE_TOKEN.",
                neighbour=self._neighbour.name,
            )
        try:
            return answer_model.model_validate_json(answer.body)
        except ValidationError as error:
            raise self._broken(name, complaints(error)) from None

    def _broken(self, operation: str, how: str) -> NeighbourRefused:
        return NeighbourRefused(
            f"The orchestrator answered the operation '{operation}' with what breaks the contract: {how}.",
            neighbour=self._neighbour.name,
        )
