"""A WebSocket on one execution: frames out, commands in, and how it closes."""

from __future__ import annotations

import asyncio
import json
import socket as raw
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientWebSocketResponse, ClientWSTimeout, WSCloseCode, WSMsgType, WSServerHandshakeError

from agent_exec import api_keys
from agent_exec.contract.event import Frame
from agent_exec.ledger import ledger
from agent_exec.store import Store
from api_shim.conversation import BURST, COMMANDS_PER_S
from tests.api_shim.conftest import Submitted, session
from tests.api_shim.played_worker import until
from tests.api_shim.shim_process import ShimProcess


async def frame(socket: ClientWebSocketResponse) -> Frame:
    return Frame.model_validate_json(await socket.receive_str())


async def close_code(socket: ClientWebSocketResponse) -> int | None:
    """Read to the end; return the code that the shim closed with."""
    async for _ in socket:
        pass
    return socket.close_code


async def test_a_socket_carries_the_frames_and_closes_after_the_terminal_one(
    acme: aiohttp.ClientSession, execution: Submitted
) -> None:
    async with acme.ws_connect(f"{execution.path}/ws") as socket:
        assert (await frame(socket)).event == "agent_execution_started"
        await execution.tell("4", "2")
        assert [(await frame(socket)).data["token"] for _ in range(2)] == ["4", "2"]
        await execution.finish()
        assert (await frame(socket)).event == "agent_execution_completed"
        assert await close_code(socket) == 1000


async def test_a_socket_resumes_behind_a_sequence(acme: aiohttp.ClientSession, execution: Submitted) -> None:
    await execution.tell("a", "b", "c")
    await execution.finish()
    async with acme.ws_connect(f"{execution.path}/ws", params={"after": "3"}) as socket:
        assert [(await frame(socket)).sequence for _ in range(2)] == [4, 5]
        assert await close_code(socket) == 1000


async def test_a_cancel_over_the_socket_is_durable(
    acme: aiohttp.ClientSession, execution: Submitted, async_store: Store
) -> None:
    async with acme.ws_connect(f"{execution.path}/ws", params={"after": "1"}) as socket:
        await socket.send_json({"command": "cancel_execution"})
        answer = await socket.receive_json()
        assert answer == {
            "event": "command_result",
            "service": "agent-execution",
            "command": "cancel_execution",
            "execution_id": execution.id,
            "ok": True,
            "status": "cancel_requested",
        }
        await socket.send_json({"command": "cancel_execution", "execution_id": execution.id})
        assert (await socket.receive_json())["status"] == "cancel_requested"
    assert (await async_store.run(ledger.look("acme", execution.id))).cancel_requested


@pytest.mark.parametrize(
    "message",
    [
        "",
        "nonsense",
        "[]",
        '{"command": "drop_tables"}',
        '{"command": "cancel_execution", "force": true}',
        '{"command": "cancel_execution", "command": "cancel_execution"}',
        '{"execution_id": "x"}',
        b"\x00\x01",
    ],
    ids=str,
)
async def test_three_commands_that_are_none_close_the_socket(
    acme: aiohttp.ClientSession, execution: Submitted, message: str | bytes, async_store: Store
) -> None:
    """B34."""
    async with acme.ws_connect(f"{execution.path}/ws", params={"after": "1"}) as socket:
        for _ in range(3):
            await (socket.send_bytes(message) if isinstance(message, bytes) else socket.send_str(message))
            answer = await socket.receive_json()
            assert (answer["ok"], answer["command"]) == (False, None)
            assert answer["code"] in ("invalid_json", "invalid_message")
        assert await close_code(socket) == 1008
    assert not (await async_store.run(ledger.look("acme", execution.id))).cancel_requested


async def test_a_command_for_another_execution_finds_none(
    acme: aiohttp.ClientSession, globex: aiohttp.ClientSession, execution: Submitted
) -> None:
    """S11, B34."""
    async with globex.post("/v1/executions", json={"agent_id": "desk", "query": "q"}) as response:
        own = (await response.json())["execution_id"]
    async with globex.ws_connect(f"/v1/executions/{own}/ws", params={"after": "1"}) as socket:
        answers = []
        for other in (execution.id, str(uuid.uuid4())):
            await socket.send_json({"command": "cancel_execution", "execution_id": other})
            answers.append(await socket.receive_json())
        assert answers[0]["code"] == "not_found"
        assert answers[0] == answers[1], "another tenant's looks like a missing one"


async def test_a_socket_that_never_stops_commanding_is_told_and_closed(
    acme: aiohttp.ClientSession, execution: Submitted
) -> None:
    """B35."""
    async with acme.ws_connect(f"{execution.path}/ws", params={"after": "1"}) as socket:
        for _ in range(1_000):
            await socket.send_json({"command": "cancel_execution"})
        answers = [json.loads(message.data) async for message in socket if message.type is WSMsgType.TEXT]
        assert all(answer["ok"] for answer in answers[:BURST])
        refused = [answer for answer in answers if not answer["ok"]]
        assert [answer["code"] for answer in refused] == ["too_many_commands"] * 3
        assert len(answers) < 2 * BURST
        assert socket.close_code == 1008


