"""`schemas`: the contract as JSON Schema, for those who do not read Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click

from agent_exec.contract.agent import AgentConfig, Tenant
from agent_exec.contract.approval import Approval, ApprovalAnswer
from agent_exec.contract.batch import BatchEnded, BatchList, BatchRequest, BatchResult, BatchView
from agent_exec.contract.callback import CallbackList, CallbackView, ExecutionEnded
from agent_exec.contract.command import CommandResult
from agent_exec.contract.event import (
    CompletedData,
    FailedData,
    Frame,
    ProgressData,
    StartedData,
    StepRestartedData,
    TokenData,
    ToolApprovalRequestedData,
    ToolCallCompletedData,
    ToolCallRequestedData,
)
from agent_exec.contract.execution import ExecutionRequest, ExecutionView, FinalResponse
from agent_exec.contract.message import Message
from agent_exec.contract.model import ContractModel
from agent_exec.contract.operation import Embedding, EmbeddingResult, Query, QueryResult
from agent_exec.contract.schedule import ScheduleList, ScheduleRequest, ScheduleView
from agent_exec.contract.tool import ToolExecution, ToolFailure, ToolList, ToolResult

#: What we read is described as it is accepted; what we write, as it is written.
READ: dict[str, type[ContractModel]] = {
    "message": Message,
    "execution-request": ExecutionRequest,
    "batch-request": BatchRequest,
    "schedule-request": ScheduleRequest,
    "approval": Approval,
    "agent-config": AgentConfig,
    "tenant": Tenant,
    "tool-list": ToolList,
    "tool-result": ToolResult,
    "tool-failure": ToolFailure,
    "query-result": QueryResult,
    "embedding-result": EmbeddingResult,
}
WRITTEN: dict[str, type[ContractModel]] = {
    "execution-view": ExecutionView,
    "final-response": FinalResponse,
    "approval-answer": ApprovalAnswer,
    "batch-view": BatchView,
    "batch-list": BatchList,
    "batch-result": BatchResult,
    "schedule-view": ScheduleView,
    "schedule-list": ScheduleList,
    "callback": ExecutionEnded,
    "batch-callback": BatchEnded,
    "callback-view": CallbackView,
    "callback-list": CallbackList,
    "frame": Frame,
    "frame-data-started": StartedData,
    "frame-data-progress": ProgressData,
    "frame-data-tool-call-requested": ToolCallRequestedData,
    "frame-data-tool-approval-requested": ToolApprovalRequestedData,
    "frame-data-tool-call-completed": ToolCallCompletedData,
    "frame-data-token": TokenData,
    "frame-data-step-restarted": StepRestartedData,
    "frame-data-completed": CompletedData,
    "frame-data-failed": FailedData,
    "command-result": CommandResult,
    "tool-execution": ToolExecution,
    "query": Query,
    "embedding": Embedding,
}


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def schemas(directory: Path) -> None:
    """Write the JSON Schemas of the contract into DIR, one file a model."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        (directory / name).write_text(text)
    click.echo(f"{len(texts())} schemas in {directory}.")


def texts() -> dict[str, str]:
    """Return the text of each file by its name."""
    modes: dict[Literal["validation", "serialization"], dict[str, type[ContractModel]]] = {
        "validation": READ,
        "serialization": WRITTEN,
    }
    return {
        f"{name}.schema.json": _text(model, mode) for mode, models in modes.items() for name, model in models.items()
    }


def _text(model: type[ContractModel], mode: Literal["validation", "serialization"]) -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema(mode=mode)}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
