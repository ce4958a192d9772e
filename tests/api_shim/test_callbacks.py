"""Callbacks over HTTP: what is accepted, and a tenant's own that were given up."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from agent_exec import keys
from agent_exec.callbacks import callbacks
from agent_exec.callbacks.callbacks import CallbackRef
from agent_exec.store import Store
from tests.api_shim.conftest import Submitted
from tests.callbacks.played_end import URL, ended_soon
from tests.callbacks.test_destination import REFUSED, STRICT

NOBODY = "00000000-0000-4000-8000-000000000000"


async def asked(caller: aiohttp.ClientSession, path: str, *, post: bool = False) -> tuple[int, Any]:
    async with caller.request("POST" if post else "GET", path) as response:
        return response.status, await response.json()


async def bury(store: Store, ref: CallbackRef) -> None:
    taken = await store.run(callbacks.take(room=10, of_a_tenant=10, lease_s=40))
    [sending] = [one for one in taken.callbacks if one.ref == ref]
    await store.run(callbacks.bury(sending, fault="answered", status=410))


@pytest.fixture
async def dead(async_store: Store, shim: object) -> CallbackRef:
    ref = await ended_soon(async_store, URL, rules=STRICT)
    await bury(async_store, ref)
    return ref


async def test_a_callback_is_accepted_with_its_execution_and_comes_back_nowhere(
    acme: aiohttp.ClientSession, async_store: Store
) -> None:
    body = {"agent_id": "desk", "query": "?", "callback_url": URL, "metadata": {"session_id": "s"}}
    async with acme.post("/v1/executions", json=body) as response:
        assert response.status == 202
        execution = Submitted(async_store, await response.json())
    await execution.finish()
    assert (await asked(acme, f"/v1/callbacks/{execution.id}"))[1]["state"] == "waiting"
    for path in (execution.path, f"{execution.path}/events", "/v1/executions"):
        async with acme.get(path) as response:
            assert "s3cret" not in await response.text()


@pytest.mark.parametrize("url", REFUSED)
async def test_a_url_that_leads_astray_is_refused_and_leaves_nothing_behind(
    acme: aiohttp.ClientSession, async_store: Store, url: str
) -> None:
    async with acme.post("/v1/executions", json={"agent_id": "desk", "query": "?", "callback_url": url}) as response:
        problem = await response.json()
    assert (response.status, problem["code"]) == (
        422,
        "invalid_callback_url" if len(url) < 2_048 else "invalid_message",
    )
    assert len(url) < 12 or url not in str(problem)
    assert not await async_store.redis.keys("ax:execution*")


async def test_it_stands_in_no_other_place_of_a_request(acme: aiohttp.ClientSession) -> None:
    for body in ({"metadata": {"callback_url": URL}}, {"callback_secret": "whsec_x"}, {"webhook_secret": "whsec_x"}):
        async with acme.post("/v1/executions", json={"agent_id": "desk", "query": "?", **body}) as response:
            assert (response.status, (await response.json())["code"]) == (422, "invalid_message")


async def test_dead_letters_are_listed_shown_and_sent_again(
    acme: aiohttp.ClientSession, dead: CallbackRef, async_store: Store
) -> None:
    status, listed = await asked(acme, "/v1/callbacks")
    assert status == 200
    [view] = listed["callbacks"]
    assert view == (await asked(acme, f"/v1/callbacks/{dead.callback_id}"))[1]
    assert (view["callback_id"], view["state"], view["last_status"], view["url"]) == (
        dead.callback_id,
        "dead",
        410,
        URL,
    )
    for _ in range(2):
        status, view = await asked(acme, f"/v1/callbacks/{dead.callback_id}/redeliver", post=True)
        assert (status, view["state"], view["attempts"]) == (202, "waiting", 0)
    assert not (await asked(acme, "/v1/callbacks?state=dead"))[1]["callbacks"]
    assert len((await asked(acme, "/v1/callbacks?state=waiting"))[1]["callbacks"]) == 1
    [sending] = (await async_store.run(callbacks.take(room=10, of_a_tenant=10, lease_s=40))).callbacks
    assert len((await asked(acme, "/v1/callbacks?state=sending"))[1]["callbacks"]) == 1
    await async_store.run(callbacks.delivered(sending, status=200, keep_s=60))
    status, problem = await asked(acme, f"/v1/callbacks/{dead.callback_id}/redeliver", post=True)
    assert (status, problem["code"]) == (409, "already_delivered")


async def test_another_tenants_callback_is_as_good_as_missing(
    globex: aiohttp.ClientSession, dead: CallbackRef, async_store: Store
) -> None:
    assert (await asked(globex, "/v1/callbacks"))[1] == {"callbacks": [], "next_cursor": None}
    for post, end in ((False, ""), (True, "/redeliver")):
        foreign, missing = [
            await asked(globex, f"/v1/callbacks/{one}{end}", post=post) for one in (dead.callback_id, NOBODY)
        ]
        assert foreign == missing
        assert (foreign[0], foreign[1]["code"]) == (404, "not_found")
    assert await async_store.redis.zcard(keys.callbacks_dead("acme")) == 1
    assert (await asked(globex, "/v1/callbacks/nonsense"))[0] == 404


async def test_a_list_goes_on_page_by_page_and_a_cursor_is_good_for_its_own_list(
    acme: aiohttp.ClientSession, globex: aiohttp.ClientSession, async_store: Store
) -> None:
    refs = [await ended_soon(async_store, URL, rules=STRICT) for _ in range(5)]
    for sending in (await async_store.run(callbacks.take(room=10, of_a_tenant=10, lease_s=40))).callbacks:
        await async_store.run(callbacks.bury(sending, fault="timed_out", status=None))
    found, cursor = [], ""
    while cursor is not None:
        _, page = await asked(acme, f"/v1/callbacks?limit=2{cursor and f'&cursor={cursor}'}")
        found += [view["callback_id"] for view in page["callbacks"]]
        cursor, last = page["next_cursor"], cursor or page["next_cursor"]
    assert sorted(found) == sorted(ref.callback_id for ref in refs)
    for caller, query in ((globex, ""), (acme, "&state=waiting")):
        status, problem = await asked(caller, f"/v1/callbacks?cursor={last}{query}")
        assert (status, problem["code"]) == (422, "invalid_message")


async def test_how_callbacks_stand_is_among_the_metrics(
    acme: aiohttp.ClientSession, dead: CallbackRef, async_store: Store
) -> None:
    await ended_soon(async_store, URL, rules=STRICT)
    async with acme.get("/metrics") as response:
        text = await response.text()
    assert "agent_exec_callbacks_waiting 1.0" in text
    assert "agent_exec_callbacks_sending 0.0" in text
    assert 'agent_exec_callbacks_tries_total{outcome="dead"} 1.0' in text
    assert "agent_exec_callbacks_lag_seconds" in text
