"""What the registry, Agent Management and the orchestrator have in common: the bearer token and the form of an error.

Owns both. Does not know any route.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from agent_exec.contract.model import MAX_BODY_BYTES

Body = TypeVar("Body", bound=BaseModel)


class Refused(Exception):
    """Answered with `status` and `{"error": {"code", "message"}}`."""

    def __init__(self, status: int, code: str, message: str) -> None:
        """Keep all three."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def refusal(status: int, code: str, message: str) -> JSONResponse:
    """Return the contract's error answer."""
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status)


class RequireBearer:
    """Lets HTTP requests and WebSocket handshakes through that carry `token`; answers the others 401."""

    def __init__(self, app: ASGIApp, *, token: str | None) -> None:
        """Guard `app`. Without a token everybody passes."""
        self._app = app
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        given = Headers(scope=scope).get("authorization", "").encode()
        if self._expected is None or hmac.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
        else:
            await refusal(401, "unauthorized", "The bearer token is missing or wrong.")(scope, receive, send)


def guarded(path: str, *, token: str | None, routes: Sequence[BaseRoute]) -> Mount:
    """Return the part of a neighbour that the contract describes: behind the token, with the contract's size of body."""
    return Mount(path, routes=routes, middleware=[Middleware(RequireBearer, token=token)], max_body_size=MAX_BODY_BYTES)


def neighbour(*, routes: Sequence[BaseRoute]) -> Starlette:
    """Return an application that answers every error in the contract's form."""
    return Starlette(routes=routes, exception_handlers={Refused: _refused, HTTPException: _http_error})


async def body_of(request: Request, model: type[Body]) -> Body:
    """Return the body as `model`.

    Raises:
        Refused: 400, it is not one.
    """
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise Refused(400, "invalid_request", wrong) from None


def number_in(request: Request, name: str) -> float:
    """Return the query parameter `name`, 0 where there is none.

    Raises:
        Refused: 400, it is no number.
    """
    given = request.query_params.get(name, "0")
    try:
        return float(given)
    except ValueError:
        raise Refused(400, "invalid_request", f"`{name}` is no number.") from None


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return refusal(error.status, error.code, error.message)


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, "not_found" if error.status_code == 404 else "invalid_request", error.detail)
