"""A provider of the OpenAI wire that never gives an answer, on a thread of its own.

Owns three ways not to: `silent` says nothing, `trickling` says nothing of use for ever, `limited` answers 429 and asks for a
long pause. Does not know what is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

#: Longer than any test.
RETRY_AFTER_S = 600
TRICKLE_EVERY_S = 0.2


class OddProvider:
    """How often each way was taken, and how many connections stand."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: Counter[str] = Counter()
        self.open = 0

    @property
    def setting(self) -> str:
        """AGENT_EXEC_PROVIDERS, with a provider for each way."""
        url = f"http://127.0.0.1:{self.port}"
        return json.dumps({way: {"base_url": f"{url}/{way}/v1"} for way in ("silent", "trickling", "limited")})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            way = head.split("/")[1]
            self.asked[way] += 1
            if way == "limited":
                writer.write(
                    f"HTTP/1.1 429 Too Many Requests\r\nretry-after: {RETRY_AFTER_S}\r\ncontent-length: 0\r\n"
                    "connection: close\r\n\r\n".encode()
                )
                await writer.drain()
                return
            if way == "trickling":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            while not reader.at_eof():
                if way == "trickling":
                    writer.write(b": wait\n\n")
                    await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(65_536), TRICKLE_EVERY_S)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


@contextlib.contextmanager
def odd_provider() -> Iterator[OddProvider]:
    """Run one."""
    provider = OddProvider()
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def run() -> None:
        server: Any = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
        provider.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield provider
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
