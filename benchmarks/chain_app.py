"""The service's own worker with steps that do nothing: claimed, recorded and followed, but no model and no tool is asked.

`celery -A benchmarks.chain_app worker`. An execution's query says how it goes: `chain 50` is a prompt and fifty completions
one after the other, `join 10` ten times a completion and three tool calls that the next completion waits for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import tasks.steps
from agent_exec import routing
from agent_exec.contract.completion import CompletionResponse, Usage
from agent_exec.contract.tool import ToolCall, ToolCallRecord
from agent_exec.ledger.ledger import StepRef
from benchmarks.hint_app import MEMBERS
from tasks.attempt import run_step
from tasks.celery import app
from tasks.next_step import AskModel, CallTools, Finish, Join, Next
from tasks.step import Done, Step

__all__ = ["app"]


async def _complete(step: Step) -> Done:
    shape, length = step.claim.execution.message.payload.query.split()
    turn, more = step.number, step.number < int(length)
    calls = [ToolCall(id=f"c{turn}.{index}", name="none", arguments="{}") for index in range(MEMBERS)]
    answer = CompletionResponse(
        provider="openai",
        model="none",
        tool_calls=calls if shape == "join" and more else [],
        finish_reason="tool_calls" if more else "stop",
        usage=Usage(),
    )
    follows: Next = Finish(answer)
    if more:
        follows = CallTools(turn, MEMBERS) if shape == "join" else AskModel(turn + 1)
    return Done(result=answer.model_dump_json(), events=[], next=follows)


async def _call_tool(step: Step) -> Done:
    record = ToolCallRecord(id=step.ref.step, name="none", arguments={}, duration_s=0)
    return Done(result=record.model_dump_json(), events=[], next=Join(step.number))


def _instead(kind: str, do: Callable[[Step], Awaitable[Done]]) -> None:
    async def step_task(self: Any, *, tenant_id: str, execution_id: str, step: str, version: int) -> None:
        await run_step(self, StepRef(tenant_id, execution_id, step), do, limit_s=60)

    name = routing.task_name(kind)
    assert name in app.tasks, f"{tasks.steps.__name__} has no task {name}"
    del app.tasks[name]
    app.task(step_task, name=name, bind=True, shared=False)


_instead("completion", _complete)
_instead("tool_call", _call_tool)
