"""Around every request: its id, its line in the log, its count; and the answer when something broke that nobody foresaw.

Owns X-Request-Id. Does not know any route.
"""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api_shim.counters import Counters
from api_shim.problem import PROBLEMS, Refused, problem_response

log = structlog.get_logger(__name__)

#: Eight times what a request of ours needs with a key, a token and a proxy's additions.
MAX_HEADER_BYTES = 32_000
_TOO_LARGE = Refused("headers_too_large", f"The headers have at most {MAX_HEADER_BYTES} bytes.")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Observed:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, *, counters: Counters) -> None:
        """Wrap `app`."""
        self._app = app
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and watch its answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
                status = message.get("status", 101)
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        began_s = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
                    await problem_response(_TOO_LARGE)(scope, receive, send_with_id)
                else:
                    await self._app(scope, receive, send_with_id)
            except Exception:
                log.exception("request broke")
                if status:
                    raise
                form = scope.get("state", {}).get("form", PROBLEMS)
                await problem_response(RuntimeError(), form)(scope, receive, send_with_id)
            finally:
                took_s = time.perf_counter() - began_s
                route = scope.get("state", {}).get("route", "none")
                method = scope.get("method", "WEBSOCKET")
                self._counters.requests.labels(method, route, status).inc()
                self._counters.seconds.labels(route).observe(took_s)
                log.info("request", method=method, route=route, status=status, took_ms=round(took_s * 1000, 1))
