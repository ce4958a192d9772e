"""The floor of the Agent Execution Service: all that an orchestrator installs.

`from agent_exec import AgentExecClient`; the models are in `agent_exec.contract`, the errors in `agent_exec.errors`. The
names below are loaded when they are first used, so that a program which needs one module does not wait for all.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_exec.client import AgentExecClient
    from agent_exec.contract.event import EventName, Frame
    from agent_exec.contract.execution import ExecutionRequest, ExecutionView, FinalResponse
    from agent_exec.contract.message import Message
    from agent_exec.errors import AgentExecError

_HOME = {
    "AgentExecClient": "agent_exec.client",
    "AgentExecError": "agent_exec.errors",
    "EventName": "agent_exec.contract.event",
    "ExecutionRequest": "agent_exec.contract.execution",
    "ExecutionView": "agent_exec.contract.execution",
    "FinalResponse": "agent_exec.contract.execution",
    "Frame": "agent_exec.contract.event",
    "Message": "agent_exec.contract.message",
}

__all__ = [
    "AgentExecClient",
    "AgentExecError",
    "EventName",
    "ExecutionRequest",
    "ExecutionView",
    "FinalResponse",
    "Frame",
    "Message",
]


def __getattr__(name: str) -> Any:
    """Load one of the names above."""
    if name not in _HOME:
        raise AttributeError(f"module 'agent_exec' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
