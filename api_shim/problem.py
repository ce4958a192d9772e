"""What a caller is told when a request fails: RFC 9457 `application/problem+json`, with a stable `code`.

Owns the one table from an error to a status. Its texts name no value of the request, no host, no stack: those are logged.

Source: RFC 9457, "Problem Details for HTTP APIs".
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from agent_exec.contract.model import ContractModel
from agent_exec.errors import (
    AgentExecError,
    AlreadyDelivered,
    AlreadyResolved,
    CallbacksNotConfigured,
    CallbackUrlInvalid,
    Conflict,
    Forbidden,
    InternalError,
    InvalidMessage,
    NotAwaitingApproval,
    NotFound,
    QueueFull,
    StorageFull,
    StorageUnavailable,
    TooManyAttempts,
    TooManyBatches,
    TooManyCommands,
    TooManyRequests,
    TooManySchedules,
    TooManyStreams,
    Unauthorized,
)
from api_shim.failed_attempts import WINDOW_S

MEDIA_TYPE = "application/problem+json"
#: A caller's own text is repeated to this length, made printable (faults, section 6).
MAX_ECHO_CHARS = 64
MAX_COMPLAINTS = 10
RETRY_AFTER = {"Retry-After": "1"}


class Complaint(ContractModel):
    """One thing that is wrong with a request."""

    field: Annotated[str, Field(examples=["query"])]
    message: str


class Problem(ContractModel):
    """The body of every answer that is an error."""

    type: Annotated[str, Field(examples=["urn:agent-execution:problem:not_found"])]
    title: str
    status: int
    code: Annotated[str, Field(description="stable; the table is in docs/contract.md")]
    detail: str
    retryable: Annotated[bool, Field(description="whether the same request may succeed a little later")] = False
    errors: Annotated[
        list[Complaint], Field(description="what is wrong where, as far as single fields are at fault")
    ] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Kind:
    """How one class of error is told. Without `detail` the error's own text is."""

    status: int
    title: str
    detail: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


