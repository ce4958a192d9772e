"""A Tool Registry whose tools never answer: it tells when each call came, and when its socket was closed."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

TOOL = {
    "name": "slow",
    "description": "Never answers.",
    "parameters": {"type": "object", "properties": {"seconds": {"type": "number"}}},
    "effect": "read",
    "timeout_s": 60,
}


@dataclass(slots=True)
class ToolCall:
    """One call; times in seconds since the epoch."""

    execution_id: str
    came_s: float
    closed_s: float | None = None


class PlayedRegistry:
    """The registry, in threads of this process. While `away` it answers 503 and asks for a minute's patience."""

    def __init__(self) -> None:
        """Listen on a free port."""
        self.calls: list[ToolCall] = []
        self.away = False
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status = 503 if registry.away else 200
                body = json.dumps({"tools": [TOOL]}).encode()
                self.send_response(status)
                self.send_header("Retry-After", "60")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                call = ToolCall(asked["execution_id"], time.time())
                registry.calls.append(call)
                self.connection.recv(1)  # returns when the other end closes: nobody says more on this socket
                call.closed_s = time.time()
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def calls_of(self, execution_id: str) -> list[ToolCall]:
        """Return the calls that an execution has made."""
        return [call for call in self.calls if call.execution_id == execution_id]

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
