"""The guards round a step, with a real ledger and steps that do as the test says."""

from __future__ import annotations

import asyncio
import json

import pytest

from agent_exec import events, keys
from agent_exec.contract.agent import AgentConfig, Tenant
from agent_exec.contract.completion import CompletionResponse, Usage
from agent_exec.contract.event import EventName
from agent_exec.embedded import EmbeddedServer
from agent_exec.errors import AgentNotFound, NeighbourUnavailable
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, NotClaimed, StepRef
from agent_exec.script import Call
from tasks.journal import Snapshot
from tasks.next_step import AskModel, CallTools, Finish, Join, Retrieve
from tasks.step import Done, Step
from tests.tasks.conftest import Bench, raising, returning

SNAPSHOT = Snapshot(
    config=AgentConfig(agent_id="desk", provider="openai", model="sandbox-1"), tenant=Tenant(tenant_id="acme")
)
ANSWER = CompletionResponse(
    provider="openai", model="sandbox-1", text="42", finish_reason="stop", usage=Usage(total_tokens=3)
)
PREPARED = Done(SNAPSHOT.model_dump_json(), [], AskModel(1), snapshot=SNAPSHOT)
ANSWERED = Done(ANSWER.model_dump_json(), [], Finish(ANSWER))


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
    await bench.become_due()
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
        step.tokens = bench.stream(step, flush_ms=1_000)
        await step.tokens.put("forty")
        await bench.store.run(ledger.cancel("acme", bench.execution_id))
        return await never(step)

    await asyncio.wait_for(bench.run("completion.1", stream), 5)
    final = await bench.response()
    assert final.error is not None
    assert (final.error.code, final.output.text) == ("cancelled", "forty")
    assert await bench.logged() == ["agent_execution_started", "agent_response_token", "agent_execution_failed"]


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


async def test_the_deadline_ends_a_step_that_hangs(bench: Bench) -> None:
    await bench.accept(deadline_s=0.2)
    await asyncio.wait_for(bench.run("prompt", never), 5)
    final = await bench.response()
    assert final.error is not None
    assert final.error.code == "timed_out"


async def test_the_limit_of_its_kind_ends_a_step_that_hangs_and_it_is_tried_again(bench: Bench) -> None:
    await asyncio.wait_for(bench.run("prompt", never, limit_s=0.1), 5)
    waiting = (await bench.events())[-1]
    assert json.loads(waiting.json)["detail"]["code"] == "step_timed_out"
    await bench.become_due()
    await asyncio.wait_for(bench.run("prompt", never, limit_s=0.1), 5)
    final = await bench.response()
    assert final.error is not None
    assert (final.error.code, final.error.retryable) == ("step_timed_out", True)


async def test_a_step_of_a_newer_record_is_put_off_and_not_touched(bench: Bench) -> None:
    await bench.store.redis.hset(keys.execution("acme", bench.execution_id), "v", 99)
    before = (await bench.record()).fields
    await bench.run("prompt", raising(AssertionError("begun")))
    assert (await bench.record()).fields == before
    await bench.become_due()


async def test_a_step_that_ran_out_of_memory_is_left_to_its_lease_and_counts_as_a_death(bench: Bench) -> None:
    await bench.run("prompt", raising(MemoryError()))
    assert '"state":"running"' in (await bench.record()).steps["prompt"]
    await bench.become_due()
    await bench.run("prompt", raising(MemoryError()))
    await bench.become_due()
    await bench.run("prompt", raising(AssertionError("begun")))
    final = await bench.response()
    assert final.error is not None
    assert final.error.code == "step_poisoned"


async def test_of_the_steps_on_their_last_attempt_one_runs_at_a_time(bench: Bench) -> None:
    for _ in range(bench.settings.max_attempts - 1):
        assert isinstance(await bench.store.run(ledger.claim(bench.ref("prompt"), lease_s=0, worker="dies")), Claimed)
    with bench.quarantine.entered(suspect=True) as entered:
        assert entered
        await bench.run("prompt", raising(AssertionError("begun beside another suspect")))
        assert '"state":"queued"' in (await bench.record()).steps["prompt"]
        await bench.become_due()
    await bench.run("prompt", returning(PREPARED))
    assert (await bench.record()).result("prompt") is not None


