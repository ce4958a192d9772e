"""A real browser, without a window: Chromium, told what to do over its DevTools protocol.

Owns starting it, one page, and what runs in that page. Does not know what is tested.

Source: Chrome DevTools Protocol, domains Target, Page, Network and Runtime.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.processes import Process, wait_until

#: Any of them will do; Debian's package of the first one is the smallest.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
#: A sandbox takes rights that containers do not have, and the page is our own.
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0")


def browser_path() -> str | None:
    """Return where this machine has a browser."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page of the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._session: dict[str, str] = {}

    async def open(self, url: str, *, headers: Mapping[str, str]) -> None:
        """Go there; every request from now on has these headers, as behind a gateway that adds them."""
        target = await self._ask("Target.createTarget", url="about:blank")
        attached = await self._ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        await self._ask("Network.enable")
        await self._ask("Network.setExtraHTTPHeaders", headers=dict(headers))
        assert "errorText" not in await self._ask("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """Return what an expression, or a promise of it, comes to in the page."""
        answer = await self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters, **self._session}))
        async for message in self._socket:
            told = json.loads(message)
            if told.get("id") == number:
                assert "error" not in told, told
                answer: dict[str, Any] = told["result"]
                return answer
        raise AssertionError("the browser has left")


@asynccontextmanager
async def page(path: str, folder: Path) -> AsyncIterator[Page]:
    """Run a browser, and open a page in it."""
    command = [path, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with Process("browser", command, env={"HOME": str(folder)}, log=folder / "browser.log") as browser:
        listening = wait_until(
            lambda: re.search(r"DevTools listening on (ws://\S+)", browser.output), what="the browser", within_s=30
        )
        async with connect(listening[1], max_size=None) as socket:
            yield Page(socket)
