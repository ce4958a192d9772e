"""The orchestrator's operations: retrieval and embeddings, which it performs on our behalf.

Owns the two paths. Does not know the Query and Embedding services, which stand behind the orchestrator.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from agent_exec.contract.operation import Embedding, EmbeddingResult, Query, QueryResult
from agent_exec.errors import NeighbourRefused
from agent_exec.submission import complaints
from tasks.neighbours.http import Neighbour

M = TypeVar("M", bound=BaseModel)


class Orchestrator:
    """The client of the orchestrator's HTTP operations."""

    def __init__(self, neighbour: Neighbour) -> None:
        """Take the connection."""
        self._neighbour = neighbour

    async def query(self, query: Query) -> QueryResult:
        """Return the documents that answer a query, best first.

        Raises:
            NeighbourError: the orchestrator failed us.
        """
        return await self._operation("query", query, QueryResult)

    async def embed(self, embedding: Embedding) -> EmbeddingResult:
        """Return a vector for each text.

        Raises:
            NeighbourError: the orchestrator failed us.
        """
        return await self._operation("embedding", embedding, EmbeddingResult)

    async def _operation(self, name: str, body: BaseModel, answer_model: type[M]) -> M:
        answer = await self._neighbour.ask("POST", f"/v1/operations/{name}", body=body.model_dump_json().encode())
        if answer.status != 200:
            raise NeighbourRefused(
                f"The orchestrator answered {answer.status} to the operation '{name}'; check AGENT_EXEC_SERVICE_TOKEN.",
                neighbour=self._neighbour.name,
            )
        try:
            return answer_model.model_validate_json(answer.body)
        except ValidationError as error:
            raise NeighbourRefused(
                f"The orchestrator answered the operation '{name}' with what breaks the contract: {complaints(error)}.",
                neighbour=self._neighbour.name,
            ) from None
