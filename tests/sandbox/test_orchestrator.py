"""The orchestrator: its operations, and its WebSocket under the client that the notifier uses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from agent_exec.contract.event import Frame
from agent_exec.contract.operation import EmbeddingResult, QueryResult
from sandbox import orchestrator
from sandbox.app import DEFAULT_TOKEN
from sandbox.serving import serving

ONE = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"
TWO = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f11"


def frame(sequence: int, *, execution_id: str = ONE, tenant_id: str = "acme") -> str:
    return json.dumps(
        {
            "event": "agent_response_token",
            "service": "agent-execution",
            "task_id": "t1",
            "tenant_id": tenant_id,
            "execution_id": execution_id,
            "event_id": f"{execution_id}:{sequence}",
            "sequence": sequence,
            "timestamp": "2026-01-01T00:00:00Z",
            "data": {"token": f"w{sequence}", "is_final": False},
        }
    )


def notifier(
    base_url: str, *, token: str = DEFAULT_TOKEN, prefix: str = "/orchestrator"
) -> AbstractAsyncContextManager[ClientConnection]:
    address = f"{base_url.replace('http', 'ws')}{prefix}/ws/task_updates"
    return connect(address, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None)


async def received(socket: ClientConnection) -> Any:
    return json.loads(await socket.recv())


async def test_acknowledges_keeps_and_gives_back_frames(base_url: str, http: httpx.AsyncClient) -> None:
    async with notifier(base_url) as socket:
        acks = []
        for text in (frame(1), frame(1, execution_id=TWO, tenant_id="globex"), frame(2)):
            await socket.send(text)
            acks.append(await received(socket))
        everything = (await http.get("/orchestrator/frames")).json()
        one = (await http.get("/orchestrator/frames", params={"execution": ONE, "after": 1})).json()
        globex = (await http.get("/orchestrator/frames", params={"tenant": "globex"})).json()

    assert acks == [{"ack": f"{ONE}:1"}, {"ack": f"{TWO}:1"}, {"ack": f"{ONE}:2"}]
    assert (everything["last"], everything["faulty"]) == (3, 0)
    assert [(got["number"], got["frame"]["event_id"]) for got in one["frames"]] == [(3, f"{ONE}:2")]
    assert [got["frame"]["event_id"] for got in globex["frames"]] == [f"{TWO}:1"]


async def test_keeps_what_breaks_the_contract_with_the_reason(base_url: str, http: httpx.AsyncClient) -> None:
    async with notifier(base_url) as socket:
        for text in ('{"event": "nonsense", "execution_id": "x"}', "not JSON"):
            await socket.send(text)
        await socket.send(frame(1))
        first = await received(socket)
        got = (await http.get("/orchestrator/frames")).json()

    assert first == {"ack": f"{ONE}:1"}, "what it cannot read it does not acknowledge"
    assert got["faulty"] == 2
    assert "nonsense" in got["frames"][0]["fault"] or "event" in got["frames"][0]["fault"]
    assert got["frames"][2]["fault"] is None


async def test_waits_for_a_frame_that_is_to_come(base_url: str, http: httpx.AsyncClient) -> None:
    waiting = asyncio.create_task(http.get("/orchestrator/frames", params={"execution": ONE, "wait_s": 20}))
    async with notifier(base_url) as socket:
        for text in (frame(1, execution_id=TWO), frame(1)):
            await socket.send(text)
        answer = await waiting
    in_vain = await http.get("/orchestrator/frames", params={"execution": ONE, "after": 2, "wait_s": 0.05})

    assert [got["frame"]["event_id"] for got in answer.json()["frames"]] == [f"{ONE}:1"]
    assert in_vain.json()["frames"] == []


async def test_bunches_acknowledgements_and_never_keeps_the_last_waiting() -> None:
    async with (
        serving(orchestrator.create_app(ack_every=3)) as url,
        notifier(url, prefix="") as socket,
    ):
        for text in (frame(1), frame(1, execution_id=TWO), frame(2), frame(3)):
            await socket.send(text)
        acks = [await received(socket) for _ in range(3)]

    assert acks == [{"ack": f"{TWO}:1"}, {"ack": f"{ONE}:2"}, {"ack": f"{ONE}:3"}]


async def test_acknowledges_nothing_when_made_so() -> None:
    async with (
        serving(orchestrator.create_app(ack_every=0)) as url,
        httpx.AsyncClient(base_url=url) as http,
        notifier(url, prefix="") as socket,
    ):
        await socket.send(frame(1))
        got = (await http.get("/frames", params={"wait_s": 10})).json()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), timeout=3 * orchestrator.ACK_QUIET_S)

    assert got["last"] == 1


async def test_shows_frames_to_whoever_watches() -> None:
    shown: list[Frame] = []
    async with (
        serving(orchestrator.create_app(show=shown.append)) as url,
        notifier(url, prefix="") as socket,
    ):
        await socket.send(frame(1))
        await received(socket)

    assert [one.sequence for one in shown] == [1]


async def test_sends_commands_and_keeps_their_results(base_url: str, http: httpx.AsyncClient) -> None:
    command = {"command": "cancel_execution", "execution_id": ONE}
    nobody = await http.post("/orchestrator/_send", json=command)
    async with notifier(base_url) as socket:
        sent = await http.post("/orchestrator/_send", json=command)
        assert await received(socket) == command
        await socket.send(json.dumps({"event": "command_result", "command": "cancel_execution", "ok": True}))
        answer = await http.get(
            "/orchestrator/command-results", params={"after": sent.json()["results_before"], "wait_s": 10}
        )

    assert nobody.status_code == 409
    assert [got["result"]["ok"] for got in answer.json()["results"]] == [True]


async def test_refuses_a_wrong_token_at_the_handshake(base_url: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with notifier(base_url, token="wrong"):
            pass

    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("status", [401, 503])
async def test_refuses_and_drops_everybody_when_told_to(base_url: str, http: httpx.AsyncClient, status: int) -> None:
    async with notifier(base_url) as socket:
        await http.post("/orchestrator/_mode", json={"refuse": status})
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        with pytest.raises(InvalidStatus) as refused:
            async with notifier(base_url):
                pass
    await http.post("/orchestrator/_mode", json={})
    async with notifier(base_url):
        connections = (await http.get("/orchestrator/connections")).json()

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == orchestrator.CLOSE_TRY_AGAIN
    assert refused.value.response.status_code == status
    assert connections == {"open": [2], "ever": 2}


@pytest.mark.parametrize("frames", [0, 2])
async def test_closes_after_some_frames_when_told_to(base_url: str, http: httpx.AsyncClient, frames: int) -> None:
    await http.post("/orchestrator/_mode", json={"close_after": frames})

    async with notifier(base_url) as socket:
        for sequence in range(1, frames + 1):
            await socket.send(frame(sequence))
        acks = []
        with contextlib.suppress(ConnectionClosedError):
            async for message in socket:
                acks.append(message)  # noqa: PERF401 the error would take the list away

    assert len(acks) == frames
    assert socket.close_code == orchestrator.CLOSE_TRY_AGAIN


async def test_takes_frames_in_silence_when_told_to(base_url: str, http: httpx.AsyncClient) -> None:
    await http.post("/orchestrator/_mode", json={"silent": True})

    async with notifier(base_url) as socket:
        await socket.send(frame(1))
        await http.get("/orchestrator/frames", params={"wait_s": 10})
        await http.post("/orchestrator/_mode", json={"silent": False})
        await socket.send(frame(2))
        first = await received(socket)

    assert first == {"ack": f"{ONE}:2"}


async def test_searches_and_embeds_on_our_behalf(base_url: str, http: httpx.AsyncClient) -> None:
    query = {"tenant_id": "acme", "agent_id": "desk", "execution_id": ONE, "query": "parental leave", "top_k": 2}
    texts = {"tenant_id": "acme", "execution_id": ONE, "texts": ["parental leave", "leave for parents", "laptops", ""]}

    found = await http.post("/orchestrator/v1/operations/query", json={**query, "filters": {}})
    filtered = await http.post("/orchestrator/v1/operations/query", json={**query, "filters": {"topic": "money"}})
    embedded = await http.post("/orchestrator/v1/operations/embedding", json=texts)
    wrong = await http.post("/orchestrator/v1/operations/query", json={**query, "top_k": 0})
    async with httpx.AsyncClient(base_url=base_url) as stranger:
        unauthorized = await stranger.post("/orchestrator/v1/operations/query", json=query)

    documents = QueryResult.model_validate_json(found.content).documents
    assert documents[0].metadata["title"] == "Parental leave"
    assert len(documents) == 2
    assert all(got["metadata"]["topic"] == "money" for got in filtered.json()["documents"])
    vectors = EmbeddingResult.model_validate_json(embedded.content).embeddings
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-3) for vector in vectors)
    likeness = [sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors]
    assert likeness[1] > likeness[2]
    assert wrong.status_code == 400
    assert unauthorized.status_code == 401


async def test_plays_an_operation_that_takes_long(http: httpx.AsyncClient) -> None:
    texts = {"tenant_id": "acme", "execution_id": ONE, "texts": ["laptops"]}
    query = {"tenant_id": "acme", "agent_id": "desk", "execution_id": ONE, "query": "laptops", "top_k": 1}
    await http.post("/orchestrator/_mode", json={"under_way": 1})

    answers = [
        await http.post(f"/orchestrator/v1/operations/{name}", json=asked, headers={"Idempotency-Key": name})
        for name, asked in (("embedding", texts), ("query", query), ("embedding", texts), ("query", query))
    ]

    assert [answer.status_code for answer in answers] == [202, 202, 200, 200]
    assert answers[0].headers["retry-after"] == "1"
    assert (await http.get("/orchestrator/operations")).json() == {"embedding": 2, "query": 2}
