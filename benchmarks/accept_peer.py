"""What the accept benchmark needs beside the service: a peer that takes work in, and who knows the agent.

    python -m benchmarks.accept_peer intake --port N --redis URL
    python -m benchmarks.accept_peer management --port N

The intake is what one writes first: Starlette, `send_task`, 202. It asks nobody who they are, looks at nothing, keeps no
record and no key of what came before; the message is in the queue, and that is all.
"""

from __future__ import annotations

import argparse
import uuid
from typing import Any

import uvicorn
from celery import Celery
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

TENANT, AGENT = "bench", "desk"
CONFIG = {"agent_id": AGENT, "provider": "openai", "model": "script"}


def intake(redis_url: str) -> Starlette:
    """Return the peer."""
    celery = Celery(broker=redis_url, set_as_current=False)
    celery.conf.task_ignore_result = True

    async def submit(request: Request) -> JSONResponse:
        execution_id = str(uuid.uuid4())
        # Half a millisecond, which a thread would make one: it is sent from the loop.
        celery.send_task("execute", kwargs={"message": await request.json()}, task_id=execution_id)
        headers = {"Location": f"/v1/executions/{execution_id}"}
        return JSONResponse({"execution_id": execution_id, "status": "pending"}, status_code=202, headers=headers)

    return Starlette(routes=[Route("/v1/executions", submit, methods=["POST"])])


def management() -> Starlette:
    """Return an Agent Management that knows one agent of one tenant."""

    async def tenant(_: Request) -> JSONResponse:
        return JSONResponse({"tenant_id": TENANT, "plan": "enterprise"})

    async def agent(_: Request) -> JSONResponse:
        return JSONResponse(CONFIG)

    return Starlette(
        routes=[Route(f"/v1/tenants/{TENANT}", tenant), Route(f"/v1/tenants/{TENANT}/agents/{AGENT}", agent)]
    )


def main() -> None:
    """Serve one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["intake", "management"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--redis", default="")
    options = parser.parse_args()
    app: Any = intake(options.redis) if options.what == "intake" else management()
    uvicorn.run(app, port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
