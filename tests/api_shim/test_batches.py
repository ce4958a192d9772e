"""Batches over HTTP: handed in, listed, watched, downloaded, cancelled; who runs the items is played."""

from __future__ import annotations

import asyncio
import io
import json
import time
from typing import Any

import aiohttp
import pytest

from agent_exec import keys
from agent_exec.batches import batch, feeding
from agent_exec.batches.feeding import Submit
from agent_exec.batches.item import BatchRef
from agent_exec.contract.batch import BatchEnded, BatchView
from agent_exec.settings import read_settings
from agent_exec.store import Store
from tasks.batches import Feeder
from tests.api_shim.conftest import session
from tests.api_shim.played_worker import PlayedWorker
from tests.api_shim.shim_process import ShimProcess, shim_process

NOBODY = "00000000-0000-4000-8000-000000000000"
URL = "https://receiver.example/batches"


def asked(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"agent_id": "desk", "query": f"What is {index} * 7?", **more} for index in range(count)]


def lines(requests: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(one) + "\n" for one in requests)


async def hand_in(caller: aiohttp.ClientSession, count: int = 3, *, key: str | None = None, **body: Any) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    async with caller.post("/v1/batches", json={"requests": asked(count), **body}, headers=headers) as response:
        answer = await response.json()
        assert response.status == 202, answer
        assert response.headers["Location"] == answer["links"]["self"] == f"/v1/batches/{answer['batch_id']}"
        return answer


async def get(caller: aiohttp.ClientSession, path: str, **options: Any) -> tuple[int, Any]:
    async with caller.get(path, **options) as response:
        return response.status, await response.json()


async def results(caller: aiohttp.ClientSession, batch_id: str, query: str = "") -> list[dict[str, Any]]:
    async with caller.get(f"/v1/batches/{batch_id}/results{query}") as response:
        assert (response.status, response.content_type) == (200, "application/jsonl")
        return [json.loads(line) for line in (await response.text()).splitlines()]


async def fed(store: Store, ref: BatchRef, *, window: int = 100) -> list[PlayedWorker]:
    """Submit what is next of a batch, as a worker's feeder does, and return who may run each item."""
    work = await store.run(feeding.feed(ref, window=window))
    if not isinstance(work, Submit):
        return []
    feeder = Feeder(store, read_settings(batch_window=window))
    assert await feeder._submit(ref, work)
    indexes = range(work.start, work.start + len(work.items))
    return [PlayedWorker(store, ref.tenant_id, ref.item(index).execution_id) for index in indexes]


@pytest.mark.parametrize("media_type", ["application/json", "application/jsonl", "application/x-ndjson"])
async def test_a_batch_is_stored_shown_run_and_downloaded_in_order(
    acme: aiohttp.ClientSession, async_store: Store, media_type: str
) -> None:
    body = json.dumps({"requests": asked(3)}) if media_type == "application/json" else lines(asked(3))
    headers = {"Content-Type": media_type}
    async with acme.post("/v1/batches", data=body, headers=headers) as response:
        assert response.status == 202, await response.text()
        answer = await response.json()
    assert {name: answer[name] for name in ("status", "count", "replayed")} == {
        "status": "pending",
        "count": 3,
        "replayed": False,
    }
    path, ref = answer["links"]["self"], BatchRef("acme", answer["batch_id"])
    view = BatchView.model_validate((await get(acme, path))[1], strict=False)
    assert (view.status, view.count, view.submitted) == ("pending", 3, 0)
    assert await results(acme, ref.batch_id) == []
    first, second, third = await fed(async_store, ref)
    await second.finish("7")
    assert await results(acme, ref.batch_id) == [], "the first has not ended"
    await first.finish("0")
    assert [one["index"] for one in await results(acme, ref.batch_id)] == [0, 1]
    assert (await get(acme, path))[1]["status"] == "processing"
    await third.finish("14")
    came = await results(acme, ref.batch_id)
    assert [(one["index"], one["status"], one["response"]["output"]["text"], one["error"]) for one in came] == [
        (0, "completed", "0", None),
        (1, "completed", "7", None),
        (2, "completed", "14", None),
    ]
    assert [one["execution_id"] for one in came] == [ref.item(index).execution_id for index in range(3)]
    view = BatchView.model_validate((await get(acme, path))[1], strict=False)
    assert (view.status, view.completed, view.failed) == ("completed", 3, 0)
    assert await results(acme, ref.batch_id, "?after=1&limit=1") == came[1:2]
    assert await results(acme, ref.batch_id, "?after=3") == []
    for index in range(3):
        status, execution = await get(acme, f"/v1/executions/{ref.item(index).execution_id}")
        assert (status, execution["priority"]) == (200, 0)


