"""The one way in: keys and tokens alike, for as long as they hold, and not for those who guess."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import get_args

import aiohttp
import pytest

from agent_exec import api_keys
from agent_exec.api_keys import ApiKeys, Role
from agent_exec.embedded import EmbeddedServer
from agent_exec.errors import TooManyAttempts, Unauthorized
from agent_exec.settings import read_settings
from agent_exec.store import Store
from api_shim.app import OPERATIONS
from api_shim.credentials import Credentials
from api_shim.failed_attempts import MAX_NAMES, FailedAttempts, name_of_address
from api_shim.operation import Operation
from api_shim.problem import Problem
from tests.api_shim.conftest import Submitted, session
from tests.api_shim.issuer import AUDIENCE, ISSUER, Issuer
from tests.api_shim.shim_process import ShimProcess, shim_process
from tests.api_shim.test_tenants import GUARDED, ask, code_of, named
from tests.processes import Process, wait_until

#: Few enough to be used up by a test.
ATTEMPTS = 20


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def issuers_keys(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("issuer") / "jwks.json"
    issuer.write(path)
    return path


@pytest.fixture(scope="module")
def role_keys(keys_file: Path) -> dict[Role, str]:
    """A key of each role."""
    return {role: api_keys.create(keys_file, tenant_id="staff", role=role) for role in get_args(Role)}


@pytest.fixture(scope="module")
def tokens_shim(
    redis_server: EmbeddedServer,
    keys_file: Path,
    api_key: dict[str, str],
    role_keys: dict[Role, str],
    issuers_keys: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ShimProcess]:
    settings = {
        "redis_url": redis_server.url,
        "api_keys_file": keys_file,
        "api_failed_attempts": ATTEMPTS,
        "jwt_keys_file": issuers_keys,
        "jwt_algorithm": "EdDSA",
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "jwt_leeway_s": 0,
        "api_service_tenant": "platform",
    }
    with shim_process(tmp_path_factory.mktemp("shim"), **settings) as shim:
        yield shim


@pytest.fixture
def shim(tokens_shim: ShimProcess, redis_url: str) -> ShimProcess:
    """A shim that takes keys and tokens, on a store that is empty."""
    return tokens_shim


@pytest.fixture
async def by_token(shim: ShimProcess, issuer: Issuer) -> AsyncIterator[aiohttp.ClientSession]:
    """A caller of acme with a token."""
    async with session(shim, issuer.token()) as caller:
        yield caller


def other_than(letter: str) -> str:
    return "A" if letter != "A" else "B"


async def status_of(shim: ShimProcess, credential: str) -> int:
    async with session(shim, credential) as caller, caller.get("/v1/executions") as response:
        await response.read()
        return response.status


async def test_a_token_and_a_key_of_a_tenant_are_the_same_caller(
    by_token: aiohttp.ClientSession, acme: aiohttp.ClientSession, globex: aiohttp.ClientSession
) -> None:
    async with by_token.post("/v1/executions", json={"agent_id": "desk", "query": "hello"}) as response:
        assert response.status == 202
        path = response.headers["Location"]
    for caller, status in ((by_token, 200), (acme, 200), (globex, 404)):
        async with caller.get(path) as response:
            assert response.status == status


@pytest.mark.parametrize("operation", GUARDED, ids=named)
@pytest.mark.parametrize("role", get_args(Role))
async def test_a_role_opens_what_the_table_says_whatever_says_the_role(
    operation: Operation, role: Role, shim: ShimProcess, issuer: Issuer, role_keys: dict[Role, str]
) -> None:
    may = operation.role in ("caller", role)
    for credential in (issuer.token(tenant_id="staff", role=role), role_keys[role]):
        async with session(shim, credential) as caller:
            status, _, body = await ask(caller, operation, str(uuid.uuid4()))
        if may:  # what is refused behind the door, its own tests tell
            assert status != 401
            assert not (status == 403 and "This takes a credential with" in str(body))
        else:
            assert (status, code_of(operation, body)) == (403, "forbidden")
            assert f"role {operation.role}" in str(body)


async def test_streams_and_sockets_end_when_their_token_does(
    shim: ShimProcess, issuer: Issuer, async_store: Store, by_token: aiohttp.ClientSession
) -> None:
    """S11, B38."""
    async with by_token.post("/v1/executions", json={"agent_id": "desk", "query": "hello"}) as response:
        execution = Submitted(async_store, await response.json())
    until_s = int(time.time()) + 2
    async with (
        session(shim, issuer.token(exp=until_s)) as caller,
        caller.ws_connect(f"{execution.path}/ws") as socket,
        caller.get(f"{execution.path}/events") as stream,
    ):
        async with asyncio.timeout(10):
            assert (await socket.receive_json())["sequence"] == 1
            async for _ in socket:
                pass
            assert socket.close_code == 4401
            assert b"event: agent_execution_started" in await stream.content.read()
        assert until_s <= time.time() < until_s + 4
    assert await status_of(shim, issuer.token(exp=until_s)) == 401


async def test_a_command_on_a_socket_whose_token_has_ended_is_not_obeyed(
    shim: ShimProcess, issuer: Issuer, async_store: Store, by_token: aiohttp.ClientSession, issuers_keys: Path
) -> None:
    """S11, B38."""
    async with by_token.post("/v1/executions", json={"agent_id": "desk", "query": "hello"}) as response:
        execution = Submitted(async_store, await response.json())
    until_s = int(time.time()) + 1
    async with session(shim, issuer.token(exp=until_s)) as caller, caller.ws_connect(f"{execution.path}/ws") as socket:
        await socket.receive()
        while time.time() < until_s:
            await asyncio.sleep(0.01)
        await socket.send_json({"command": "cancel_execution"})
        async with asyncio.timeout(5):
            message = await socket.receive()
        assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 4401)
    async with by_token.get(execution.path) as response:
        assert (await response.json())["status"] == "pending"


async def test_a_withdrawn_key_of_the_issuer_ends_what_its_tokens_opened(
    shim: ShimProcess, async_store: Store, by_token: aiohttp.ClientSession, issuer: Issuer, issuers_keys: Path
) -> None:
    async with by_token.post("/v1/executions", json={"agent_id": "desk", "query": "hello"}) as response:
        execution = Submitted(async_store, await response.json())
    async with by_token.ws_connect(f"{execution.path}/ws") as socket:
        await socket.receive()
        before = issuer.kid
        issuer.add_key(f"{before}+")
        issuer.write(issuers_keys, issuer.kid)
        async with asyncio.timeout(5):
            async for _ in socket:
                pass
        assert socket.close_code == 4401
    assert await status_of(shim, issuer.token()) == 200


async def test_two_credentials_at_once_are_none(shim: ShimProcess, issuer: Issuer, api_key: dict[str, str]) -> None:
    headers = [("Authorization", f"Bearer {issuer.token()}"), ("Authorization", f"Bearer {api_key['acme']}")]
    async with aiohttp.ClientSession(shim.url) as caller, caller.get("/v1/executions", headers=headers) as response:
        assert response.status == 401


async def test_who_guesses_is_told_to_wait_and_nobody_is_locked_out(
    tmp_path: Path, redis_url: str, keys_file: Path, api_key: dict[str, str]
) -> None:
    """S12."""
    own = api_key["acme"]
    wrong = own[:-1] + other_than(own[-1])
    with shim_process(tmp_path, redis_url=redis_url, api_keys_file=keys_file, api_failed_attempts=ATTEMPTS) as alone:
        answered = [await status_of(alone, wrong) for _ in range(ATTEMPTS + 5)]
        assert answered == [401] * ATTEMPTS + [429] * 5
        async with session(alone, wrong) as guesser:
            async with guesser.get("/v1/executions") as response:
                assert response.headers["Retry-After"] == "60"
                assert Problem.model_validate(await response.json()).code == "too_many_attempts"
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await guesser.ws_connect(f"/v1/executions/{uuid.uuid4()}/ws")
            assert refused.value.status == 429
        assert await status_of(alone, own) == 200, "from the same address, with the key of the same id"
        assert alone.output.count("too many credentials that do not hold") == 2, "the address and the key, once each"
        assert own not in alone.output
        assert wrong not in alone.output


def test_what_is_used_up_comes_back_within_a_minute() -> None:
    failed = FailedAttempts(per_minute=3)
    assert [failed.count(["a"], now_s=0.0) for _ in range(5)] == [False, False, False, True, True]
    assert not failed.count(["b"], now_s=0.0)
    assert failed.count(["a", "b"], now_s=0.0), "one of them is enough"
    assert not failed.count(["a"], now_s=20.0)
    assert failed.count(["a"], now_s=20.0)
    assert [failed.count(["a"], now_s=500.0) for _ in range(4)] == [False, False, False, True]


def test_the_memory_of_failures_is_bounded() -> None:
    failed = FailedAttempts(per_minute=1)
    for number in range(MAX_NAMES + 10):
        failed.count([str(number)], now_s=0.0)
    assert failed.count([str(MAX_NAMES)], now_s=0.0), "the newest are remembered"
    assert not failed.count(["0"], now_s=0.0), "the oldest are not"


def test_a_network_of_version_6_is_one_address() -> None:
    assert name_of_address("2001:db8::1") == name_of_address("2001:db8::ffff:1") != name_of_address("2001:db8:0:1::1")
    assert name_of_address("::ffff:192.0.2.1") != name_of_address("::ffff:192.0.2.2")
    assert name_of_address("192.0.2.1") != name_of_address("192.0.2.2")
    assert name_of_address("") == name_of_address("")


def test_a_request_without_a_credential_is_no_attempt() -> None:
    credentials = Credentials(read_settings(api_failed_attempts=1))
    for authorizations in ([], [""], ["Basic x"], ["Bearer "]):
        for _ in range(3):
            with pytest.raises(Unauthorized):
                credentials.admit(authorizations, host="192.0.2.1")
    with pytest.raises(Unauthorized):
        credentials.admit(["Bearer nonsense"], host="192.0.2.1")
    with pytest.raises(TooManyAttempts):
        credentials.admit(["Bearer nonsense"], host="192.0.2.1")
    assert credentials.lets_nobody_in


def test_how_a_key_is_wrong_does_not_show_in_the_time_it_takes(tmp_path: Path) -> None:
    """S08, S10."""
    path = tmp_path / "keys.json"
    own = api_keys.create(path, tenant_id="acme")
    _, key_id, secret = own.split("_", 2)
    wrong = {
        "first letter": f"aek_{key_id}_{other_than(secret[0])}{secret[1:]}",
        "last letter": own[:-1] + other_than(own[-1]),
        "unknown id": f"aek_zzzzzzzzzzzz_{secret}",
    }
    keys = ApiKeys(path)
    took_ns: dict[str, list[int]] = {name: [] for name in wrong}
    for _ in range(3_000):
        for name, presented in wrong.items():
            began_ns = time.perf_counter_ns()
            with pytest.raises(Unauthorized):
                keys.verify(presented)
            took_ns[name].append(time.perf_counter_ns() - began_ns)
    quartiles = {name: statistics.quantiles(took)[0] for name, took in took_ns.items()}
    assert max(quartiles.values()) < 1.3 * min(quartiles.values()), quartiles


def test_every_operation_with_a_role_is_in_the_matrix() -> None:
    assert {operation.path for operation in OPERATIONS if operation.role is None} == {
        "/health/live",
        "/health/ready",
        "/metrics",
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"jwt_keys_file": "/nowhere/jwks.json"}, "AGENT_EXEC_JWT_ISSUER"),
        (
            {"jwt_keys_file": "/nowhere/jwks.json", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE},
            "AGENT_EXEC_JWT_KEYS_FILE: /nowhere/jwks.json cannot be read",
        ),
        ({"redis_url": "redis://redis.example.com"}, "AGENT_EXEC_REDIS_URL has no password"),
    ],
)
def test_a_shim_that_cannot_be_safe_does_not_start_and_says_why_in_a_line(
    settings: dict[str, str], words: str, tmp_path: Path, redis_url: str
) -> None:
    """S41."""
    env = {f"AGENT_EXEC_{name.upper()}": value for name, value in {"redis_url": redis_url, **settings}.items()}
    command = ["-m", "uvicorn", "api_shim.app:app", "--port", "0"]
    with Process("shim", command, env=env, log=tmp_path / "shim.log") as process:
        wait_until(lambda: not process.running, what="the shim to give up")
        assert process.stop() != 0
        assert words in process.output
        assert "Traceback" not in process.output
