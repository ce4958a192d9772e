"""Where a step's hint goes, and how urgent it is. Pure.

Owns the names of queues and tasks, and the table of priorities. Does not know how a queue works.
"""

from __future__ import annotations

from agent_exec.contract.agent import AgentType, Plan

EXECUTION_FAMILY = "agent_execution"
TOOLS_FAMILY = "agent_tools"
FAMILIES = (EXECUTION_FAMILY, TOOLS_FAMILY)

#: The task that takes in a standard message; its name is the contract's.
EXECUTE_TASK = "agent_exec.execute"

#: A plan bounds how urgent its callers' wishes may be.
MOST_URGENT: dict[Plan, int] = {"free": 5, "pro": 7, "enterprise": 9}
#: An agent's type shifts a wish: somebody waits for an interactive answer, nobody for a batch.
SHIFT: dict[AgentType, int] = {"interactive": 1, "workflow": 0, "batch": -2}
#: Finishing what has begun beats beginning more.
STARTED_BONUS = 1


#: What a tenant counts as until a worker has learnt its plan.
UNKNOWN_PLAN: Plan = "free"


def step_kind(step: str) -> str:
    """Return the kind of a step from its name: `tool_call.2.0` → `tool_call`."""
    return step.partition(".")[0]


def task_name(step: str) -> str:
    """Return the Celery task that does this step."""
    return f"agent_exec.{step_kind(step)}"


def queue(tenant_id: str, agent_id: str, step: str) -> str:
    """Return the tenant's queue for this step."""
    if step_kind(step) == "tool_call":
        return f"{TOOLS_FAMILY}:{tenant_id}:{agent_id}"
    return f"{EXECUTION_FAMILY}:{tenant_id}"


def priority_by_plan(wish: int) -> dict[Plan, int]:
    """Return the effective priority of an execution that has not begun, for each plan; of its agent nothing is known yet."""
    return {plan: priority(wish, plan=plan, agent_type="workflow", started=False) for plan in MOST_URGENT}


def priority(wish: int, *, plan: Plan, agent_type: AgentType, started: bool) -> int:
    """Return the effective priority, 0–9, of the caller's `wish`: clamped to the plan, shifted by type and progress."""
    allowed = min(wish, MOST_URGENT[plan]) + SHIFT[agent_type] + (STARTED_BONUS if started else 0)
    return max(0, min(9, allowed))
