"""The Celery tasks: taking in a standard message, and the four kinds of step, under the names of the contract.

Owns names and signatures alone. A hint's arguments are ids and a version; nothing else ever shows in Flower.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from celery import Task

from agent_exec import routing
from agent_exec.ledger.ledger import StepRef
from tasks.celery import app
from tasks.completion import complete
from tasks.intake import DiscreetRequest, take_in
from tasks.operation import retrieve
from tasks.prompt import prepare
from tasks.step import Done, Step, run_step
from tasks.tool_call import call_tool


@app.task(name=routing.EXECUTE_TASK, bind=True, Request=DiscreetRequest)  # type: ignore[untyped-decorator]  # celery has no types
async def execute(self: Task, *, message: Any) -> None:
    """Take in a standard message."""
    await take_in(self, message)


def _step(kind: str, do: Callable[[Step], Awaitable[Done]]) -> Any:
    async def step_task(self: Task, *, tenant_id: str, execution_id: str, step: str, version: int) -> None:
        await run_step(self, StepRef(tenant_id, execution_id, step), do)

    step_task.__doc__ = do.__doc__
    return app.task(step_task, name=routing.task_name(kind), bind=True)


prompt = _step("prompt", prepare)
operation = _step("operation", retrieve)
completion = _step("completion", complete)
tool_call = _step("tool_call", call_tool)
