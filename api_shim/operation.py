"""An operation: one method of one path, as a value; and what is checked before its function is called.

Owns the order of the checks: who asks, whether they may, which execution, which parameters, which body. Does not know
any operation by name; `app.py` has the table of them.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from agent_exec.api_keys import Caller, Role
from agent_exec.contract.model import EXECUTION_ID_PATTERN
from agent_exec.errors import Forbidden, InvalidMessage, NotFound, Unauthorized
from api_shim.body import read_json
from api_shim.problem import breach
from api_shim.shim import Shim

ParametersT = TypeVar("ParametersT", bound="Parameters")
BodyT = TypeVar("BodyT", bound=BaseModel | None)

_EXECUTION_ID = re.compile(EXECUTION_ID_PATTERN)


class Parameters(BaseModel):
    """What a request says beside its body: a field with an alias is the header of that name, any other of the query."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def headers(cls) -> dict[str, str]:
        """Return the field of each header."""
        return {field.alias: name for name, field in cls.model_fields.items() if field.alias is not None}


class NoParameters(Parameters):
    """None are taken."""


@dataclass(frozen=True)
class Asked(Generic[ParametersT, BodyT]):
    """A request that passed all checks."""

    shim: Shim
    connection: HTTPConnection
    parameters: ParametersT
    body: BodyT
    signed_by: Caller | None

    @property
    def caller(self) -> Caller:
        """Who asks; every operation with a role has one."""
        assert self.signed_by is not None
        return self.signed_by

    @property
    def tenant_id(self) -> str:
        """Whose executions these are: the credential says so, and nothing else."""
        return self.caller.tenant_id

    @property
    def execution_id(self) -> str:
        """The execution that the path names."""
        return str(self.connection.path_params["execution_id"])


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One row of the table: the route, the checks and the OpenAPI document are made from it.

    `role`: `caller` lets in any key of the tenant, another role its keys alone, None everybody; then parameters are not
    looked at. `answers`: for each status, the model of the body, or its media type.
    """

    method: Literal["GET", "POST", "WEBSOCKET"]
    path: str
    function: Callable[..., Awaitable[Any]]
    role: Role | None = "caller"
    parameters: type[Parameters] = NoParameters
    body: type[BaseModel] | None = None
    answers: Mapping[int, type[BaseModel] | str]

    @property
    def errors(self) -> list[int]:
        """Which statuses a problem may come with."""
        statuses = {503}
        if self.role is not None:
            statuses |= {401, 403, 422}
        if "{execution_id}" in self.path:
            statuses.add(404)
        if "{tool_call_id}" in self.path:
            statuses.add(409)
        if self.body is not None:
            statuses |= {400, 408, 413, 415}
        return sorted(statuses)

    def route(self) -> BaseRoute:
        """Return it as Starlette takes it."""
        if self.method == "WEBSOCKET":
            return WebSocketRoute(self.path, self._converse)
        return Route(self.path, self._answer, methods=[self.method])

    async def _answer(self, request: Request) -> Response:
        response: Response = await self.function(await self._checked(request))
        return response

    async def _converse(self, websocket: WebSocket) -> None:
        await self.function(await self._checked(websocket), websocket)

    async def _checked(self, connection: HTTPConnection) -> Asked[Any, Any]:
        connection.state.route = self.path
        shim: Shim = connection.state.shim
        if self.role is None:
            return Asked(shim, connection, NoParameters(), None, None)
        caller = _authorized(shim, connection, self.role)
        execution_id = connection.path_params.get("execution_id")
        if execution_id is not None and not _EXECUTION_ID.fullmatch(execution_id):
            raise NotFound("No execution has such an id.")
        parameters = _parameters(self.parameters, connection)
        body = None
        if self.body is not None:
            assert isinstance(connection, Request)
            text = await read_json(connection, timeout_s=shim.settings.api_body_timeout_s)
            try:
                body = self.body.model_validate_json(text)
            except ValidationError as error:
                raise breach(error, where="body") from None
        return Asked(shim, connection, parameters, body, caller)


def _authorized(shim: Shim, connection: HTTPConnection, role: Role) -> Caller:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("Send an API key: Authorization: Bearer aek_….")
    caller = shim.api_keys.verify(key.strip())
    if role not in ("caller", caller.role):
        raise Forbidden(f"This takes a key with the role {role}; yours has {caller.role}.")
    return caller


def _parameters(model: type[Parameters], connection: HTTPConnection) -> Parameters:
    headers = model.headers()
    named = [(name, value) for name, value in connection.query_params.multi_items()]
    if any(name in headers for name, _ in named):
        raise InvalidMessage("A header of this operation was sent in the query.")
    named += [(name, value) for name in headers for value in connection.headers.getlist(name)]
    given = dict(named)
    if len(given) < len(named):
        raise InvalidMessage("A parameter was sent twice.")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise breach(error, where="parameters") from None


def json_response(model: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `model` as an answer that nobody on the way may keep."""
    return Response(
        model.model_dump_json(),
        status_code=status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        media_type="application/json",
    )
