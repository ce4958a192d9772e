"""Submit, show, list, cancel, over real HTTP."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest

from agent_exec import keys
from agent_exec.contract.execution import ExecutionView, FinalResponse
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Finished
from agent_exec.store import Store
from tests.api_shim.conftest import Submitted, session
from tests.api_shim.played_worker import PlayedWorker, until
from tests.api_shim.shim_process import ShimProcess

WORK = {"agent_id": "desk", "query": "What is 6 * 7?"}


async def test_an_execution_is_stored_hinted_and_named(acme: aiohttp.ClientSession, async_store: Store) -> None:
    async with acme.post("/v1/executions", json=WORK) as response:
        answer = await response.json()
        assert response.status == 202
        assert response.headers["Location"] == f"/v1/executions/{answer['execution_id']}"
    assert (answer["status"], answer["replayed"]) == ("pending", False)
    record = await async_store.run(ledger.look("acme", answer["execution_id"]))
    assert record.message.payload.query == WORK["query"]
    assert await async_store.redis.zcard(keys.fair_leaf("agent_execution:acme")) == 1
    async with acme.get(response.headers["Location"]) as shown:
        view = ExecutionView.model_validate_json(await shown.text())
    assert (view.status, view.tenant_id, view.response) == ("pending", "acme", None)


async def test_a_request_with_every_field_is_stored_as_it_was_sent(
    acme: aiohttp.ClientSession, async_store: Store
) -> None:
    work = {
        **WORK,
        "priority": 7,
        "deadline_s": 30,
        "metadata": {"conversation_id": "c", "source": "workflow", "global_task_id": "g"},
        "agent_config": {
            "provider": "openai",
            "model": "m",
            "fallbacks": [{"provider": "groq", "model": "n"}],
            "temperature": 1,
            "tool_choice": {"name": "get_weather"},
            "response_format": {"type": "object"},
            "limits": {"max_turns": 2},
        },
        "context": {
            "history": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
            "variables": {"persona": "clerk"},
            "locale": {"language": "en"},
        },
    }
    async with acme.post("/v1/executions", json=work) as response:
        assert response.status == 202, await response.text()
        execution_id = (await response.json())["execution_id"]
    record = await async_store.run(ledger.look("acme", execution_id))
    stored = record.message.model_dump(mode="json", exclude_unset=True)
    assert stored["payload"]["context"] == work["context"]
    assert stored["payload"]["agent_config"]["limits"] == {"max_turns": 2, "deadline_s": 30}
    assert (stored["priority"], stored["metadata"]) == (7, work["metadata"])
    assert record.deadline_ms is not None


async def test_the_final_response_is_shown_once_there_is_one(acme: aiohttp.ClientSession, execution: Submitted) -> None:
    final = await execution.finish("42")
    async with acme.get(execution.path) as response:
        view = ExecutionView.model_validate_json(await response.text())
    assert view.status == "completed"
    assert view.response == final


async def test_the_same_idempotency_key_names_the_same_execution(
    acme: aiohttp.ClientSession, shim: ShimProcess, api_key: dict[str, str]
) -> None:
    """F54."""
    headers = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}

    async def submit() -> tuple[str, bool]:
        async with crowd.post("/v1/executions", json=WORK, headers=headers) as response:
            assert response.status == 202
            answer = await response.json()
            return answer["execution_id"], answer["replayed"]

    async with session(shim, api_key["acme"], connector=aiohttp.TCPConnector(limit=0)) as crowd:
        answers = await asyncio.gather(*[submit() for _ in range(1_000)])
    assert len({execution_id for execution_id, _ in answers}) == 1
    assert sum(not replayed for _, replayed in answers) == 1
    async with acme.post("/v1/executions", json={**WORK, "query": "another"}, headers=headers) as response:
        assert response.status == 422
        assert (await response.json())["code"] == "idempotency_mismatch"


async def test_a_replay_shows_where_the_execution_stands(acme: aiohttp.ClientSession, async_store: Store) -> None:
    headers = {"Idempotency-Key": "k"}
    async with acme.post("/v1/executions", json=WORK, headers=headers) as response:
        execution = Submitted(async_store, await response.json())
    await execution.finish()
    async with acme.post("/v1/executions", json=WORK, headers=headers) as response:
        answer = await response.json()
    assert (answer["execution_id"], answer["status"], answer["replayed"]) == (execution.id, "completed", True)


async def test_a_caller_may_prefer_to_wait_for_the_response(acme: aiohttp.ClientSession, async_store: Store) -> None:
    async def answered() -> None:
        await until(lambda: async_store.redis.exists(keys.executions("acme")))
        (listed,) = await async_store.run(ledger.list_executions("acme", limit=1))
        await PlayedWorker(async_store, "acme", listed.execution_id).finish("42")

    worker = asyncio.create_task(answered())
    async with acme.post("/v1/executions", json=WORK, headers={"Prefer": "respond-async, wait=20"}) as response:
        final = FinalResponse.model_validate_json(await response.text())
    await worker
    assert (response.status, final.output.text) == (200, "42")
    assert response.headers["Preference-Applied"] == "wait=20"
    assert response.headers["Location"] == f"/v1/executions/{final.execution_id}"


async def test_who_waits_in_vain_is_answered_202(acme: aiohttp.ClientSession) -> None:
    began_s = time.monotonic()
    async with acme.post("/v1/executions", json=WORK, headers={"Prefer": "wait=1"}) as response:
        assert response.status == 202
    assert 1 <= time.monotonic() - began_s < 3


@pytest.mark.parametrize("preference", ["wait", "wait=soon", "wait=-1", "await=5", "handling=lenient"])
async def test_a_preference_that_is_not_understood_is_none(acme: aiohttp.ClientSession, preference: str) -> None:
    async with acme.post("/v1/executions", json=WORK, headers={"Prefer": preference}) as response:
        assert response.status == 202
        assert "Preference-Applied" not in response.headers


async def test_executions_are_listed_newest_first_page_by_page(acme: aiohttp.ClientSession) -> None:
    submitted = []
    for number in range(7):
        async with acme.post("/v1/executions", json={**WORK, "query": str(number)}) as response:
            submitted.append((await response.json())["execution_id"])
    listed, parameters = [], {"limit": "3"}
    while True:
        async with acme.get("/v1/executions", params=parameters) as response:
            page = await response.json()
        listed += [one["execution_id"] for one in page["executions"]]
        assert len(page["executions"]) <= 3
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
    # Those of one millisecond have no order among them.
    assert sorted(listed) == sorted(submitted)
    assert listed[0] in submitted[-3:]


async def test_a_list_may_be_of_one_status_or_agent(
    acme: aiohttp.ClientSession, execution: Submitted, async_store: Store
) -> None:
    async with acme.post("/v1/executions", json={**WORK, "agent_id": "other"}) as response:
        other = (await response.json())["execution_id"]
    await execution.finish()

    async def listed(**parameters: str) -> list[str]:
        async with acme.get("/v1/executions", params=parameters) as response:
            return [one["execution_id"] for one in (await response.json())["executions"]]

    assert await listed(status="completed") == [execution.id]
    assert await listed(status="pending") == [other]
    assert await listed(agent_id="desk") == [execution.id]
    assert await listed(agent_id="desk", status="pending") == []
    await async_store.redis.delete(keys.execution("acme", other))  # it expired a moment before its list did
    assert await listed() == [execution.id]


async def test_a_long_filtered_list_goes_on_from_its_cursor(acme: aiohttp.ClientSession, async_store: Store) -> None:
    async def submit(agent_id: str) -> str:
        async with acme.post("/v1/executions", json={**WORK, "agent_id": agent_id}) as response:
            return str((await response.json())["execution_id"])

    oldest = await submit("rare")
    for _ in range(6):
        await asyncio.gather(*[submit("common") for _ in range(100)])
    async with acme.get("/v1/executions", params={"agent_id": "rare"}) as response:
        first = await response.json()
    assert first["executions"] == []
    async with acme.get("/v1/executions", params={"agent_id": "rare", "cursor": first["next_cursor"]}) as response:
        second = await response.json()
    assert [one["execution_id"] for one in second["executions"]] == [oldest]
    assert second["next_cursor"] is None


async def test_a_cancel_is_durable(acme: aiohttp.ClientSession, execution: Submitted, async_store: Store) -> None:
    for _ in range(2):
        async with acme.post(f"{execution.path}/cancel") as response:
            assert response.status == 202
            assert await response.json() == {"execution_id": execution.id, "status": "cancel_requested"}
    async with acme.get(execution.path) as response:
        assert (await response.json())["cancel_requested"] is True


async def test_a_cancel_that_came_too_late_says_so(acme: aiohttp.ClientSession, execution: Submitted) -> None:
    await execution.finish()
    async with acme.post(f"{execution.path}/cancel") as response:
        assert response.status == 202
        assert await response.json() == {"execution_id": execution.id, "status": "completed"}


async def test_a_cancel_races_with_the_end_and_says_which_came_first(
    acme: aiohttp.ClientSession, async_store: Store
) -> None:
    """F56."""

    async def race() -> None:
        async with acme.post("/v1/executions", json=WORK) as response:
            execution = Submitted(async_store, await response.json())

        async def cancel() -> str:
            async with acme.post(f"{execution.path}/cancel") as response:
                return str((await response.json())["status"])

        said, verdict = await asyncio.gather(cancel(), execution.try_to_finish())
        record = await async_store.run(ledger.look("acme", execution.id))
        assert (said, verdict, record.status) in (
            ("cancel_requested", "cancelled", "processing"),
            ("completed", Finished(None), "completed"),
        )

    for _ in range(10):
        await asyncio.gather(*[race() for _ in range(100)])
