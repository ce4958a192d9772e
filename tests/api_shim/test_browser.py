"""What a browser makes of us: its own EventSource, through restarts of the shim and to the end; and the page of /docs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agent_exec.contract.event import EventName
from agent_exec.embedded import EmbeddedServer
from agent_exec.store import Store
from api_shim.app import OPERATIONS
from tests.api_shim.ag_ui_client import Conversation, judged
from tests.api_shim.browser import Page, browser_path, page
from tests.api_shim.conftest import Submitted, session
from tests.api_shim.played_worker import until
from tests.api_shim.shim_process import ShimProcess, shim_process
from tests.processes import free_port

#: Keeps what an EventSource has heard, and how often it has connected.
LISTEN = """
window.seen = []; window.opened = 0;
window.source = new EventSource(%s);
source.onopen = () => { opened += 1 };
for (const name of ["message", ...%s]) source.addEventListener(name, (event) => seen.push([event.lastEventId, event.data]));
"""
CLOSED = 2


@pytest.fixture
async def chromium(tmp_path: Path) -> AsyncIterator[Page]:
    path = browser_path()
    if path is None:
        pytest.skip("no browser: install chromium-headless-shell, or Chromium")
    async with page(path, tmp_path) as opened:
        yield opened


class Shims:
    """One shim after another at the same address."""

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        self._folder = folder
        self._settings = settings
        self._stack = ExitStack()
        self.running = self._started(free_port())

    def replace(self, *, killed: bool) -> None:
        """End the one that runs, and start another."""
        port = self.running.port
        if killed:
            self.running.kill()
        self._stack.close()
        self.running = self._started(port)

    def close(self) -> None:
        """End the last one."""
        self._stack.close()

    def _started(self, port: int) -> ShimProcess:
        return self._stack.enter_context(shim_process(self._folder, port=port, **self._settings))


@pytest.fixture
def shims(tmp_path: Path, redis_server: EmbeddedServer, redis_url: str, keys_file: Path) -> Iterator[Shims]:
    one_by_one = Shims(tmp_path, {"redis_url": redis_server.url, "api_keys_file": keys_file})
    yield one_by_one
    one_by_one.close()


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("form", ["frames", "ag-ui"])
async def test_an_event_source_resumes_after_restarts_and_stops_after_the_end(
    chromium: Page, shims: Shims, api_key: dict[str, str], async_store: Store, form: str, killed: bool
) -> None:
    request = {"agent_id": "desk", "query": "q"}
    async with session(shims.running, api_key["acme"]) as acme, acme.post("/v1/executions", json=request) as response:
        execution = Submitted(async_store, await response.json())
    await chromium.open(f"{shims.running.url}/health/live", headers={"Authorization": f"Bearer {api_key['acme']}"})
    await until(lambda: chromium.run("location.pathname === '/health/live' && document.readyState === 'complete'"))
    url = f"{execution.path}/events?format={form}"
    await chromium.run(LISTEN % (json.dumps(url), json.dumps([str(name) for name in EventName])))

    async def seen() -> list[Any]:
        heard: list[Any] = await chromium.run("seen")
        return heard

    async def has_seen(token: str) -> bool:
        return any(token in data for _, data in await seen())

    for restart in range(2):
        await execution.tell(f"before {restart}. ")
        await until(lambda: has_seen(f"before {restart}"))  # noqa: B023  waited for in this very turn
        telling = asyncio.create_task(execution.tell(*[f"{number} " for number in range(50)]))
        await asyncio.to_thread(shims.replace, killed=killed)
        await telling
        await execution.tell(f"after {restart}. ")
        await until(lambda: has_seen(f"after {restart}"), within_s=30)  # noqa: B023
    said = "".join(f"before {n}. {''.join(f'{number} ' for number in range(50))}after {n}. " for n in range(2))
    await execution.finish(said)
    await until(lambda: chromium.run(f"source.readyState === {CLOSED}"), within_s=30)

    heard = await seen()
    assert await chromium.run("opened") >= 3
    if form == "frames":
        assert [int(last_id) for last_id, _ in heard] == list(range(1, 107))
        tokens = [json.loads(data)["data"].get("token", "") for _, data in heard]
        assert "".join(tokens) == said
    else:
        conversation = Conversation()
        for event in judged([data for _, data in heard]):
            conversation.apply(event)
        assert (conversation.texts, conversation.outcome) == ([said], "success")


async def test_the_page_of_the_document_shows_every_operation(chromium: Page, shim: ShimProcess) -> None:
    """Its policy lets the page's own scripts run, and it asks this server alone."""
    await chromium.open(f"{shim.url}/docs", headers={})
    shown = "document.querySelectorAll('.opblock').length"
    described = sum(operation.method != "WEBSOCKET" for operation in OPERATIONS)
    await until(lambda: chromium.run(f"{shown} === {described}"), within_s=30)
    fetched = await chromium.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert fetched == [f"{shim.url}/openapi.json"]
