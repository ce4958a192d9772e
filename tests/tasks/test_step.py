"""The guards round a step, with a real ledger and steps that do as the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from agent_exec import events, submission
from agent_exec.broker import fair_queue
from agent_exec.contract.agent import AgentConfig, Tenant
from agent_exec.contract.completion import CompletionResponse, Usage
from agent_exec.contract.execution import ExecutionRequest, FinalResponse
from agent_exec.embedded import EmbeddedServer
from agent_exec.errors import AgentNotFound, NeighbourUnavailable
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, StepRef
from agent_exec.settings import Settings, read_settings
from agent_exec.store import Store
from tasks.journal import Snapshot
from tasks.leases import Leases
from tasks.next_step import AskModel, CallTools, Finish, Join
from tasks.step import Done, Step, run_step
from tasks.token_stream import MAX_CHARS, TokenStream

SNAPSHOT = Snapshot(
    config=AgentConfig(agent_id="desk", provider="openai", model="sandbox-1"), tenant=Tenant(tenant_id="acme")
)
ANSWER = CompletionResponse(
    provider="openai", model="sandbox-1", text="42", finish_reason="stop", usage=Usage(total_tokens=3)
)
PREPARED = Done(SNAPSHOT.model_dump_json(), [], AskModel(1), snapshot=SNAPSHOT)
ANSWERED = Done(ANSWER.model_dump_json(), [], Finish(ANSWER))

Do = Callable[[Step], Awaitable[Done]]


@dataclass
class Bench:
    """One execution, and the means to run its steps."""

    store: Store
    settings: Settings
    leases: Leases
    execution_id: str

    async def run(self, step: str, do: Do) -> None:
        resources = SimpleNamespace(store=self.store, settings=self.settings, leases=self.leases, worker="w")
        ref = StepRef("acme", self.execution_id, step)
        task: Any = SimpleNamespace(resources=resources, request=SimpleNamespace(id=f"{self.execution_id}.{step}"))
        await run_step(task, ref, do)

    async def logged(self) -> list[str]:
        page = await self.store.run(events.read("acme", self.execution_id))
        return [event.name for event in page.events]

    async def response(self) -> FinalResponse:
        record = await self.store.run(ledger.look("acme", self.execution_id))
        assert record.response is not None, record.fields
        return record.response

    async def waiting(self, family: str = "agent_execution") -> int:
        return (await self.store.run(fair_queue.depths()))[family].waiting


@pytest.fixture
async def bench(async_store: Store) -> AsyncIterator[Bench]:
    """An accepted execution under short leases."""
    settings = read_settings(lease_s=1.0, heartbeat_s=0.02, max_attempts=2, max_retries=1)
    leases = Leases(async_store, lease_s=settings.lease_s, heartbeat_s=settings.heartbeat_s)
    beating = asyncio.create_task(leases.beat())
    message = submission.message_of(ExecutionRequest(agent_id="desk", query="6 * 7?"), tenant_id="acme")
    await async_store.run(submission.store(message, open_retention_s=3_600, max_queued=10_000))
    yield Bench(async_store, settings, leases, message.execution_id)
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)


def returning(done: Done) -> Do:
    async def do(_: Step) -> Done:
        return done

    return do


def raising(error: BaseException) -> Do:
    async def do(_: Step) -> Done:
        raise error

    return do


async def never(_: Step) -> Done:
    await asyncio.sleep(60)
    raise AssertionError("not cancelled")


async def test_steps_lead_from_one_to_the_next_and_to_one_end(bench: Bench) -> None:
    asked = CompletionResponse.model_validate(
        ANSWER.model_dump()
        | {"text": "", "tool_calls": [{"id": str(n), "name": "t", "arguments": "{}"} for n in (1, 2)]}
    )
    await bench.run("prompt", returning(PREPARED))
    await bench.run("completion.1", returning(Done(asked.model_dump_json(), [], CallTools(turn=1, count=2))))
    for index in (0, 1):
        record = f'{{"id":"{index}","name":"t","arguments":{{}},"result":{index},"duration_s":0.1}}'
        await bench.run(f"tool_call.1.{index}", returning(Done(record, [], Join(1))))
    await bench.run("completion.2", returning(ANSWERED))
    final = await bench.response()
    assert (final.status, final.output.text, final.turns, len(final.tool_calls)) == ("completed", "42", 2, 2)
    assert await bench.waiting("agent_tools") == 2
    assert await bench.waiting() == 2, "the hints of completion.1 and of completion.2"
    assert (await bench.logged())[-1] == "agent_execution_completed"


async def test_a_hint_that_comes_again_does_nothing(bench: Bench) -> None:
    await bench.run("prompt", returning(PREPARED))
    await bench.run("prompt", raising(AssertionError("done twice")))
    await bench.run("completion.7", raising(AssertionError("never created")))


async def test_a_passing_error_waits_in_the_ledger_and_then_fails(bench: Bench) -> None:
    away = NeighbourUnavailable("Agent Management is away", neighbour="Agent Management")
    await bench.run("prompt", raising(away))
    assert (await bench.logged())[-1] == "agent_execution_progress"
    record = await bench.store.run(ledger.look("acme", bench.execution_id))
    assert '"state":"waiting"' in record.steps["prompt"]
    while not (await bench.store.run(ledger.due())).hints:
        await asyncio.sleep(0.01)
    await bench.run("prompt", raising(away))
    final = await bench.response()
    assert final.error is not None
    assert (final.error.code, final.error.retryable) == ("neighbour_unavailable", True)


async def test_an_error_that_no_retry_mends_ends_the_execution(bench: Bench) -> None:
    await bench.run("prompt", raising(AgentNotFound("no such agent; create it")))
    final = await bench.response()
    assert final.error is not None
    assert (final.error.code, final.error.message) == ("agent_not_found", "no such agent; create it")


async def test_a_fault_of_ours_ends_the_execution_and_tells_nothing_of_itself(bench: Bench) -> None:
    await bench.run("prompt", raising(ZeroDivisionError("sk-CANARY")))
    final = await bench.response()
    assert final.error is not None
    assert final.error.code == "internal_error"
    assert "CANARY" not in final.model_dump_json()


async def test_a_cancel_stops_a_running_step_and_keeps_what_it_had_said(bench: Bench) -> None:
    await bench.run("prompt", returning(PREPARED))

    async def stream(step: Step) -> Done:
        step.partial = lambda: "forty"
        await bench.store.run(ledger.cancel("acme", bench.execution_id))
        return await never(step)

    await asyncio.wait_for(bench.run("completion.1", stream), 5)
    final = await bench.response()
    assert final.error is not None
    assert (final.error.code, final.output.text) == ("cancelled", "forty")


async def test_a_cancelled_execution_is_not_begun(bench: Bench) -> None:
    await bench.store.run(ledger.cancel("acme", bench.execution_id))
    await bench.run("prompt", raising(AssertionError("begun")))
    final = await bench.response()
    assert final.error is not None
    assert final.error.code == "cancelled"


async def test_a_step_whose_lease_is_lost_writes_nothing(bench: Bench) -> None:
    async def overtaken(step: Step) -> Done:
        await bench.store.run(ledger.release(step.claim.hold))
        again = await bench.store.run(ledger.claim(step.ref, lease_s=60, worker="other"))
        assert isinstance(again, Claimed)
        return await never(step)

    before = await bench.logged()
    await asyncio.wait_for(bench.run("prompt", overtaken), 5)
    assert await bench.logged() == before


async def test_leases_are_renewed_while_a_step_runs(bench: Bench) -> None:
    async def long(step: Step) -> Done:
        await asyncio.sleep(bench.settings.lease_s * 1.5)
        return PREPARED

    await bench.run("prompt", long)
    record = await bench.store.run(ledger.look("acme", bench.execution_id))
    assert record.result("prompt") is not None


async def test_the_deadline_ends_a_step_that_hangs(async_store: Store, bench: Bench) -> None:
    request = ExecutionRequest(agent_id="desk", query="6 * 7?", deadline_s=0.2)
    message = submission.message_of(request, tenant_id="acme")
    await async_store.run(submission.store(message, open_retention_s=3_600, max_queued=10_000))
    bench.execution_id = message.execution_id
    await asyncio.wait_for(bench.run("prompt", never), 5)
    final = await bench.response()
    assert final.error is not None
    assert final.error.code == "timed_out"


async def test_a_timeout_of_a_steps_own_is_not_the_deadline(bench: Bench) -> None:
    await bench.run("prompt", raising(TimeoutError()))
    final = await bench.response()
    assert final.error is not None
    assert final.error.code == "internal_error"


async def test_a_step_that_kills_its_workers_is_poisoned(bench: Bench) -> None:
    ref = StepRef("acme", bench.execution_id, "prompt")
    for _ in range(bench.settings.max_attempts):
        assert isinstance(await bench.store.run(ledger.claim(ref, lease_s=0, worker="dies")), Claimed)
    await bench.run("prompt", raising(AssertionError("begun")))
    final = await bench.response()
    assert final.error is not None
    assert final.error.code == "step_poisoned"


async def test_an_interrupted_step_is_handed_back_at_once(bench: Bench) -> None:
    running = asyncio.create_task(bench.run("prompt", never))
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    again = await bench.store.run(ledger.claim(StepRef("acme", bench.execution_id, "prompt"), lease_s=1, worker="w2"))
    assert isinstance(again, Claimed)
    assert again.attempt == 1


async def test_a_result_is_kept_through_an_outage_of_redis(bench: Bench, redis_server: EmbeddedServer) -> None:
    async def outlast(step: Step) -> Done:
        redis_server.kill()
        asyncio.get_running_loop().call_later(0.5, redis_server.restart)
        return PREPARED

    await asyncio.wait_for(bench.run("prompt", outlast), 10)
    record = await bench.store.run(ledger.look("acme", bench.execution_id))
    assert record.result("prompt") is not None


@pytest.mark.parametrize(("flush_ms", "most"), [(5, 60), (0, 100)])
async def test_tokens_are_gathered_and_told_in_order(bench: Bench, flush_ms: int, most: int) -> None:
    async def stream(step: Step) -> Done:
        tokens = TokenStream(bench.store, step.claim.hold, flush_ms=flush_ms)
        for number in range(100):
            await tokens.put(f"{number} ")
            await asyncio.sleep(0.001)
        rest = await tokens.rest()
        page = await bench.store.run(events.read("acme", bench.execution_id))
        told = [json.loads(event.json)["token"] for event in page.events if event.name == "agent_response_token"]
        assert 1 < len(told) <= most
        assert "".join(told) + rest == tokens.text == "".join(f"{number} " for number in range(100))
        return PREPARED

    await bench.run("prompt", stream)


async def test_a_long_piece_is_told_at_once(bench: Bench) -> None:
    async def stream(step: Step) -> Done:
        tokens = TokenStream(bench.store, step.claim.hold, flush_ms=1_000)
        await tokens.put("x" * MAX_CHARS)
        assert "agent_response_token" in await bench.logged()
        assert await tokens.rest() == ""
        return PREPARED

    await bench.run("prompt", stream)


async def test_tokens_outlast_an_outage_and_are_told_once(bench: Bench, redis_server: EmbeddedServer) -> None:
    async def stream(step: Step) -> Done:
        tokens = TokenStream(bench.store, step.claim.hold, flush_ms=5)
        await tokens.put("before ")
        await asyncio.sleep(0.05)
        redis_server.kill()
        await tokens.put("during ")
        await asyncio.sleep(0.05)
        redis_server.restart()
        await tokens.put("after")
        rest = await tokens.rest()
        page = await bench.store.run(events.read("acme", bench.execution_id))
        told = [json.loads(event.json)["token"] for event in page.events if event.name == "agent_response_token"]
        assert "".join(told) + rest == "before during after"
        return PREPARED

    await asyncio.wait_for(bench.run("prompt", stream), 10)