async def test_a_socket_may_command_again_after_a_pause(acme: aiohttp.ClientSession, execution: Submitted) -> None:
    async def is_taken() -> bool:
        await socket.send_json({"command": "cancel_execution"})
        return bool((await socket.receive_json())["ok"])

    async with acme.ws_connect(f"{execution.path}/ws", params={"after": "1"}) as socket:
        while await is_taken():
            pass
        await asyncio.sleep(1 / COMMANDS_PER_S)  # what a polite program does, who was told so
        assert await is_taken()


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"headers": {"Authorization": "Bearer nonsense"}}, 401),
        ({"headers": {"Authorization": ""}, "params": {"access_token": "aek_x"}}, 401),
        ({"headers": {"Authorization": ""}, "protocols": ("bearer", "aek_x")}, 401),
        ({"params": {"access_token": "aek_x"}}, 422),
        ({"params": {"after": "-1"}}, 422),
        ({"params": {"after": "99"}}, 422),
        ({"headers": {"Origin": "https://evil.example"}}, 403),
    ],
)
async def test_a_handshake_that_is_refused(
    acme: aiohttp.ClientSession, execution: Submitted, options: dict[str, Any], status: int
) -> None:
    """S11, B32."""
    with pytest.raises(WSServerHandshakeError) as refused:
        await acme.ws_connect(f"{execution.path}/ws", **options)
    assert refused.value.status == status


async def test_a_key_in_a_query_is_refused_and_not_logged(
    acme: aiohttp.ClientSession, execution: Submitted, shim: ShimProcess
) -> None:
    """B32."""
    for path in ("ws", "events"):
        async with acme.get(f"{execution.path}/{path}", params={"token": "aek_CANARY"}) as response:
            assert response.status in (404, 422)  # the socket's path is no other's
    with pytest.raises(WSServerHandshakeError):
        await acme.ws_connect(f"{execution.path}/ws", params={"token": "aek_CANARY"})
    assert "aek_CANARY" not in shim.output
    assert "without completing handshake" not in shim.output


async def test_our_own_origin_and_listed_ones_may_open_a_socket(
    acme: aiohttp.ClientSession, execution: Submitted, shim: ShimProcess
) -> None:
    for origin in (shim.url, "https://console.example"):
        async with acme.ws_connect(f"{execution.path}/ws", origin=origin) as socket:
            assert (await frame(socket)).sequence == 1


async def test_a_packed_command_is_not_unpacked_beyond_the_largest(
    acme: aiohttp.ClientSession, execution: Submitted
) -> None:
    """S11, S40: twenty megabytes in a frame of some kilobytes."""
    async with acme.ws_connect(f"{execution.path}/ws", compress=15, timeout=ClientWSTimeout(ws_close=10)) as socket:
        await frame(socket)
        await socket.send_str(" " * 20_000_000)
        assert await close_code(socket) == WSCloseCode.MESSAGE_TOO_BIG
    async with acme.get(execution.path) as response:
        assert response.status == 200


async def test_a_socket_that_does_not_read_is_dropped(
    execution: Submitted, shim: ShimProcess, api_key: dict[str, str]
) -> None:
    """S39."""
    for _ in range(20):
        await execution.tell(*["x" * 1_000] * 499)
    with raw.create_connection(("127.0.0.1", shim.port)) as sleeper:
        sleeper.setsockopt(raw.SOL_SOCKET, raw.SO_RCVBUF, 4_096)
        sleeper.sendall(
            f"GET {execution.path}/ws HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api_key['acme']}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nX-Request-Id: sleeping-socket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        await until(lambda: "reader dropped" in shim.output and "sleeping-socket" in shim.output)


async def test_a_socket_closes_when_its_key_is_revoked(
    shim: ShimProcess, keys_file: Path, execution: Submitted
) -> None:
    """S11."""
    key = api_keys.create(keys_file, tenant_id="acme")

    async def is_known() -> bool:
        async with session(shim, key) as caller, caller.get(execution.path) as response:
            return response.status == 200

    await until(is_known)
    async with session(shim, key) as caller, caller.ws_connect(f"{execution.path}/ws") as socket:
        await frame(socket)
        api_keys.revoke(keys_file, key.split("_")[1])
        async with asyncio.timeout(8):
            assert await close_code(socket) == 4401


async def test_a_socket_ends_when_its_execution_has_expired(
    acme: aiohttp.ClientSession, execution: Submitted, async_store: Store
) -> None:
    async with acme.ws_connect(f"{execution.path}/ws") as socket:
        await frame(socket)
        await async_store.redis.flushall()
        assert await close_code(socket) == 4404
