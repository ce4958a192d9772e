"""Pages of other origins: none may use the API, unless the settings name their origin.

Owns which headers such a page may send and read. Does not know the routes. Sockets are not its concern: conversation.py
looks at their origin.

Source: WHATWG, "Fetch Standard", section 3.2, the CORS protocol.
"""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

READABLE = ("ETag", "Location", "Preference-Applied", "Retry-After", "X-Request-Id")
#: How long a browser may rely on an answer to its preflight request; revoking an origin takes as long.
MAX_AGE_S = 600


class Cors:
    """ASGI middleware: Starlette's own, with the origins of the settings, which are read when the application starts."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app
        self._guarded: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._guarded is None:
            self._guarded = self._guard(scope["state"]["shim"].settings.api_allowed_origins)
        await self._guarded(scope, receive, send)

    def _guard(self, origins: frozenset[str]) -> ASGIApp:
        if not origins:
            return self._app
        return CORSMiddleware(
            self._app,
            allow_origins=sorted(origins),
            allow_methods=("GET", "POST"),
            allow_headers=("*",),  # a key travels in Authorization, so cookies are neither sent nor looked at
            expose_headers=READABLE,
            max_age=MAX_AGE_S,
        )
