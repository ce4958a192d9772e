"""What tests of steps stand on: one execution with a real ledger, and a neighbour that answers as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from agent_exec import events, submission
from agent_exec.broker import fair_queue
from agent_exec.contract.execution import ExecutionRequest, FinalResponse
from agent_exec.contract.message import Message
from agent_exec.events import LoggedEvent
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import StepRef
from agent_exec.ledger.record import ExecutionRecord
from agent_exec.settings import Settings, read_settings
from agent_exec.store import Store
from providers.gate import Gate
from tasks.attempt import run_step
from tasks.leases import Leases
from tasks.neighbours.http import Neighbour
from tasks.quarantine import Quarantine
from tasks.step import Done, Step
from tasks.token_stream import Teller, TokenStream

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Do = Callable[[Step], Awaitable[Done]]


@dataclass
class Bench:
    """One execution, and the means to run its steps; `others` is what steps work with beside the store."""

    store: Store
    settings: Settings
    leases: Leases
    quarantine: Quarantine = field(default_factory=Quarantine)
    execution_id: str = ""
    others: dict[str, Any] = field(default_factory=dict)

    def stops(self) -> None:
        """The worker has to stop: its steps are handed back, and who does the next is another."""
        self.leases.hand_back()
        self.leases = Leases(self.store, lease_s=self.settings.lease_s, heartbeat_s=self.settings.heartbeat_s)

    async def accept(self, **request: Any) -> Message:
        """Accept an execution, and work on it from here on."""
        asked = ExecutionRequest.model_validate({"agent_id": "desk", "query": "6 * 7?", **request})
        message = submission.message_of(asked, tenant_id="acme")
        await self.store.run(submission.store(message, open_retention_s=3_600, max_queued=10_000))
        self.execution_id = message.execution_id
        return message

    @property
    def resources(self) -> Any:
        """What steps work with."""
        return SimpleNamespace(
            store=self.store,
            settings=self.settings,
            leases=self.leases,
            teller=self.teller(),
            quarantine=self.quarantine,
            worker="w",
            gate=Gate(self.store, probe_lease_s=5.0),
            **self.others,
        )

    def teller(self, *, flush_ms: int = 20) -> Teller:
        """Return who tells the tokens of a process."""
        return Teller(self.store, flush_ms=flush_ms, flush_bytes=self.settings.token_flush_bytes)

    def stream(self, step: Step, *, flush_ms: int) -> TokenStream:
        """Return the stream of a step, in a process of its own."""
        return TokenStream(self.teller(flush_ms=flush_ms), step.claim.hold)

    async def run(self, step: str, do: Do, *, limit_s: float = 30) -> None:
        """Do what a hint for `step` would start."""
        task: Any = SimpleNamespace(resources=self.resources, request=SimpleNamespace(id=f"{self.execution_id}.{step}"))
        await run_step(task, self.ref(step), do, limit_s=limit_s)

    async def become_due(self) -> None:
        """Wait until a waiting step's time has come."""
        while not (await self.store.run(ledger.due())).hints:
            await asyncio.sleep(0.01)

    def ref(self, step: str) -> StepRef:
        """Name a step of the execution."""
        return StepRef("acme", self.execution_id, step)

    async def record(self) -> ExecutionRecord:
        """Read the execution."""
        return await self.store.run(ledger.look("acme", self.execution_id))

    async def events(self) -> list[LoggedEvent]:
        """Read its events."""
        return (await self.store.run(events.read("acme", self.execution_id))).events

    async def logged(self) -> list[str]:
        """Return the names of its events."""
        return [event.name for event in await self.events()]

    async def response(self) -> FinalResponse:
        """Return the final response, which has to be there."""
        record = await self.record()
        assert record.response is not None, record.fields
        return record.response

    async def waiting(self, family: str = "agent_execution") -> int:
        """Count the hints that wait in a family."""
        return (await self.store.run(fair_queue.depths()))[family].waiting


@pytest.fixture
async def bench(async_store: Store) -> AsyncIterator[Bench]:
    """An accepted execution under short leases."""
    settings = read_settings(lease_s=1.0, heartbeat_s=0.02, max_attempts=2, max_retries=1)
    leases = Leases(async_store, lease_s=settings.lease_s, heartbeat_s=settings.heartbeat_s)
    beating = asyncio.create_task(leases.beat())
    ready = Bench(async_store, settings, leases)
    await ready.accept()
    yield ready
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)


def returning(done: Done) -> Do:
    """Return a step that comes to `done`."""

    async def do(_: Step) -> Done:
        return done

    return do


def raising(error: BaseException) -> Do:
    """Return a step that fails."""

    async def do(_: Step) -> Done:
        raise error

    return do


@dataclass(frozen=True)
class Asked:
    """A request that a played neighbour got."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: str


class Played:
    """A neighbour whose next answers are in a list; the last one repeats."""

    def __init__(self) -> None:
        self.answers: list[Handler] = []
        self.requests: list[Asked] = []
        self.url = ""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(Asked(request.method, request.path, dict(request.headers), await request.text()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


def saying(body: Any, *, status: int = 200, **headers: str) -> Handler:
    """Return an answer in JSON."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


def text(body: str | bytes, *, status: int = 200, **headers: str) -> Handler:
    """Return an answer as it is given."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(
            body=body.encode() if isinstance(body, str) else body,
            status=status,
            headers={k.replace("_", "-"): v for k, v in headers.items()},
        )

    return answer


async def hangs(_: web.Request) -> web.StreamResponse:
    """Answer never."""
    await asyncio.Event().wait()
    raise AssertionError("the client waited")


async def drops(request: web.Request) -> web.StreamResponse:
    """Cut the connection."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.fixture
async def played() -> AsyncIterator[Played]:
    """The server."""
    neighbour = Played()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", neighbour.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    neighbour.url = f"http://127.0.0.1:{runner.addresses[0][1]}/base/"
    yield neighbour
    await runner.cleanup()


@pytest.fixture
async def neighbour(played: Played) -> AsyncIterator[Neighbour]:
    """The connection to it."""
    async with Neighbour("Tool Registry", played.url, token=lambda: "secret", timeout_s=1.0) as opened:
        yield opened
