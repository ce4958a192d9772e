"""One WebSocket: how it is opened, what its end means, and when the next one is tried."""

from __future__ import annotations

import random

import pytest

from agent_exec.errors import SettingsInvalid
from agent_exec.settings import Settings, read_settings
from notifier import connection
from notifier.connection import Backoff, ConnectionLost, CredentialRefused, connect, refused_pause_s
from tests.notifier.conftest import TOKEN
from tests.notifier.played_orchestrator import Orchestrator, until


async def test_the_token_travels_in_a_header_and_nothing_is_compressed(
    orchestrator: Orchestrator, settings: Settings
) -> None:
    async with connect(settings.orchestrator_ws_url, token=TOKEN) as open_connection:
        await open_connection.arrival()
    [handshake] = orchestrator.handshakes
    assert handshake.headers["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in handshake.path
    assert "Sec-WebSocket-Extensions" not in handshake.headers


async def test_no_token_is_no_header(orchestrator: Orchestrator, settings: Settings) -> None:
    async with connect(settings.orchestrator_ws_url, token=""):
        pass
    assert "Authorization" not in orchestrator.handshakes[0].headers


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, CredentialRefused), (403, CredentialRefused), (429, ConnectionLost), (503, ConnectionLost)],
)
async def test_a_refused_handshake_says_why(
    orchestrator: Orchestrator, settings: Settings, status: int, kind: type[ConnectionLost]
) -> None:
    orchestrator.refuses = status
    with pytest.raises(ConnectionLost, match=f"answered {status}") as refused:
        async with connect(settings.orchestrator_ws_url, token=TOKEN):
            pass
    assert type(refused.value) is kind


async def test_a_redirect_is_not_followed_for_it_would_carry_the_token(orchestrator: Orchestrator) -> None:
    elsewhere = Orchestrator()
    async with elsewhere.listening():
        orchestrator.refuses, orchestrator.refers_to = 302, elsewhere.url
        with pytest.raises(ConnectionLost, match="answered 302"):
            async with connect(orchestrator.url, token=TOKEN):
                pass
    assert elsewhere.handshakes == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [(1000, ConnectionLost), (1013, ConnectionLost), (4401, CredentialRefused), (4403, CredentialRefused)],
)
async def test_a_closed_connection_says_why(
    orchestrator: Orchestrator, settings: Settings, code: int, kind: type[ConnectionLost]
) -> None:
    orchestrator.slams = code
    async with connect(settings.orchestrator_ws_url, token=TOKEN) as open_connection:
        with pytest.raises(ConnectionLost, match=f"closed with {code}") as closed:
            await anext(open_connection.messages())
    assert type(closed.value) is kind


async def test_a_broken_connection_is_lost_for_every_verb(orchestrator: Orchestrator, settings: Settings) -> None:
    async with connect(settings.orchestrator_ws_url, token=TOKEN) as open_connection:
        await until(lambda: orchestrator.open)
        orchestrator.sever()
        with pytest.raises(ConnectionLost, match="broken"):
            await anext(open_connection.messages())
        with pytest.raises(ConnectionLost, match="broken"):
            await open_connection.send("{}")
        with pytest.raises(ConnectionLost, match="broken"):
            await open_connection.arrival()


async def test_nobody_there_is_no_connection() -> None:
    with pytest.raises(ConnectionLost, match="Connect call failed"):
        async with connect("ws://127.0.0.1:1/", token=TOKEN):
            pass


async def test_silence_is_a_lost_connection(
    orchestrator: Orchestrator, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 0.2)
    async with connect(settings.orchestrator_ws_url, token=TOKEN) as open_connection:
        await until(lambda: orchestrator.open)
        orchestrator.swallow()
        with pytest.raises(ConnectionLost, match="no sign of life"):
            await open_connection.arrival()


@pytest.mark.parametrize("url", ["", "http://orchestrator", "orchestrator:8000", "ws://"])
def test_an_address_that_is_none_stops_the_process(url: str) -> None:
    with pytest.raises(SettingsInvalid, match="AGENT_EXEC_ORCHESTRATOR_WS_URL"):
        connection.check(read_settings().model_copy(update={"orchestrator_ws_url": url}))


@pytest.mark.parametrize("token", ["two words", "ends\n", "né"])
def test_a_token_that_no_header_carries_stops_the_process_unseen(token: str) -> None:
    with pytest.raises(SettingsInvalid, match="AGENT_EXEC_SERVICE_TOKEN") as invalid:
        connection.check(read_settings(service_token=token))
    assert token not in str(invalid.value)


def test_pauses_grow_to_the_cap_and_are_random_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    backoff = Backoff(cap_s=30)
    ranges = list[tuple[float, float]]()
    monkeypatch.setattr(random, "uniform", lambda low, high: ranges.append((low, high)) or high)
    assert [backoff.pause_s() for _ in range(9)] == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert all(low == 0 for low, _ in ranges)


def test_only_a_connection_of_use_makes_pauses_short_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda _, high: high)
    backoff = Backoff(cap_s=30)
    for lived_s, was_acked, pause_s in [(0, False, 0.25), (9, False, 0.5), (11, False, 0.25), (0, True, 0.25)]:
        backoff.ended(lived_s=lived_s, was_acked=was_acked)
        assert backoff.pause_s() == pause_s


def test_a_refused_token_is_tried_at_most_twice_a_minute() -> None:
    assert all(refused_pause_s() > 30 for _ in range(100))


def test_backing_off_for_ever_overflows_nothing() -> None:
    backoff = Backoff(cap_s=30)
    assert all(0 <= backoff.pause_s() <= 30 for _ in range(5_000))