async def test_one_key_is_one_batch_and_another_body_is_refused(acme: aiohttp.ClientSession) -> None:
    first, again = [await hand_in(acme, key="k") for _ in range(2)]
    assert again == {**first, "replayed": True}
    for body in ({"requests": asked(2)}, {"requests": asked(3), "callback_url": URL}):
        async with acme.post("/v1/batches", json=body, headers={"Idempotency-Key": "k"}) as response:
            assert (response.status, (await response.json())["code"]) == (422, "idempotency_mismatch")
    assert (await hand_in(acme))["batch_id"] != first["batch_id"]


async def test_one_wrong_line_and_nothing_is_stored(acme: aiohttp.ClientSession, async_store: Store) -> None:
    requests = asked(50)
    requests[17]["priority"] = 10
    requests[18]["callback_url"] = "http://169.254.169.254/"
    requests[19]["run_at"] = "2999-01-01T00:00:00Z"
    async with acme.post(
        "/v1/batches", data=lines(requests), headers={"Content-Type": "application/jsonl"}
    ) as response:
        problem = await response.json()
    assert (response.status, problem["code"]) == (422, "invalid_message")
    assert [one["field"] for one in problem["errors"]] == ["line 18.priority", "line 19", "line 20"]
    assert "169.254" not in str(problem)
    for body, code in (
        ({"requests": asked(1), "callback_url": "http://10.0.0.1/"}, "invalid_callback_url"),
        ({"requests": []}, "invalid_message"),
        ({}, "invalid_message"),
    ):
        async with acme.post("/v1/batches", json=body) as response:
            assert (response.status, (await response.json())["code"]) == (422, code)
    assert await async_store.redis.dbsize() == 0


async def test_a_shim_bounds_a_batch_by_its_bytes_and_a_tenant_by_its_open_ones(
    redis_url: str, keys_file: Any, api_key: dict[str, str], tmp_path: Any
) -> None:
    limits = {"api_max_batch_bytes": 1_000_000, "max_open_batches": 1}
    with shim_process(tmp_path, redis_url=redis_url, api_keys_file=keys_file, **limits) as shim:
        async with session(shim, api_key["acme"]) as caller:
            async with caller.post(
                "/v1/batches", json={"requests": asked(10, context={"x": "y" * 100_000})}
            ) as response:
                assert (response.status, (await response.json())["code"]) == (413, "body_too_large")
            await hand_in(caller)
            async with caller.post("/v1/batches", json={"requests": asked(1)}) as response:
                assert (response.status, (await response.json())["code"]) == (429, "too_many_batches")
                assert response.headers["Retry-After"]


async def test_batches_are_listed_newest_first_page_by_page(
    acme: aiohttp.ClientSession, globex: aiohttp.ClientSession
) -> None:
    made = [(await hand_in(acme, 1))["batch_id"] for _ in range(5)]
    found, cursor = [], ""
    while cursor is not None:
        _, page = await get(acme, f"/v1/batches?limit=2{cursor and f'&cursor={cursor}'}")
        found += [view["batch_id"] for view in page["batches"]]
        cursor, last = page["next_cursor"], cursor or page["next_cursor"]
    assert sorted(found) == sorted(made)
    assert (await get(globex, "/v1/batches"))[1] == {"batches": [], "next_cursor": None}
    status, problem = await get(globex, f"/v1/batches?cursor={last}")
    assert (status, problem["code"]) == (422, "invalid_message")


async def test_an_answer_that_is_kept_is_not_sent_again(acme: aiohttp.ClientSession, async_store: Store) -> None:
    batch_id = (await hand_in(acme, 1))["batch_id"]
    async with acme.get(f"/v1/batches/{batch_id}") as response:
        known = {"If-None-Match": response.headers["ETag"]}
    async with acme.get(f"/v1/batches/{batch_id}", headers=known) as response:
        assert response.status == 304
    [one] = await fed(async_store, BatchRef("acme", batch_id))
    await one.finish()
    async with acme.get(f"/v1/batches/{batch_id}", headers=known) as response:
        assert response.status == 200


