"""An operation: one method of one path, as a value; and what is checked before its function is called.

Owns the order of the checks: who asks, whether they may, which execution, which parameters, which body. Does not know
any operation by name; `app.py` has the table of them.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from agent_exec.api_keys import Caller, Role
from agent_exec.contract.model import EXECUTION_ID_PATTERN
from agent_exec.errors import (
    AgentExecError,
    Forbidden,
    InternalError,
    InvalidMessage,
    NotFound,
    StorageFull,
    StorageUnavailable,
    TooManyAttempts,
    TooManyRequests,
    Unauthorized,
)
from api_shim.body import read_json
from api_shim.problem import PROBLEMS, ErrorForm, breach
from api_shim.shim import Shim

ParametersT = TypeVar("ParametersT", bound="Parameters")
BodyT = TypeVar("BodyT", bound=BaseModel | None)

Answer = type[BaseModel] | str
_EXECUTION_ID = re.compile(EXECUTION_ID_PATTERN)
#: What a path names that is a tenant's; each looks like the id of an execution.
OWNED_IDS = ("execution_id", "callback_id", "batch_id", "schedule_id")
IDEMPOTENCY_KEY_PATTERN = r"^[\x21-\x7e]{1,255}$"
#: An entity tag; a weak one is as good here (RFC 9110, section 13.1.2).
_TAG = re.compile(r'"[^"]*"')


class Parameters(BaseModel):
    """What a request says beside its body: a field with an alias is the header of that name, any other of the query."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def headers(cls) -> dict[str, str]:
        """Return the field of each header."""
        return {field.alias: name for name, field in cls.model_fields.items() if field.alias is not None}


class NoParameters(Parameters):
    """None are taken."""


class Repeatable(NoParameters):
    """What every POST takes, for callers whose client sends a key with all of them."""

    idempotency_key: Annotated[
        str | None,
        Field(
            alias="Idempotency-Key",
            pattern=IDEMPOTENCY_KEY_PATTERN,
            description="taken with every POST; this one may be repeated safely, with a key or without",
        ),
    ] = None


class Conditional(Parameters):
    """What a caller who kept an answer sends, to be spared the same again."""

    if_none_match: Annotated[
        str | None,
        Field(alias="If-None-Match", description="the `ETag` of an answer that is kept; 304 if it still holds"),
    ] = None


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
    looked at. `answers`: for each status, the model of the body or its media type, several where the request chooses, or
    None for no body. `headers`: those that an answer of a status may bear. `refuses`: the errors that are this operation's
    own; which ones every operation of its kind may end in is known here. `form`: how they are told. `reads`: the media types
    of a body that is too large to be held at once, so that the function reads and checks it itself; `body` says what it is
    as JSON.
    """

    method: Literal["GET", "POST", "DELETE", "WEBSOCKET"]
    path: str
    function: Callable[..., Awaitable[Any]]
    role: Role | None = "caller"
    parameters: type[Parameters] = NoParameters
    body: type[BaseModel] | None = None
    reads: Sequence[str] = ()
    answers: Mapping[int, Answer | tuple[Answer, ...] | None]
    headers: Mapping[int, Sequence[str]] = field(default_factory=dict)
    refuses: Sequence[type[AgentExecError] | str] = ()
    form: ErrorForm = PROBLEMS

    def forms(self, status: int) -> tuple[Answer, ...]:
        """Return what the body of an answer of this status may be."""
        match self.answers[status]:
            case None:
                return ()
            case tuple() as answers:
                return answers
            case answer:
                return (answer,)

    @property
    def taken(self) -> type[Parameters]:
        """The parameters, and what every operation of its method takes."""
        return Repeatable if self.method == "POST" and self.parameters is NoParameters else self.parameters

    @property
    def errors(self) -> list[type[AgentExecError] | str]:
        """What a caller may be told instead of an answer."""
        told: list[type[AgentExecError] | str] = [*self.refuses]
        if self.role is not None:
            told += [Unauthorized, TooManyAttempts, TooManyRequests, InvalidMessage, StorageUnavailable]
        if self.role not in (None, "caller"):
            told.append(Forbidden)
        if any(f"{{{name}}}" in self.path for name in OWNED_IDS):
            told.append(NotFound)
        if self.method in ("POST", "DELETE"):
            told.append(StorageFull)
        if self.body is not None:
            told += ["invalid_json", "body_timeout", "body_too_large", "unsupported_media_type"]
        return [*told, "headers_too_large", InternalError]

    async def answer(self, request: Request) -> Response:
        """Answer a request."""
        response: Response = await self.function(await self._checked(request))
        return response

    async def converse(self, websocket: WebSocket) -> None:
        """Serve a socket."""
        await self.function(await self._checked(websocket), websocket)

    async def _checked(self, connection: HTTPConnection) -> Asked[Any, Any]:
        connection.state.route = self.path
        connection.state.form = self.form
        shim: Shim = connection.state.shim
        if self.role is None:
            return Asked(shim, connection, NoParameters(), None, None)
        caller = _authorized(shim, connection, self.role)
        shim.rates.take(caller.tenant_id, now_s=time.monotonic())
        for name in OWNED_IDS:
            named = connection.path_params.get(name)
            if named is not None and not _EXECUTION_ID.fullmatch(named):
                raise NotFound("Nothing has such an id.")
        parameters = _parameters(self.taken, connection)
        body = None
        if self.body is not None and not self.reads:
            assert isinstance(connection, Request)
            text = await read_json(connection, timeout_s=shim.settings.api_body_timeout_s)
            try:
                body = self.body.model_validate_json(text)
            except ValidationError as error:
                raise breach(error, where="body") from None
        return Asked(shim, connection, parameters, body, caller)


def routes(operations: Sequence[Operation]) -> list[BaseRoute]:
    """Return the operations as Starlette takes them: one route a path, so that a 405 names all methods of its path."""
    sockets: list[BaseRoute] = []
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        if operation.method == "WEBSOCKET":
            sockets.append(WebSocketRoute(operation.path, operation.converse))
        else:
            by_path.setdefault(operation.path, {})[operation.method] = operation
    return [*[Route(path, _chosen(methods), methods=[*methods]) for path, methods in by_path.items()], *sockets]


def _chosen(methods: Mapping[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await methods[method].answer(request)

    return answer


def _authorized(shim: Shim, connection: HTTPConnection, role: Role) -> Caller:
    host = "" if connection.client is None else connection.client.host
    caller = shim.credentials.admit(connection.headers.getlist("authorization"), host=host)
    if role not in ("caller", caller.role):
        raise Forbidden(f"This takes a credential with the role {role}; yours has {caller.role}.")
    return caller


def _parameters(model: type[Parameters], connection: HTTPConnection) -> Parameters:
    headers = model.headers()
    named = connection.query_params.multi_items()
    if any(name in headers for name, _ in named):
        raise InvalidMessage("A header of this operation was sent in the query.")
    given = dict(named)
    if len(given) < len(named):
        raise InvalidMessage("A parameter was sent twice.")
    for name in headers:
        if lines := connection.headers.getlist(name):
            given[name] = ", ".join(lines)  # as RFC 9110, section 5.3, has it
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


def tagged_response(model: BaseModel, *, known: str | None) -> Response:
    """Return `model` as an answer that its caller may keep and ask after again; 304 where `known`, their If-None-Match,
    has its tag.
    """
    text = model.model_dump_json()
    tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    headers = {"Cache-Control": "private, no-cache", "ETag": tag}
    if known is not None and (known.strip() == "*" or tag in _TAG.findall(known)):
        return Response(status_code=304, headers=headers)
    return Response(text, headers=headers, media_type="application/json")
