"""The four neighbours and a receiver of callbacks in one application, and the environment that points a service at it.

Owns the prefixes. Does not know what stands behind them.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from agent_exec.contract.event import Frame
from sandbox import llm, management, orchestrator, receiver, tools

#: Opens nothing but a sandbox.
DEFAULT_TOKEN = "sandbox-service-token"
#: This machine, and the networks that containers have: there the receiver of callbacks is.
PRIVATE_NETWORKS = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"


def create_app(
    *,
    token: str | None = DEFAULT_TOKEN,
    pace: float = 1.0,
    ack_every: int = 1,
    show: Callable[[Frame], None] | None = None,
) -> Starlette:
    """Return all of them.

    `token` is the bearer token of the three neighbours, None for none; `pace` stretches the pauses of the LLM, 0 takes them
    out; every `ack_every` frames are acknowledged, 0 none; `show` sees each frame that the orchestrator gets.
    """
    return Starlette(
        routes=[
            Route("/health", _health),
            Mount("/openai", llm.create_app("openai", pace=pace)),
            Mount("/groq", llm.create_app("groq", pace=pace)),
            Mount("/registry", tools.create_app(token=token)),
            Mount("/management", management.create_app(token=token)),
            Mount("/orchestrator", orchestrator.create_app(token=token, ack_every=ack_every, show=show)),
            Mount("/receiver", receiver.create_app()),
        ]
    )


def sandbox_environment(base_url: str, token: str = DEFAULT_TOKEN) -> dict[str, str]:
    """Return the variables of docs/contract.md that point a service at the sandbox at `base_url`, such as
    `http://127.0.0.1:8701`.
    """
    base_url = base_url.rstrip("/")
    return {
        "AGENT_EXEC_ENVIRONMENT": "sandbox",
        "OPENAI_BASE_URL": f"{base_url}/openai/v1",
        "OPENAI_API_KEY": "sk-sandbox-openai",
        "GROQ_BASE_URL": f"{base_url}/groq",
        "GROQ_API_KEY": "sk-sandbox-groq",
        "AGENT_EXEC_TOOL_REGISTRY_URL": f"{base_url}/registry",
        "AGENT_EXEC_AGENT_MANAGEMENT_URL": f"{base_url}/management",
        "AGENT_EXEC_ORCHESTRATOR_URL": f"{base_url}/orchestrator",
        "AGENT_EXEC_ORCHESTRATOR_WS_URL": f"{base_url.replace('http', 'ws', 1)}/orchestrator/ws/task_updates",
        "AGENT_EXEC_SERVICE_TOKEN": token,
        "AGENT_EXEC_CALLBACK_SECRET": receiver.DEFAULT_SECRET,
        "AGENT_EXEC_CALLBACK_ALLOW_HTTP": "true",
        "AGENT_EXEC_CALLBACK_ALLOWED_NETWORKS": PRIVATE_NETWORKS,
    }


async def _health(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})