async def test_a_timeout_of_a_steps_own_is_not_the_deadline(bench: Bench) -> None:
    await bench.run("prompt", raising(TimeoutError()))
    final = await bench.response()
    assert final.error is not None
    assert final.error.code == "internal_error"


async def test_a_step_that_kills_its_workers_is_poisoned(bench: Bench) -> None:
    ref = StepRef("acme", bench.execution_id, "prompt")
    for _ in range(bench.settings.max_attempts):
        claim = await bench.store.run(ledger.claim(ref, lease_s=0, worker="dies"))
        assert isinstance(claim, Claimed)
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
        tokens = bench.stream(step, flush_ms=flush_ms)
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
        tokens = bench.stream(step, flush_ms=1_000)
        await tokens.put("x" * bench.settings.token_flush_bytes)
        assert "agent_response_token" in await bench.logged()
        assert await tokens.rest() == ""
        return PREPARED

    await bench.run("prompt", stream)


async def test_tokens_outlast_an_outage_and_are_told_once(bench: Bench, redis_server: EmbeddedServer) -> None:
    async def stream(step: Step) -> Done:
        tokens = bench.stream(step, flush_ms=5)
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


async def test_a_worker_that_stops_hands_its_steps_back(bench: Bench) -> None:
    running = asyncio.create_task(bench.run("prompt", never))
    while '"state":"running"' not in (await bench.record()).steps["prompt"]:
        await asyncio.sleep(0.01)
    bench.leases.hand_back()
    bench.leases.hand_back()
    await asyncio.wait_for(running, 5)
    again = await bench.store.run(ledger.claim(bench.ref("prompt"), lease_s=1, worker="w2"))
    assert isinstance(again, Claimed)
    assert again.attempt == 1


async def test_a_step_that_is_claimed_as_its_worker_stops_is_handed_back_too(bench: Bench) -> None:
    bench.leases.hand_back()
    await asyncio.wait_for(bench.run("prompt", never), 5)
    again = await bench.store.run(ledger.claim(bench.ref("prompt"), lease_s=1, worker="w2"))
    assert isinstance(again, Claimed)
    assert again.attempt == 1


async def test_a_task_that_is_cancelled_and_stopped_at_once_ends_as_cancelled(bench: Bench) -> None:
    running = asyncio.create_task(bench.run("prompt", never))
    while '"state":"running"' not in (await bench.record()).steps["prompt"]:
        await asyncio.sleep(0.01)
    bench.leases.hand_back()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_steps_go_on_while_leases_cannot_be_renewed(bench: Bench, redis_server: EmbeddedServer) -> None:
    async def outlast(step: Step) -> Done:
        redis_server.kill()
        await asyncio.sleep(0.1)
        redis_server.restart()
        await asyncio.sleep(0.1)
        return PREPARED

    await asyncio.wait_for(bench.run("prompt", outlast), 10)
    assert (await bench.record()).result("prompt") is not None


async def test_a_step_that_is_late_before_it_begins_is_not_begun(bench: Bench) -> None:
    await bench.accept(deadline_s=0.01)
    await asyncio.sleep(0.02)
    await bench.run("prompt", raising(AssertionError("begun")))
    final = await bench.response()
    assert final.error is not None
    assert final.error.code == "timed_out"


async def test_retrieval_is_a_step_of_its_own(bench: Bench) -> None:
    await bench.run("prompt", returning(Done(SNAPSHOT.model_dump_json(), [], Retrieve(), snapshot=SNAPSHOT)))
    await bench.run("operation.query", returning(Done('{"documents":[]}', [], AskModel(1))))
    assert '"state":"queued"' in (await bench.record()).steps["completion.1"]
    assert await bench.waiting() == 2