async def test_a_cancelled_batch_says_what_never_ran_and_tells_its_end_once(
    acme: aiohttp.ClientSession, async_store: Store
) -> None:
    batch_id = (await hand_in(acme, 3, callback_url=URL))["batch_id"]
    ref = BatchRef("acme", batch_id)
    [begun] = await fed(async_store, ref, window=1)
    for _ in range(2):
        async with acme.post(f"/v1/batches/{batch_id}/cancel") as response:
            view = await response.json()
        assert (response.status, view["status"], view["cancel_requested"], view["cancelled"]) == (
            202,
            "processing",
            True,
            2,
        )
    await begun.finish("0")
    async with acme.post(f"/v1/batches/{batch_id}/cancel") as response:
        view = await response.json()
    assert (response.status, view["status"], view["completed"]) == (202, "cancelled", 1)
    came = await results(acme, batch_id)
    assert [(one["status"], one["response"] is None, (one["error"] or {}).get("code")) for one in came] == [
        ("completed", False, None),
        ("failed", True, "cancelled"),
        ("failed", True, "cancelled"),
    ]
    status, callback = await get(acme, f"/v1/callbacks/{batch_id}")
    assert (status, callback["state"], callback["url"]) == (200, "waiting", URL)
    body = await async_store.redis.hget(keys.callback("acme", batch_id), "body")
    told = BatchEnded.model_validate_json(body)
    assert told.data == await async_store.run(batch.look(ref))
    assert told.timestamp == told.data.finished_at


async def test_a_download_is_a_stream_of_pages_and_no_more_than_its_limit(
    acme: aiohttp.ClientSession, async_store: Store
) -> None:
    """Results of 50 kB each: a page holds few of them."""
    batch_id = (await hand_in(acme, 60))["batch_id"]
    ref = BatchRef("acme", batch_id)
    while workers := await fed(async_store, ref):
        for worker in workers:
            await worker.finish("x" * 50_000)
    came = await results(acme, batch_id)
    assert [one["index"] for one in came] == list(range(60))
    assert [one["index"] for one in await results(acme, batch_id, "?after=7&limit=31")] == list(range(7, 38))
    # A connection that breaks is gone on with by the number of whole lines.
    async with acme.get(f"/v1/batches/{batch_id}/results") as response:
        part = await response.content.read(220_000)
    known = [json.loads(line) for line in part.split(b"\n")[:-1]]
    assert 0 < len(known) < 60
    assert known + await results(acme, batch_id, f"?after={len(known)}") == came


@pytest.mark.parametrize(
    ("query", "field"), [("after=-1", "after"), ("after=x", "after"), ("limit=0", "limit"), ("limit=10001", "limit")]
)
async def test_what_is_no_place_in_the_results_is_refused(acme: aiohttp.ClientSession, query: str, field: str) -> None:
    status, problem = await get(acme, f"/v1/batches/{NOBODY}/results?{query}")
    assert (status, [one["field"] for one in problem["errors"]]) == (422, [field])


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        [kilobytes] = [line.split()[1] for line in file if line.startswith("VmRSS")]
    return int(kilobytes) * 1024


async def test_ten_thousand_are_taken_while_others_are_answered(
    acme: aiohttp.ClientSession, globex: aiohttp.ClientSession, shim: ShimProcess, async_store: Store
) -> None:
    body = lines(asked(10_000, context={"note": "x" * 1_000})).encode()
    before = resident_bytes(shim.pid)
    answered_s: list[float] = []

    async def others() -> None:
        while True:
            began_s = time.perf_counter()
            assert (await get(globex, "/v1/executions"))[0] == 200
            answered_s.append(time.perf_counter() - began_s)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(others())
    began_s = time.perf_counter()
    async with acme.post(
        "/v1/batches", data=io.BytesIO(body), headers={"Content-Type": "application/jsonl"}
    ) as response:
        assert response.status == 202, await response.text()
        answer = await response.json()
    took_s = time.perf_counter() - began_s
    watching.cancel()
    grown = resident_bytes(shim.pid) - before
    assert answer["count"] == 10_000
    assert await async_store.redis.llen(keys.batch_items("acme", answer["batch_id"])) == 10_000
    assert took_s < 15
    assert grown < 3 * len(body), "it was held once"
    assert max(answered_s) < 0.5
