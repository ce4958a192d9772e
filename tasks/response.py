"""The final response of an execution, and its form as a Celery result. Pure.

Owns how journaled steps add up to an answer. Does not know who reads it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from agent_exec.contract.completion import CompletionResponse, Usage
from agent_exec.contract.execution import ErrorDetail, FinalResponse, Output
from agent_exec.contract.message import Metadata
from agent_exec.errors import AgentExecError, ExecutionError, ExecutionFailed
from tasks.journal import Journal

#: What of a message's metadata comes back; the rest says what is to be done.
CALLERS = set(Metadata.model_fields)


def completed(journal: Journal, answer: CompletionResponse, *, structured: Any, at_ms: float) -> FinalResponse:
    """Return the response of an execution that `answer` completes."""
    return _response(journal, answer, Output(text=answer.text, structured=structured), None, at_ms)


def failed(
    journal: Journal,
    error: ExecutionError,
    *,
    answer: CompletionResponse | None,
    partial: str,
    cut_off: Usage | None,
    at_ms: float,
) -> FinalResponse:
    """Return the response of an execution that failed, with what was done, said and paid before.

    `cut_off` is what the call of the last turn used that ended without an answer.
    """
    why = ErrorDetail(code=error.code, message=str(error), retryable=error.retryable, detail=error.detail)
    output = Output(text=answer.text if answer is not None else partial)
    return _response(journal, answer, output, why, at_ms, cut_off=cut_off)


def _response(
    journal: Journal,
    answer: CompletionResponse | None,
    output: Output,
    error: ErrorDetail | None,
    at_ms: float,
    *,
    cut_off: Usage | None = None,
) -> FinalResponse:
    execution = journal.execution
    turns = [*journal.turns, *([] if answer is None else [answer])]
    last = turns[-1] if turns else None
    paid = answer.usage if answer is not None else cut_off
    chosen = last or (journal.snapshot.config if journal.snapshot is not None else None)
    return FinalResponse(
        execution_id=execution.message.execution_id,
        tenant_id=execution.tenant_id,
        agent_id=execution.agent_id,
        status="completed" if error is None else "failed",
        output=output,
        error=error,
        usage=journal.usage if paid is None else journal.usage.plus(paid),
        tool_calls=journal.all_tool_records,
        turns=len(turns),
        finish_reason=last.finish_reason if last is not None else None,
        parent_execution_id=execution.parent.execution_id if execution.parent is not None else None,
        provider=chosen.provider if chosen is not None else None,
        model=chosen.model if chosen is not None else None,
        created_at=execution.created_at,
        started_at=execution.started_at,
        finished_at=datetime.fromtimestamp(at_ms / 1000, tz=UTC),
        metadata=Metadata.model_validate(execution.message.metadata.model_dump(include=CALLERS)),
    )


def celery_result(response: FinalResponse) -> str:
    """Return the response as Celery's Redis backend stores a result: a value, or an `ExecutionFailed` to raise."""
    value = response.model_dump(mode="json")
    if response.error is None:
        return _celery_meta(response.execution_id, "SUCCESS", value, response.finished_at)
    raised = _celery_failure(ExecutionFailed(response.error.code, response.error.message, value))
    return _celery_meta(response.execution_id, "FAILURE", raised, response.finished_at)


def celery_refusal(execution_id: str, error: AgentExecError) -> str:
    """Return the Celery result of a message that was not taken in: its error, to raise."""
    raised = _celery_failure(ExecutionFailed(error.code, str(error), {}))
    return _celery_meta(execution_id, "FAILURE", raised, datetime.now(UTC))


def _celery_failure(error: ExecutionFailed) -> dict[str, Any]:
    kind = type(error)
    return {"exc_type": kind.__qualname__, "exc_message": list(error.args), "exc_module": kind.__module__}


def _celery_meta(task_id: str, status: str, result: Any, at: datetime) -> str:
    return json.dumps(
        {
            "status": status,
            "result": result,
            "traceback": None,
            "children": [],
            "date_done": at.isoformat(),
            "task_id": task_id,
        }
    )
