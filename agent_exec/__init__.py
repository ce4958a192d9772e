"""The floor of the Agent Execution Service: all that an orchestrator installs.

`from agent_exec import AgentExecClient`; the models are in `agent_exec.contract`, the errors in `agent_exec.errors`.
"""

from agent_exec.client import AgentExecClient
from agent_exec.contract.event import EventName, Frame
from agent_exec.contract.execution import ExecutionRequest, ExecutionView, FinalResponse
from agent_exec.contract.message import Message
from agent_exec.errors import AgentExecError

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
