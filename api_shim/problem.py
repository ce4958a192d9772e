"""What a caller is told when a request fails: RFC 9457 `application/problem+json`, with a stable `code`.

Owns the one table from an error to a status. Its texts name no value of the request, no host, no stack: those are logged.

Source: RFC 9457, "Problem Details for HTTP APIs".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from agent_exec.contract.model import ContractModel
from agent_exec.errors import (
    AgentExecError,
    AlreadyResolved,
    Conflict,
    Forbidden,
    InvalidMessage,
    NotAwaitingApproval,
    NotFound,
    QueueFull,
    StorageFull,
    StorageUnavailable,
    Unauthorized,
)

MEDIA_TYPE = "application/problem+json"
#: A caller's own text is repeated to this length, made printable (faults, section 6).
MAX_ECHO_CHARS = 64
MAX_COMPLAINTS = 10
RETRY_AFTER = {"Retry-After": "1"}


class Problem(ContractModel):
    """The body of every answer that is an error."""

    type: Annotated[str, Field(examples=["urn:agent-execution:problem:not_found"])]
    title: str
    status: int
    code: Annotated[str, Field(description="stable; the table is in docs/contract.md")]
    detail: str
    retryable: Annotated[bool, Field(description="whether the same request may succeed a little later")] = False


@dataclass(frozen=True, slots=True)
class Kind:
    """How one class of error is told. Without `detail` the error's own text is."""

    status: int
    title: str
    detail: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


KINDS: dict[type[Exception], Kind] = {
    InvalidMessage: Kind(422, "The request breaks the contract"),
    QueueFull: Kind(429, "The tenant's queue is full", headers=RETRY_AFTER),
    Conflict: Kind(422, "The idempotency key was used for another request"),
    # The same for a missing execution and another tenant's, to the letter.
    NotFound: Kind(404, "Not found", "This tenant has no such execution. It may have expired; check the id."),
    NotAwaitingApproval: Kind(409, "The tool call does not wait for approval"),
    AlreadyResolved: Kind(409, "The approval was resolved before"),
    Unauthorized: Kind(401, "Who are you?", headers={"WWW-Authenticate": 'Bearer realm="agent-execution"'}),
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
}
BROKEN = "The cause is logged under the id in X-Request-Id."


class Refused(Exception):
    """HTTP itself is at fault, not the contract; `status` is a key of `REFUSALS`."""

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Keep the status, what to say, and the headers of the answer."""
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}


#: Status → code and title.
REFUSALS: dict[int, tuple[str, str]] = {
    400: ("invalid_json", "The body is not JSON"),
    404: ("route_not_found", "There is nothing here"),
    405: ("method_not_allowed", "This path has other methods"),
    408: ("body_timeout", "The body took too long"),
    413: ("body_too_large", "The body is too large"),
    415: ("unsupported_media_type", "The body is of another type"),
    431: ("headers_too_large", "The headers are too large"),
}


def problem_response(error: Exception) -> Response:
    """Return the answer that tells of `error`. One that nobody foresaw is told as a 500 without its text."""
    problem, headers = _told(error)
    return Response(
        problem.model_dump_json(),
        status_code=problem.status,
        headers={"Cache-Control": "no-store", **headers},
        media_type=MEDIA_TYPE,
    )


def code_of(error: AgentExecError | Refused) -> str:
    """Return the code that `error` is told with."""
    return _told(error)[0].code


def detail_of(error: AgentExecError | Refused) -> str:
    """Return the text that `error` is told with."""
    return _told(error)[0].detail


def breach(error: ValidationError, *, where: str) -> InvalidMessage:
    """Return pydantic's complaints as ours: which fields of the `where` are wrong and how, no value of theirs."""
    complaints = [
        f"{printable('.'.join(str(part) for part in item['loc'])) or where}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False)[:MAX_COMPLAINTS]
    ]
    return InvalidMessage(f"The {where} breaks the contract: {'; '.join(complaints)}.")


def printable(text: str) -> str:
    """Return a caller's text as it may be repeated to them."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:MAX_ECHO_CHARS])


def _told(error: Exception) -> tuple[Problem, Mapping[str, str]]:
    match error:
        case Refused():
            code, title = REFUSALS[error.status]
            return _problem(code, title, error.status, str(error)), error.headers
        case HTTPException(status_code=404 | 405 as status):  # the router's
            code, title = REFUSALS[status]
            return _problem(code, title, status, "See /openapi.json."), error.headers or {}
        case AgentExecError() if type(error) in KINDS:
            kind = KINDS[type(error)]
            told = _problem(error.code, kind.title, kind.status, kind.detail or str(error), retryable=error.retryable)
            return told, kind.headers
        case _:
            return _problem("internal_error", "This service is broken", 500, BROKEN), {}


def _problem(code: str, title: str, status: int, detail: str, *, retryable: bool = False) -> Problem:
    return Problem(
        type=f"urn:agent-execution:problem:{code}",
        title=title,
        status=status,
        code=code,
        detail=detail,
        retryable=retryable,
    )
