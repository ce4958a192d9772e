"""Whoever asked for callbacks: takes them, verifies each, and fails as a test asks.

Owns what came. Does not know what sent it. Any path under `/hooks` is one receiver's.

Source: Standard Webhooks.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import asdict, dataclass

from pydantic import BaseModel, ConfigDict, Field
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.journal import Journal, canaries_in
from sandbox.neighbour import body_of, neighbour, number_in

#: Signs the callbacks of a sandbox, and opens nothing: base64 of "sandbox-callback-secret-".
DEFAULT_SECRET = "whsec_c2FuZGJveC1jYWxsYmFjay1zZWNyZXQt"
MAX_WAIT_S = 30.0


class Mode(BaseModel):
    """Faults: the `status` of every answer, its `Retry-After`, and how long it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: int = Field(default=200, ge=200, le=599)
    retry_after_s: int | None = Field(default=None, ge=0)
    delay_s: float = Field(default=0, ge=0, le=60)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A callback as it came; `fault` says what of its signature is wrong, if anything is."""

    received_at_ms: int
    path: str
    webhook_id: str
    body_sha256: str
    canaries: list[str]
    fault: str | None
    status: int


class Receiver:
    """What came, and how it is answered."""

    def __init__(self, secret: str) -> None:
        """Verify with this secret."""
        self._webhook = Webhook(secret)
        self._mode = Mode()
        self._arrivals: Journal[Arrival] = Journal()

    async def take(self, request: Request) -> Response:
        """Take a callback; one that does not verify is refused."""
        mode, body = self._mode, await request.body()
        fault: str | None = None
        try:
            self._webhook.verify(body, dict(request.headers))
        except (WebhookVerificationError, ValueError) as error:  # ValueError: no base64, no JSON
            fault = str(error)
        status = mode.status if fault is None else 401
        self._arrivals.add(
            Arrival(
                received_at_ms=time.time_ns() // 1_000_000,
                path=str(request.path_params["path"]),
                webhook_id=request.headers.get("webhook-id", ""),
                body_sha256=hashlib.sha256(body).hexdigest(),
                canaries=canaries_in(body),
                fault=fault,
                status=status,
            )
        )
        await asyncio.sleep(mode.delay_s)
        headers = {} if mode.retry_after_s is None else {"retry-after": str(mode.retry_after_s)}
        return Response(status_code=status, headers=headers)

    async def arrivals(self, request: Request) -> JSONResponse:
        """What came past `after`; waits up to `wait_s` for the first."""
        found = await self._arrivals.wait_after(
            int(number_in(request, "after")), within_s=min(number_in(request, "wait_s"), MAX_WAIT_S)
        )
        shown = [{"number": number, **asdict(arrival)} for number, arrival in found]
        return JSONResponse({"last": self._arrivals.last, "callbacks": shown})

    async def change_mode(self, request: Request) -> JSONResponse:
        """Put a new mode in place of the old; what it leaves out is off."""
        self._mode = await body_of(request, Mode)
        return JSONResponse(self._mode.model_dump())


def create_app(*, secret: str = DEFAULT_SECRET) -> Starlette:
    """Return the receiver."""
    receiver = Receiver(secret)
    return neighbour(
        routes=[
            Route("/hooks/{path:path}", receiver.take, methods=["POST"]),
            Route("/callbacks", receiver.arrivals),
            Route("/_mode", receiver.change_mode, methods=["POST"]),
        ]
    )
