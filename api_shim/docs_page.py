"""The page that shows the OpenAPI document to people: one file, with all that it needs in it.

Owns the page and what a browser lets it do: its own two scripts run and no other, and it asks this server alone. Does not
know the document. Swagger UI comes from the wheel `offapi`, of which nothing is imported: that would load two other viewers.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_START = """
window.onload = () => SwaggerUIBundle({
  url: "openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null, queryConfigEnabled: false,
});
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Agent Execution Service</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<div id="page"></div>
<script>{viewer}</script>
<script>{start}</script>
</body>
</html>
"""
#: The viewer writes styles into its elements; none of them can load anything.
_MAY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def route() -> Route:
    """Return the route of the page."""

    async def answer(request: Request) -> Response:
        request.state.route = "/docs"
        page, packed, may = await asyncio.to_thread(_page)
        headers = {
            "Cache-Control": "private, max-age=3600",
            "Content-Security-Policy": may,
            "Referrer-Policy": "no-referrer",
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, headers={**headers, "Content-Encoding": "gzip"}, media_type="text/html")
        return Response(page, headers=headers, media_type="text/html")

    return Route("/docs", answer, methods=["GET"])


@cache
def _page() -> tuple[bytes, bytes, str]:
    """Return the page, the same packed, and what it may do."""
    found = find_spec("offapi")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent
    viewer = (folder / "swagger_bundle.js").read_text()
    style = (folder / "swagger_style.css").read_text()
    page = _PAGE.format(style=style, viewer=viewer, start=_START).encode()
    scripts = " ".join(f"'sha256-{_digest(script)}'" for script in (viewer, _START))
    return page, gzip.compress(page), _MAY.format(scripts=scripts)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