KINDS: dict[type[Exception], Kind] = {
    InvalidMessage: Kind(422, "The request breaks the contract"),
    CallbackUrlInvalid: Kind(422, "A callback may not go there"),
    CallbacksNotConfigured: Kind(422, "Callbacks are not configured"),
    AlreadyDelivered: Kind(409, "The callback has arrived"),
    QueueFull: Kind(429, "The tenant's queue is full", headers=RETRY_AFTER),
    TooManyBatches: Kind(429, "Too many batches are under way", headers=RETRY_AFTER),
    TooManySchedules: Kind(429, "There are too many schedules"),
    TooManyRequests: Kind(429, "Too many requests", headers=RETRY_AFTER),
    TooManyStreams: Kind(429, "Too many streams are open", headers=RETRY_AFTER),
    TooManyCommands: Kind(429, "Too many commands", headers=RETRY_AFTER),
    Conflict: Kind(422, "The idempotency key was used for another request"),
    # The same for a missing execution and another tenant's, to the letter.
    NotFound: Kind(404, "Not found", "This tenant has nothing under this id. It may have expired; check the id."),
    NotAwaitingApproval: Kind(409, "The tool call does not wait for approval"),
    AlreadyResolved: Kind(409, "The approval was resolved before"),
    Unauthorized: Kind(401, "Who are you?", headers={"WWW-Authenticate": 'Bearer realm="agent-execution"'}),
    TooManyAttempts: Kind(429, "Too many attempts", headers={"Retry-After": f"{WINDOW_S:.0f}"}),
    Forbidden: Kind(403, "Not allowed"),
    StorageUnavailable: Kind(
        503,
        "The store does not answer",
        "Send the request again; with the same Idempotency-Key nothing is done twice. "
        "Operators: see that Redis runs, and AGENT_EXEC_REDIS_URL.",
        headers=RETRY_AFTER,
    ),
    StorageFull: Kind(
        503,
        "The store takes no more",
        "Nothing was stored; send the request again later. Operators: see the memory and the disk of Redis.",
        headers=RETRY_AFTER,
    ),
    InternalError: Kind(500, "This service is broken", "The cause is logged under the id in X-Request-Id."),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """How HTTP's own errors are told."""

    status: int
    title: str
    retryable: bool = False


#: The codes that no error of the contract has: HTTP itself is at fault, or how it is used.
REFUSALS: dict[str, Refusal] = {
    "invalid_json": Refusal(400, "The body is not JSON"),
    "route_not_found": Refusal(404, "There is nothing here"),
    "method_not_allowed": Refusal(405, "This path has other methods"),
    "body_timeout": Refusal(408, "The body took too long", retryable=True),
    "body_too_large": Refusal(413, "The body is too large"),
    "unsupported_media_type": Refusal(415, "The body is of another type"),
    "headers_too_large": Refusal(431, "The headers are too large"),
    "answer_restarted": Refusal(502, "What was streamed of the answer is void", retryable=True),
    "restarting": Refusal(503, "This process ends", retryable=True),
}
_OF_THE_ROUTER = {404: "route_not_found", 405: "method_not_allowed"}


class Refused(Exception):
    """HTTP itself is at fault, not the contract; `code` is a key of `REFUSALS`."""

    def __init__(self, code: str, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Keep the code, what to say, and the headers of the answer."""
        super().__init__(detail)
        self.code = code
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How an operation words its errors: the status, the body and further headers that a problem is told with."""

    media_type: str
    body: type[BaseModel]
    of: Callable[[Problem], tuple[int, BaseModel, Mapping[str, str]]]


PROBLEMS = ErrorForm(MEDIA_TYPE, Problem, lambda problem: (problem.status, problem, {}))


def problem_response(error: Exception, form: ErrorForm = PROBLEMS) -> Response:
    """Return the answer that tells of `error`. One that nobody foresaw is told as a 500 without its text."""
    problem, headers = _told(error)
    status, body, further = form.of(problem)
    return Response(
        body.model_dump_json(),
        status_code=status,
        headers={"Cache-Control": "no-store", **headers, **further},
        media_type=form.media_type,
    )


def said_of(error: type[Exception]) -> str:
    """Return what an error is, as its docstring begins."""
    first, *_ = re.split(r"[;\n]", inspect.getdoc(error) or "", maxsplit=1)
    return f"{first.rstrip('.')}."


def problem_of(error: Exception) -> Problem:
    """Return what a caller is told of `error`."""
    return _told(error)[0]


def sample(error: type[AgentExecError] | str) -> tuple[Problem, Mapping[str, str]]:
    """Return what a caller is told of an error of this class, or of this code of `REFUSALS`, and the headers beside it."""
    if isinstance(error, str):
        refusal = REFUSALS[error]
        return _problem(error, refusal.title, refusal.status, f"{refusal.title}.", retryable=refusal.retryable), {}
    kind = KINDS[error]
    detail = kind.detail or said_of(error)
    return _problem(error.code, kind.title, kind.status, detail, retryable=error.retryable), kind.headers


def code_of(error: AgentExecError | Refused) -> str:
    """Return the code that `error` is told with."""
    return _told(error)[0].code


def detail_of(error: AgentExecError | Refused) -> str:
    """Return the text that `error` is told with."""
    return _told(error)[0].detail


def breach(error: ValidationError, *, where: str) -> InvalidMessage:
    """Return pydantic's complaints as ours: which fields of the `where` are wrong and how, no value of theirs."""
    complaints = [(place or where, wrong) for place, wrong in complaints_of(error)]
    said = "; ".join(f"{place}: {wrong}" for place, wrong in complaints)
    return InvalidMessage(f"The {where} breaks the contract: {said}.", complaints=complaints)


def complaints_of(error: ValidationError) -> list[tuple[str, str]]:
    """Return the first of pydantic's complaints: each field, and what is wrong with it."""
    return [
        (printable(".".join(str(part) for part in item["loc"])), item["msg"])
        for item in error.errors(include_url=False, include_input=False)[:MAX_COMPLAINTS]
    ]


def printable(text: str) -> str:
    """Return a caller's text as it may be repeated to them."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:MAX_ECHO_CHARS])


def _told(error: Exception) -> tuple[Problem, Mapping[str, str]]:
    match error:
        case Refused(code=code):
            refusal = REFUSALS[code]
            told = _problem(code, refusal.title, refusal.status, str(error), retryable=refusal.retryable)
            return told, error.headers
        case HTTPException(status_code=404 | 405 as status):  # the router's
            code = _OF_THE_ROUTER[status]
            return _problem(code, REFUSALS[code].title, status, "See /openapi.json."), error.headers or {}
        case InvalidMessage():
            kind = KINDS[InvalidMessage]
            complaints = [Complaint(field=place, message=wrong) for place, wrong in error.complaints]
            return _problem(error.code, kind.title, kind.status, str(error), errors=complaints), kind.headers
        case AgentExecError() if type(error) in KINDS:
            kind = KINDS[type(error)]
            told = _problem(error.code, kind.title, kind.status, kind.detail or str(error), retryable=error.retryable)
            if isinstance(error, TooManyRequests):
                return told, {"Retry-After": str(math.ceil(error.retry_after_s))}
            return told, kind.headers
        case _:
            return sample(InternalError)


def _problem(
    code: str, title: str, status: int, detail: str, *, retryable: bool = False, errors: Sequence[Complaint] = ()
) -> Problem:
    return Problem(
        type=f"urn:agent-execution:problem:{code}",
        title=title,
        status=status,
        code=code,
        detail=detail,
        retryable=retryable,
        errors=[*errors],
    )
