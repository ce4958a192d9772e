"""The approval of a tool call over HTTP and over a socket: who may, what is answered, and that the first decision stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent_exec import api_keys, keys
from agent_exec.broker import fair_queue
from agent_exec.store import Store
from tests.api_shim.conftest import Submitted, session
from tests.api_shim.played_worker import until
from tests.api_shim.shim_process import ShimProcess

#: As some servers name their calls.
CALL = "functions.launch:0"


@pytest.fixture
async def parked(execution: Submitted) -> Submitted:
    """An execution one of whose tool calls waits for approval."""
    await execution.ask_for_approval(CALL)
    return execution


async def resolve(caller: aiohttp.ClientSession, path: str, call: str = CALL, **decision: Any) -> tuple[int, Any]:
    async with caller.post(f"{path}/tool-calls/{call}/approval", json=decision) as response:
        return response.status, await response.json()


async def test_a_decision_is_durable_the_same_again_and_the_first_one_stands(
    acme: aiohttp.ClientSession, parked: Submitted, async_store: Store
) -> None:
    async with acme.get(parked.path) as response:
        assert (await response.json())["awaiting_approval"] == [CALL]
    before = (await async_store.run(fair_queue.depths()))["agent_execution"].waiting
    told = {"execution_id": parked.id, "tool_call_id": CALL, "approved": False, "reason": "Not today."}
    assert await resolve(acme, parked.path, approved=False, reason="Not today.") == (200, told)
    assert await resolve(acme, parked.path, approved=False) == (200, told)
    assert (await async_store.run(fair_queue.depths()))["agent_execution"].waiting == before + 1, "it goes on at once"
    status, problem = await resolve(acme, parked.path, approved=True)
    assert (status, problem["code"], problem["retryable"]) == (409, "already_resolved", False)
    assert "rejected before" in problem["detail"]
    async with acme.get(parked.path) as response:
        assert (await response.json())["awaiting_approval"] == []
    await parked.finish()
    assert await resolve(acme, parked.path, approved=False) == (200, told), "even when all is over"


@pytest.mark.parametrize("call", ["call_2", "child", "%20", "x" * 201])
async def test_a_call_that_does_not_wait_is_not_resolved(
    acme: aiohttp.ClientSession, parked: Submitted, call: str
) -> None:
    status, problem = await resolve(acme, parked.path, call, approved=True)
    assert (status, problem["code"]) == (409, "not_awaiting_approval")


async def test_no_call_of_an_execution_that_has_ended_waits(acme: aiohttp.ClientSession, execution: Submitted) -> None:
    await execution.finish()
    status, problem = await resolve(acme, execution.path, approved=True)
    assert (status, problem["code"]) == (409, "not_awaiting_approval")
    assert "has ended as completed" in problem["detail"]


async def test_another_tenants_execution_is_not_found(globex: aiohttp.ClientSession, parked: Submitted) -> None:
    status, problem = await resolve(globex, parked.path, approved=True)
    assert (status, problem["code"]) == (404, "not_found")


@pytest.mark.parametrize("decision", [{}, {"approved": "yes"}, {"approved": True, "reason": "x" * 2_001}, {"ok": 1}])
async def test_a_decision_of_another_form_is_none(
    acme: aiohttp.ClientSession, parked: Submitted, decision: dict[str, Any]
) -> None:
    assert (await resolve(acme, parked.path, **decision))[0] == 422
    async with acme.get(parked.path) as response:
        assert (await response.json())["awaiting_approval"] == [CALL]


@pytest.mark.parametrize(("role", "status"), [("operator", 200), ("service", 403)])
async def test_people_decide_and_neighbours_do_not(
    shim: ShimProcess, parked: Submitted, keys_file: Path, role: Any, status: int
) -> None:
    key = api_keys.create(keys_file, tenant_id="acme", role=role)
    try:
        async with session(shim, key) as caller:
            answers = [0]

            async def is_known() -> bool:
                answers.append((await resolve(caller, parked.path, approved=True))[0])
                return answers[-1] != 401

            await until(is_known)
            assert answers[-1] == status
    finally:
        api_keys.revoke(keys_file, key.split("_")[1])


async def test_a_socket_takes_decisions_too(acme: aiohttp.ClientSession, parked: Submitted, async_store: Store) -> None:
    command = {"command": "resolve_approval", "tool_call_id": CALL, "approved": True}
    async with acme.ws_connect(f"{parked.path}/ws", params={"after": "1"}) as socket:

        async def answered(**fields: Any) -> Any:
            await socket.send_json({**command, **fields})
            return await socket.receive_json()

        done = {
            "event": "command_result",
            "service": "agent-execution",
            "command": "resolve_approval",
            "execution_id": parked.id,
            "tool_call_id": CALL,
            "ok": True,
        }
        refused = await answered(tool_call_id="call_2")
        assert (refused["ok"], refused["command"], refused["code"], refused["tool_call_id"]) == (
            False,
            "resolve_approval",
            "not_awaiting_approval",
            "call_2",
        )
        assert await answered(execution_id=parked.id, reason="Go.") == done
        assert await answered() == done
        assert (await answered(approved=False))["code"] == "already_resolved"
    word = await async_store.redis.hget(keys.execution("acme", parked.id), f"word:approval:{CALL}")
    assert json.loads(word) == {"approved": True, "reason": "Go."}