@pytest.mark.parametrize("done", [PREPARED, Done("null", [], Finish(ANSWER), snapshot=SNAPSHOT)])
async def test_what_an_overtaken_step_comes_to_is_refused_and_leads_nowhere(bench: Bench, done: Done) -> None:
    if isinstance(done.next, Finish):
        await bench.run("prompt", returning(PREPARED))
    step = "completion.1" if isinstance(done.next, Finish) else "prompt"
    before = await bench.logged()

    async def overtaken(running: Step) -> Done:
        await bench.store.run(ledger.release(running.claim.hold))
        again = await bench.store.run(ledger.claim(running.ref, lease_s=60, worker="other"))
        assert isinstance(again, Claimed)
        return done

    await bench.run(step, overtaken)
    assert await bench.logged() == before
    if isinstance(done.next, AskModel):  # its hint went out with the write
        assert await bench.store.run(ledger.claim(bench.ref("completion.1"), lease_s=1, worker="w")) == NotClaimed(
            "gone"
        )


async def test_an_event_is_told_at_once(bench: Bench) -> None:
    async def telling(step: Step) -> Done:
        await step.tell(EventName.PROGRESS, "{}")
        assert (await bench.logged())[-1] == "agent_execution_progress"
        return PREPARED

    await bench.run("prompt", telling)


async def test_a_fault_in_mid_stream_keeps_what_was_said(bench: Bench) -> None:
    await bench.run("prompt", returning(PREPARED))

    async def breaks(step: Step) -> Done:
        step.tokens = bench.stream(step, flush_ms=1_000)
        await step.tokens.put("forty")
        raise ZeroDivisionError

    await bench.run("completion.1", breaks)
    final = await bench.response()
    told = [json.loads(event.json)["token"] for event in await bench.events() if event.name == "agent_response_token"]
    assert ("".join(told), final.output.text) == ("forty", "forty")


async def test_a_piece_without_an_answer_is_told_again_by_the_last_words(
    bench: Bench, redis_server: EmbeddedServer
) -> None:
    async def stream(step: Step) -> Done:
        tokens = bench.stream(step, flush_ms=0)
        redis_server.kill()
        await tokens.put("one ")
        await tokens.put("two ")
        redis_server.restart()
        assert await tokens.rest() == "two "
        told = [json.loads(e.json)["token"] for e in await bench.events() if e.name == "agent_response_token"]
        assert told == ["one "]
        return PREPARED

    await asyncio.wait_for(bench.run("prompt", stream), 10)


async def test_a_slow_log_gathers_longer_pieces(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stream(step: Step) -> Done:
        tokens = bench.stream(step, flush_ms=1)
        slow, run = asyncio.Event(), bench.store.run

        async def slowly(call: Call[str]) -> str:
            await slow.wait()
            return await run(call)

        monkeypatch.setattr(bench.store, "run", slowly)
        for number in range(20):
            await tokens.put(f"{number} ")
            await asyncio.sleep(0.002)
        slow.set()
        monkeypatch.setattr(bench.store, "run", run)
        rest = await tokens.rest()
        told = [json.loads(e.json)["token"] for e in await bench.events() if e.name == "agent_response_token"]
        assert len(told) == 1
        assert "".join(told) + rest == tokens.text
        return PREPARED

    await bench.run("prompt", stream)


async def test_a_tick_with_nothing_to_tell_tells_nothing(bench: Bench) -> None:
    async def stream(step: Step) -> Done:
        tokens = bench.stream(step, flush_ms=200)
        await tokens.put("a")  # winds the clock
        await tokens.put("x" * bench.settings.token_flush_bytes)  # told at once
        await asyncio.sleep(0.25)
        assert await bench.logged() == ["agent_execution_started", "agent_response_token"]
        return PREPARED

    await bench.run("prompt", stream)
