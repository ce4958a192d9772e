"""What we ask of the orchestrator: retrieval and embeddings, never the Query or Embedding services themselves."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agent_exec.contract.model import AgentId, ContractModel, ExecutionId, JsonObject, TenantId


class Document(ContractModel):
    """One piece of retrieved text."""

    id: Annotated[str, Field(max_length=500)]
    text: Annotated[str, Field(max_length=100_000)]
    score: float = 0.0
    metadata: JsonObject = Field(default_factory=dict)


class Query(ContractModel):
    """The body of `POST /v1/operations/query`."""

    tenant_id: TenantId
    agent_id: AgentId
    execution_id: ExecutionId
    query: str
    top_k: Annotated[int, Field(ge=1, le=100)]
    filters: JsonObject = Field(default_factory=dict)


class QueryResult(ContractModel):
    """The documents found, best first."""

    documents: Annotated[list[Document], Field(max_length=100)]


class Embedding(ContractModel):
    """The body of `POST /v1/operations/embedding`."""

    tenant_id: TenantId
    execution_id: ExecutionId
    texts: Annotated[list[str], Field(min_length=1, max_length=2_048)]


class EmbeddingResult(ContractModel):
    """One vector a text, in the order of the texts."""

    model: str
    embeddings: list[list[float]]
