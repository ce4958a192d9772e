"""The Celery tasks: taking in a standard message, and the four kinds of step, under the names of the contract.

Owns names, signatures, what a hint's arguments have to be, and how long each kind of step may take at most. A hint's
arguments are ids and a version; nothing else ever shows in Flower.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from celery import Task

from agent_exec import routing
from agent_exec.broker import fair_queue
from agent_exec.hint import HINT_VERSION
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import StepRef
from agent_exec.settings import Settings
from tasks.attempt import run_step
from tasks.celery import app
from tasks.completion import complete
from tasks.intake import DiscreetRequest, take_in, turn_away
from tasks.links import take_off
from tasks.operation import operate
from tasks.prompt import prepare
from tasks.resources import Resources
from tasks.step import Done, Step
from tasks.tool_call import call_tool

log = structlog.get_logger(__name__)

#: What a step may take beside the neighbour or provider that it waits for, each of which has a limit of its own: only a
#: step that hangs where it must not is ended by its kind's limit.
BESIDES_S = 10.0
#: The prompt step asks for the tenant, the agent and its tools.
PROMPT_QUESTIONS = 3


@app.task(name=routing.EXECUTE_TASK, bind=True, Request=DiscreetRequest)  # type: ignore[untyped-decorator]  # celery has no types
async def execute(self: Task, *positional: Any, **arguments: Any) -> None:
    """Take in a standard message."""
    if positional or arguments.keys() != {"message"}:
        await turn_away(self, reason="arguments that are none of the intake's: it takes one, by the name 'message'")
    else:
        await take_in(self, arguments["message"])


def _step(kind: str, do: Callable[[Step], Awaitable[Done]], *, waits_s: Callable[[Settings], float]) -> Any:
    async def step_task(self: Task, *positional: Any, **arguments: Any) -> None:
        resources: Resources = self.resources
        linked = take_off(self.request)
        match arguments:
            case _ if linked:
                await _refuse(self, reason="a hint with links: only 'agent_exec.execute' may have any")
            case {
                "tenant_id": str(tenant_id),
                "execution_id": str(execution_id),
                "step": str(step),
                "version": int(version),
                **unknown,
            } if not positional and routing.task_name(step) == self.name and (version > HINT_VERSION or not unknown):
                ref = StepRef(tenant_id, execution_id, step)
                if tenant_id not in self.request.delivery_info["routing_key"].split(":")[1:2]:
                    await _refuse(self, reason=f"another tenant than its queue's: {tenant_id}")
                elif version > HINT_VERSION:
                    await resources.store.insist(ledger.put_off(ref))
                    log.info("hint left to a newer worker", version=version, execution_id=execution_id, step=step)
                else:
                    await run_step(self, ref, do, limit_s=waits_s(resources.settings) + BESIDES_S)
            case _:
                await _refuse(self, reason=f"arguments that are none of a {kind} step's")

    step_task.__doc__ = do.__doc__
    return app.task(step_task, name=routing.task_name(kind), bind=True)


async def _refuse(task: Task, *, reason: str) -> None:
    log.warning("message refused", task=task.name, reason=reason)
    resources: Resources = task.resources
    delivery = task.request.properties.get("delivery_tag", "")
    await resources.store.insist(fair_queue.dead_letter(delivery, reason=reason))


prompt = _step("prompt", prepare, waits_s=lambda settings: PROMPT_QUESTIONS * settings.neighbour_timeout_s)
operation = _step("operation", operate, waits_s=lambda settings: settings.provider_total_timeout_s)
completion = _step("completion", complete, waits_s=lambda settings: settings.provider_total_timeout_s)
tool_call = _step("tool_call", call_tool, waits_s=lambda settings: settings.tool_timeout_s)
