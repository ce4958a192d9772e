"""An agent that asks another one: one child a call, what it may use, what its end comes to, and what it never does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from agent_exec import keys, submission
from agent_exec.contract.agent import AgentConfig, Limits, NamedToolChoice, SubAgent, Tenant
from agent_exec.contract.completion import CompletionResponse, Usage
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.model import Json
from agent_exec.contract.tool import ToolCall, ToolDefinition
from agent_exec.errors import OutputInvalid, ProviderOverloaded
from agent_exec.ledger import ledger
from agent_exec.ledger.parent import child_id
from tasks import next_step, response
from tasks.journal import Journal, JournaledCall, Snapshot
from tasks.neighbours.http import Neighbour
from tasks.neighbours.management import AgentManagement
from tasks.neighbours.registry import ToolRegistry
from tasks.neighbours.tools import Tools
from tasks.next_step import AskModel, CallTools, Fail, Finish, Next, WaitUntil
from tasks.prompt import prepare
from tasks.route import Note
from tasks.shares import Shares
from tasks.step import Done, Step
from tasks.sub_agent import GIVEN, definition
from tasks.tool_call import call_tool
from tests.tasks.conftest import Bench, Played, returning, saying

STEP = "tool_call.1.0"
CLERK = SubAgent(agent_id="clerk", description="Knows the archive.")
PAID = Usage(prompt_tokens=100, completion_tokens=20, total_tokens=120, cost_usd=0.01)
LIMITS = Limits(max_turns=9, max_tool_calls=20, max_total_tokens=10_000, max_cost_usd=0.41, deadline_s=300.0)


def answer(text: str = "", *calls: ToolCall, usage: Usage = PAID, wasted: Usage | None = None) -> CompletionResponse:
    return CompletionResponse(
        provider="openai",
        model="m",
        text=text,
        tool_calls=list(calls),
        finish_reason="tool_calls" if calls else "stop",
        usage=usage,
        wasted=wasted or Usage(),
    )


def call(number: int, name: str = "ask_clerk", **arguments: Any) -> ToolCall:
    asked = {"query": f"Where is file {number}?", **arguments}
    return ToolCall(id=f"call_{number}", name=name, arguments=json.dumps(asked))


def snapshot(agent_id: str = "desk", *agents: SubAgent, limits: Limits = LIMITS, **config: Any) -> Snapshot:
    fixed = AgentConfig(agent_id=agent_id, provider="openai", model="m", agents=list(agents), limits=limits, **config)
    return Snapshot(config=fixed, tenant=Tenant(tenant_id="acme"), tools=[definition(agent) for agent in agents])


async def begin(bench: Bench, fixed: Snapshot, *calls: ToolCall, usage: Usage = PAID) -> None:
    """Bring an execution to where its model has made these calls."""
    await bench.run("prompt", returning(Done(fixed.model_dump_json(), [], AskModel(1), snapshot=fixed)))
    said = answer("", *calls, usage=usage)
    await bench.run("completion.1", returning(Done(said.model_dump_json(), [], CallTools(turn=1, count=len(calls)))))


async def asking(bench: Bench, *calls: ToolCall, **changes: Any) -> Bench:
    """Have the desk ask the clerk; return the child of the first call."""
    await begin(bench, snapshot("desk", CLERK, **changes), *(calls or (call(1),)))
    await bench.run(STEP, call_tool)
    return child_of(bench)


def child_of(bench: Bench, step: str = STEP) -> Bench:
    return replace(bench, execution_id=child_id(bench.execution_id, step))


async def ends(child: Bench, done: Done | None = None, *, wasted: Usage | None = None) -> None:
    """Have a child come to its end, after one turn."""
    fixed = snapshot("clerk")
    said = answer("In the cellar.", wasted=wasted)
    await child.run("prompt", returning(Done(fixed.model_dump_json(), [], AskModel(1), snapshot=fixed)))
    await child.run("completion.1", returning(done or Done(said.model_dump_json(), [], Finish(said))))


async def outcome(bench: Bench, step: str = STEP) -> JournaledCall:
    """Do the step whose child has ended; return what it came to."""
    await bench.run(step, call_tool)
    stored = (await bench.record()).result(step)
    assert stored is not None, (await bench.record()).steps
    return JournaledCall.model_validate_json(stored)


async def children(bench: Bench) -> list[str]:
    """Return all executions but the one that was accepted first."""
    listed = await bench.store.run(ledger.list_executions("acme", limit=100))
    return [one.execution_id for one in listed if one.execution_id != bench.execution_id]


async def test_a_call_begins_one_child_and_waits_for_it_without_a_slot(bench: Bench) -> None:
    before = await bench.waiting()
    child = await asking(bench, call(1, context={"customer": "c7"}))
    record, parent = await child.record(), await bench.record()
    assert record.message.payload.query == "Where is file 1?"
    assert record.message.payload.context.model_extra == {GIVEN: {"customer": "c7"}}
    assert (record.agent_id, record.tenant_id, record.priority) == ("clerk", "acme", parent.priority)
    assert record.parent is not None
    assert (record.parent.execution_id, record.parent.agents) == (bench.execution_id, ("desk",))
    assert record.deadline_ms == parent.deadline_ms
    assert '"state":"waiting"' in parent.steps[STEP]
    assert '"retries":0' in parent.steps[STEP]
    assert parent.view(bench.execution_id).awaiting_executions == [child.execution_id]
    assert record.view(child.execution_id).parent_execution_id == bench.execution_id
    started = json.loads((await child.events())[0].json)
    assert started == {"agent_id": "clerk", "status": "pending", "parent_execution_id": bench.execution_id}
    assert await bench.waiting() == before + 2, "the first turn's hint, and the child's first"
    await bench.run(STEP, call_tool)
    assert await children(bench) == [child.execution_id], "a hint too many changes nothing"


async def test_the_childs_answer_is_the_calls_result_and_the_parent_goes_on_at_once(bench: Bench) -> None:
    child = await asking(bench)
    before = await bench.waiting("agent_tools")
    await ends(child)
    assert await bench.waiting("agent_tools") == before + 1, "its hint was pushed by whoever ended the child"
    done = await outcome(bench)
    assert (done.result, done.error, done.child_execution_id) == ("In the cellar.", None, child.execution_id)
    assert done.below is not None
    assert (done.below.usage, done.below.turns, done.below.tool_calls) == (PAID, 1, 0)
    final = await child.response()
    assert final.parent_execution_id == bench.execution_id
    assert done.duration_s == round((final.finished_at - final.created_at).total_seconds(), 6)
    completed = json.loads((await bench.events())[-1].json)
    assert (completed["child_execution_id"], completed["result"]) == (child.execution_id, "In the cellar.")
    assert "below" not in completed
    assert "completion.2" in (await bench.record()).steps
    assert (await bench.record()).view(bench.execution_id).awaiting_executions == []


async def test_a_value_of_the_childs_form_is_the_result(bench: Bench) -> None:
    child = await asking(bench)
    said = answer('{"shelf": 7}')
    await ends(child, Done(said.model_dump_json(), [], Finish(said, structured={"shelf": 7})))
    assert (await outcome(bench)).result == {"shelf": 7}


async def test_what_a_child_used_counts_with_its_parent(bench: Bench) -> None:
    child = await asking(bench)
    wasted = Usage(prompt_tokens=30, total_tokens=30, cost_usd=0.002)
    await ends(child, wasted=wasted)
    await outcome(bench)
    journal = Journal(await bench.record())
    assert journal.usage.total_tokens == 240
    assert journal.usage.cost_usd == pytest.approx(0.02)
    assert journal.spent.total_tokens == 270
    assert journal.spent.cost_usd == pytest.approx(0.022)
    last = answer("It is in the cellar.")
    final = response.completed(journal, last, structured=None, at_ms=0)
    assert (final.usage.total_tokens, final.turns) == (360, 2)
    assert "below" not in final.model_dump_json()
    assert final.tool_calls[0].child_execution_id == child.execution_id


async def test_an_unknown_cost_of_a_child_is_one_of_its_parent(bench: Bench) -> None:
    child = await asking(bench)
    said = answer("In the cellar.", usage=PAID.model_copy(update={"cost_usd": None}))
    await ends(child, Done(said.model_dump_json(), [], Finish(said)))
    await outcome(bench)
    journal = Journal(await bench.record())
    assert (journal.usage.cost_usd, journal.spent.cost_usd) == (None, 0.01)


async def test_a_childs_error_is_what_the_model_reads_and_what_it_used_counts(bench: Bench) -> None:
    child = await asking(bench)
    tried = Note(version=1, wasted=Usage(total_tokens=50, cost_usd=0.003)).model_dump_json(exclude_defaults=True)
    busy = ProviderOverloaded("busy", provider="openai")
    fixed = snapshot("clerk")
    await child.run("prompt", returning(Done(fixed.model_dump_json(), [], AskModel(1), snapshot=fixed)))
    await child.run("completion.1", returning(Done("null", [], WaitUntil(0.0, busy, note=tried))))
    await child.run("completion.1", returning(Done("null", [], Fail(busy))))
    done = await outcome(bench)
    assert done.error is not None
    assert (done.error.code, done.error.message) == ("provider_overloaded", "The agent 'clerk' failed: busy")
    assert done.child_execution_id == child.execution_id
    assert Journal(await bench.record()).spent.total_tokens == 120 + 50
    assert "completion.2" in (await bench.record()).steps, "an error of a child is no end of its parent"


async def test_a_turn_that_a_child_failed_on_counts(bench: Bench) -> None:
    child = await asking(bench)
    said = answer("no form")
    unfit = Fail(OutputInvalid("unfit"), answer=said)
    await ends(child, Done(said.model_dump_json(), [], unfit))
    done = await outcome(bench)
    assert done.below is not None
    assert (done.below.usage, done.below.turns) == (PAID, 1)


async def test_a_child_that_is_cancelled_alone_is_an_error_to_the_model(bench: Bench) -> None:
    child = await asking(bench)
    await child.store.run(ledger.cancel("acme", child.execution_id))
    await child.run("prompt", returning(Done("never", [], AskModel(1))))
    done = await outcome(bench)
    assert done.error is not None
    assert done.error.code == "cancelled"


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_what_ends_the_parent_ends_the_child_and_no_child_is_begun_then(bench: Bench, end: str) -> None:
    child = await asking(bench, call(1), call(2))
    if end == "cancelled":
        await bench.store.run(ledger.cancel("acme", bench.execution_id))
    else:
        await bench.run("tool_call.1.1", returning(Done("null", [], Fail(OutputInvalid("no")))))
    assert (await child.record()).cancel_requested
    await bench.run("tool_call.1.1", call_tool)
    assert await children(bench) == [child.execution_id]
    error = (await bench.response()).error
    assert error is not None
    assert error.code == ("cancelled" if end == "cancelled" else "output_invalid")
    await child.run("prompt", returning(Done("never", [], AskModel(1))))
    assert (await child.response()).status == "failed"
    assert (await bench.record()).result(STEP) is None


async def test_a_cancel_between_the_look_and_the_child_ends_the_parent_and_begins_none(bench: Bench) -> None:
    await begin(bench, snapshot("desk", CLERK), call(1))

    async def is_cancelled(step: Step) -> Done:
        await bench.store.run(ledger.cancel("acme", bench.execution_id))
        return await call_tool(step)

    await bench.run(STEP, is_cancelled)
    error = (await bench.response()).error
    assert error is not None
    assert error.code == "cancelled"
    assert await children(bench) == []


async def test_a_worker_that_was_overtaken_by_the_end_begins_none(bench: Bench) -> None:
    await begin(bench, snapshot("desk", CLERK), call(1), call(2))

    async def is_over(step: Step) -> Done:
        await bench.run("tool_call.1.1", returning(Done("null", [], Fail(OutputInvalid("no")))))
        return await call_tool(step)

    await bench.run(STEP, is_over)
    assert await children(bench) == []


async def test_an_attempt_that_died_before_it_parked_begins_no_second_child(bench: Bench) -> None:
    await begin(bench, snapshot("desk", CLERK), call(1), call(2))

    async def dies(step: Step) -> Done:
        await call_tool(step)
        raise MemoryError

    await bench.run(STEP, dies)
    child = child_of(bench)
    assert await children(bench) == [child.execution_id]
    await bench.become_due()
    # Meanwhile its sister has ended, which must not change what the child was given.
    await bench.run("tool_call.1.1", call_tool)
    await ends(child_of(bench, "tool_call.1.1"))
    await outcome(bench, "tool_call.1.1")
    await bench.run(STEP, call_tool)
    assert len(await children(bench)) == 2
    await ends(child)
    assert (await outcome(bench)).result == "In the cellar."


async def test_a_child_that_ended_before_its_parent_parked_is_read_at_once(bench: Bench) -> None:
    await begin(bench, snapshot("desk", CLERK), call(1))

    async def child_is_quicker(step: Step) -> Done:
        parked = await call_tool(step)
        await ends(child_of(bench))
        return parked

    await bench.run(STEP, child_is_quicker)
    await bench.become_due()
    assert (await outcome(bench)).result == "In the cellar."


@pytest.mark.parametrize("parked", [True, False])
async def test_an_answer_that_expired_unread_is_an_error_and_nobody_is_asked_again(bench: Bench, parked: bool) -> None:
    await begin(bench, snapshot("desk", CLERK), call(1))

    async def dies(step: Step) -> Done:
        await call_tool(step)
        raise MemoryError

    await bench.run(STEP, call_tool if parked else dies)
    child = child_of(bench)
    await ends(child)
    for key in (keys.execution("acme", child.execution_id), keys.tenant_of(child.execution_id)):
        await bench.store.redis.delete(key)
    if not parked:
        await bench.become_due()
    done = await outcome(bench)
    assert done.error is not None
    assert (done.error.code, done.child_execution_id) == ("response_expired", child.execution_id)
    assert not await bench.store.redis.exists(keys.execution("acme", child.execution_id))


async def test_an_id_that_somebody_else_has_is_an_error(bench: Bench) -> None:
    await begin(bench, snapshot("desk", CLERK), call(1))
    child = child_of(bench)
    request = ExecutionRequest(agent_id="spy", query="?")
    squatter = submission.message_of(request, tenant_id="globex", execution_id=child.execution_id)
    await bench.store.run(submission.store(squatter, open_retention_s=3_600, max_queued=10))
    done = await outcome(bench)
    assert done.error is not None
    assert done.error.code == "idempotency_mismatch"


async def granted(bench: Bench, step: str = STEP) -> Limits:
    limits = (await child_of(bench, step).record()).message.payload.agent_config.limits
    assert limits is not None
    return limits


async def test_a_child_may_use_what_is_left_but_for_the_turn_that_answers(bench: Bench) -> None:
    await asking(bench)
    given = await granted(bench)
    assert (given.max_turns, given.max_tool_calls, given.max_total_tokens) == (7, 19, 9_880)
    assert given.max_cost_usd == pytest.approx(0.4)
    assert 290 < given.deadline_s <= 300


async def test_the_children_of_a_turn_share_what_is_left_whenever_they_run(bench: Bench) -> None:
    await asking(bench, call(1), call(2), call(3, name="unknown"))
    await ends(child_of(bench))
    await outcome(bench)
    await bench.run("tool_call.1.1", call_tool)
    first, second = await granted(bench), await granted(bench, "tool_call.1.1")
    assert first.model_copy(update={"deadline_s": second.deadline_s}) == second
    assert (first.max_turns, first.max_tool_calls, first.max_total_tokens) == (3, 8, 4_940)
    assert first.max_cost_usd == pytest.approx(0.2)


async def test_what_children_leave_is_there_for_the_next_turn_and_no_more(bench: Bench) -> None:
    child = await asking(bench)
    await ends(child)
    await outcome(bench)
    said = answer("", call(2))
    await bench.run("completion.2", returning(Done(said.model_dump_json(), [], CallTools(turn=2, count=1))))
    await bench.run("tool_call.2.0", call_tool)
    given = await granted(bench, "tool_call.2.0")
    assert (given.max_turns, given.max_tool_calls, given.max_total_tokens) == (9 - 2 - 1 - 1, 18, 10_000 - 360)


@pytest.mark.parametrize(
    ("limits", "named"), [({"max_turns": 3}, "max_turns"), ({"max_total_tokens": 121}, "max_total_tokens")]
)
async def test_where_too_little_is_left_for_all_none_is_asked(bench: Bench, limits: dict[str, Any], named: str) -> None:
    await begin(bench, snapshot("desk", CLERK, limits=LIMITS.model_copy(update=limits)), call(1), call(2))
    done = await outcome(bench)
    assert done.error is not None
    assert (done.error.code, named in done.error.message) == ("limit_exceeded", True)
    assert await children(bench) == []


async def test_the_turns_and_calls_of_children_count_where_the_loop_is_bounded(bench: Bench) -> None:
    child = await asking(bench)
    await ends(child)
    await outcome(bench)
    for limits, follows in (
        ({"max_turns": 4}, CallTools),
        ({"max_turns": 3}, Fail),
        ({"max_tool_calls": 2}, CallTools),
        ({"max_tool_calls": 1}, Fail),
        ({"max_total_tokens": 360}, Fail),
    ):
        assert isinstance(await follows_with(bench, limits), follows), limits


async def follows_with(bench: Bench, limits: dict[str, Any]) -> Next:
    fixed = snapshot("desk", CLERK, limits=LIMITS.model_copy(update=limits))
    journal = Journal(await bench.record()).and_then("prompt", fixed.model_dump_json())
    return next_step.after_completion(answer("", call(9)), turn=2, journal=journal, max_repairs=2)


async def test_an_agent_above_is_not_asked_and_neither_is_one_too_deep(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update={"max_agent_depth": 2})
    agents = [SubAgent(agent_id=name) for name in ("desk", "clerk", "porter", "warden")]
    below = bench
    for name in ("desk", "clerk", "porter"):
        fixed = snapshot(name, *agents, limits=LIMITS.model_copy(update={"max_turns": 60}))
        names = ["ask_desk", "ask_clerk", "ask_porter", "ask_warden"]
        await begin(below, fixed, *(call(number, name=asked) for number, asked in enumerate(names)))
        place = names.index(f"ask_{name}")
        for index in range(place + 1):
            done = await outcome(below, f"tool_call.1.{index}")
            assert done.error is not None
            assert done.error.code == "agent_cycle"
        if name != "porter":
            await below.run(f"tool_call.1.{place + 1}", call_tool)
            below = child_of(below, f"tool_call.1.{place + 1}")
    done = await outcome(below, "tool_call.1.3")
    assert done.error is not None
    assert (done.error.code, "at most 2" in done.error.message) == ("agents_too_deep", True)
    assert len(await children(bench)) == 2


async def test_arguments_are_checked_and_an_agent_that_was_not_given_is_not_asked(bench: Bench) -> None:
    await begin(bench, snapshot("desk", CLERK), call(1, query=""), call(2, name="ask_porter"), call(3, more=1))
    codes = []
    for index in range(3):
        error = (await outcome(bench, f"tool_call.1.{index}")).error
        codes.append(error and error.code)
    assert codes == ["invalid_arguments", "unknown_tool", "invalid_arguments"]
    assert await children(bench) == []


async def test_a_child_carries_the_callers_ids_but_neither_its_global_task_nor_its_callback(bench: Bench) -> None:
    ids = {"conversation_id": "c", "session_id": "s", "workflow_id": "w", "source": "workflow", "global_task_id": "g"}
    await bench.accept(metadata=ids, callback_url="https://example.com/hook", priority=2)
    child = await asking(bench)
    message = (await child.record()).message
    assert message.metadata.model_dump(exclude_none=True) == {
        name: value for name, value in ids.items() if name != "global_task_id"
    }
    assert message.priority == 2


# The prompt step: what an agent is offered, and the limits of a child.

TENANT = {"tenant_id": "acme", "plan": "pro"}
STORED = {
    "agent_id": "clerk",
    "provider": "openai",
    "model": "m",
    "agent_type": "batch",
    "limits": {"max_turns": 2, "max_total_tokens": 9_999_999, "max_cost_usd": 0.001, "deadline_s": 5.0},
}


@pytest.fixture
async def desk(bench: Bench, neighbour: Neighbour) -> Bench:
    """The execution, whose neighbours are one played server."""
    bench.others |= {
        "management": AgentManagement(neighbour, ttl_s=0.0),
        "tools": Tools(ToolRegistry(neighbour, ttl_s=0.0), {}),
        "shares": Shares(bench.store, keep_s=60),
    }
    return bench


async def test_a_childs_limits_are_the_tighter_of_its_own_and_what_is_left(desk: Bench, played: Played) -> None:
    child = await asking(desk)
    played.answers = [saying(TENANT), saying(STORED)]
    await child.run("prompt", prepare)
    fixed = Journal(await child.record()).fixed
    limits = fixed.config.limits
    assert (limits.max_turns, limits.max_tool_calls, limits.max_total_tokens) == (2, 19, 9_880)
    assert (limits.max_cost_usd, limits.deadline_s) == (0.001, 5.0)
    record, parent = await child.record(), await desk.record()
    assert record.deadline_ms == int(record.fields["created_ms"]) + 5_000
    assert (fixed.config.agent_type, record.priority) == ("interactive", parent.priority), "and no batch"


async def prepared(desk: Bench, played: Played, **agent: Json) -> Snapshot:
    tools = {"tools": [{"name": "clock"}]}
    played.answers = [saying(TENANT), saying({**STORED, "agent_id": "desk", **agent}), saying(tools)]
    await desk.run("prompt", prepare)
    return Journal(await desk.record()).fixed


async def test_agents_are_offered_behind_the_tools(desk: Bench, played: Played) -> None:
    agents: list[Any] = [{"agent_id": "clerk"}, {"agent_id": "porter", "name": "knock", "description": "Opens doors."}]
    fixed = await prepared(desk, played, tools=["clock"], agents=agents, tool_choice={"name": "knock"})
    assert [tool.name for tool in fixed.tools] == ["clock", "ask_clerk", "knock"]
    assert fixed.config.tool_choice == NamedToolChoice(name="knock")
    assert "'clerk'" in fixed.tools[1].description
    assert fixed.tools[2] == ToolDefinition(
        name="knock", description="Opens doors.", parameters=fixed.tools[1].parameters, effect="idempotent"
    )


async def test_an_agent_with_agents_alone_asks_no_registry_and_none_are_offered_where_none_may_be_called(
    desk: Bench, played: Played
) -> None:
    fixed = await prepared(desk, played, agents=[{"agent_id": "clerk"}])
    assert [tool.name for tool in fixed.tools] == ["ask_clerk"]
    await desk.accept()
    fixed = await prepared(desk, played, agents=[{"agent_id": "clerk"}], tool_choice="none")
    assert fixed.tools == []
    assert not any("tools" in asked.path for asked in played.requests)


@pytest.mark.parametrize(
    ("agents", "words"),
    [
        ([{"agent_id": "clerk", "name": "clock"}], "several tools by the name clock"),
        ([{"agent_id": "clerk"}, {"agent_id": "porter", "name": "ask_clerk"}], "several tools by the name ask_clerk"),
        ([{"agent_id": f"clerk-{number}"} for number in range(128)], "129 tools and agents"),
    ],
)
async def test_names_that_clash_and_too_many_are_refused(
    desk: Bench, played: Played, agents: list[Json], words: str
) -> None:
    played.answers = [saying(TENANT), saying({**STORED, "agent_id": "desk", "tools": ["clock"], "agents": agents})]
    await desk.run("prompt", prepare)
    error = (await desk.response()).error
    assert error is not None
    assert (error.code, words in error.message) == ("prompt_invalid", True)


def test_the_name_of_an_agents_tool_is_one_whatever_the_agents_id() -> None:
    assert SubAgent(agent_id="a" * 63).tool_name == "ask_" + "a" * 60
