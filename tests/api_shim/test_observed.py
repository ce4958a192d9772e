"""Around the routes: what an unforeseen fault, and a key of the wrong role, come to. Driven as a server drives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from agent_exec import api_keys
from agent_exec.api_keys import Role
from agent_exec.callbacks.door import Door
from agent_exec.errors import Forbidden
from agent_exec.settings import read_settings
from agent_exec.store import Store
from api_shim.app import create_app
from api_shim.counters import Counters
from api_shim.credentials import Credentials
from api_shim.live import Live
from api_shim.observed import Observed
from api_shim.open_streams import OpenStreams
from api_shim.operation import Asked, Operation, routes
from api_shim.problem import problem_response
from api_shim.rates import Rates
from api_shim.shim import Shim

NOWHERE = "redis://127.0.0.1:1"


async def driven(app: Any, path: str = "/", **scope: Any) -> list[Message]:
    """Send one GET through an ASGI application; return what it sent."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(
        {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "state": {}, **scope},
        receive,
        send,
    )
    return sent


async def test_a_fault_that_nobody_foresaw_is_a_500_without_its_text() -> None:
    """S29."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("the password is CANARY")

    counters = Counters()
    start, body = await driven(Observed(broken, counters=counters))
    assert start["status"] == 500
    assert b"x-request-id" in dict(start["headers"])
    problem = json.loads(body["body"])
    assert problem["code"] == "internal_error"
    assert "CANARY" not in body["body"].decode()


async def test_a_fault_within_an_answer_ends_it() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late")

    with pytest.raises(RuntimeError, match="too late"):
        await driven(Observed(broken, counters=Counters()))


@pytest.mark.parametrize(("role", "is_let_in"), [("operator", True), ("caller", False), ("service", False)])
async def test_an_operation_of_a_role_takes_keys_of_that_role_alone(
    tmp_path: Path, role: Role, is_let_in: bool
) -> None:
    async def answer(asked: Asked[Any, None]) -> Response:
        return Response(asked.caller.role)

    async def told(_: Any, error: Exception) -> Response:
        return problem_response(error)

    operation = Operation(method="GET", path="/upkeep", function=answer, role="operator", answers={200: "text/plain"})
    key = api_keys.create(tmp_path / "keys.json", tenant_id="acme", role=role)
    settings = read_settings(api_keys_file=tmp_path / "keys.json")
    shim = Shim(
        settings,
        Store(NOWHERE),
        Credentials(settings),
        Live(NOWHERE),
        Counters(),
        OpenStreams(1),
        Door(),
        Rates(1),
    )
    app = Starlette(routes=routes([operation]), exception_handlers={Forbidden: told})
    headers = [(b"authorization", f"Bearer {key}".encode())]
    start, body = await driven(app, "/upkeep", headers=headers, state={"shim": shim})
    assert start["status"] == (200 if is_let_in else 403)
    assert is_let_in or json.loads(body["body"])["code"] == "forbidden"


def test_importing_and_making_the_application_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_EXEC_LEASE_S", "not a number")
    assert create_app().routes
