"""One WebSocket to the orchestrator: opened with our token, watched while it lives, and when to open the next one.

Owns the socket and the pauses between two of them. Does not know what is sent, nor what is heard.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as Opening
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    InvalidURI,
    ProtocolError,
    WebSocketException,
)
from websockets.uri import parse_uri

from agent_exec.errors import SettingsInvalid
from agent_exec.service_token import ServiceToken
from agent_exec.settings import Settings

OPEN_TIMEOUT_S = 10.0
#: A closing handshake that takes longer is with a peer that is gone.
CLOSE_TIMEOUT_S = 1.0
#: An idle connection is probed this often, and one that then shows no sign of life for so long is dead: a connection that
#: a proxy has swallowed is replaced within 40 s (faults F45), a pause before the next one included.
PROBE_AFTER_S = 15.0
SILENCE_S = 20.0
#: The orchestrator says little: acks and commands.
MAX_MESSAGE_BYTES = 1_000_000

#: The first pause is up to this long; each later one up to twice the one before.
FIRST_PAUSE_S = 0.25
#: A connection that lived this long was a good one, so the next pause is short again.
GOOD_AFTER_S = 10.0
#: At most two connects a minute with a token that is refused (faults F50).
REFUSED_PAUSE_S = (31.0, 40.0)

_REFUSED_STATUS = {401, 403}
_REFUSED_CLOSE = {4401, 4403}


class ConnectionLost(Exception):
    """No connection, or no longer; `str()` says why."""


class CredentialRefused(ConnectionLost):
    """The orchestrator does not accept our token."""


class Connection:
    """One open WebSocket."""

    def __init__(self, websocket: ClientConnection) -> None:
        """Take it, open."""
        self._websocket = websocket
        self._silence: asyncio.Timeout | None = None

    async def send(self, frame: str) -> None:
        """Send a frame; waits while the orchestrator reads slower than we write.

        Raises:
            ConnectionLost: it may or may not have arrived.
        """
        try:
            await self._websocket.send(frame)
        except ConnectionClosed as error:
            raise lost(error) from None

    async def arrival(self) -> None:
        """Return when everything sent so far has reached the orchestrator's socket: a ping, and its pong.

        Raises:
            ConnectionLost: no sign of life for `SILENCE_S`, or closed.
        """
        try:
            async with asyncio.timeout(SILENCE_S) as self._silence:
                await (await self._websocket.ping())
        except TimeoutError:
            raise ConnectionLost(f"no sign of life for {SILENCE_S:.0f} s") from None
        except ConnectionClosed as error:
            raise lost(error) from None
        finally:
            self._silence = None

    async def messages(self) -> AsyncIterator[str | bytes]:
        """Return what the orchestrator says, message by message, until the connection is lost.

        Raises:
            ConnectionLost: always, in the end.
        """
        while True:
            try:
                message = await self._websocket.recv()
            except ConnectionClosed as error:
                raise lost(error) from None
            if self._silence is not None and not self._silence.expired():
                self._silence.reschedule(asyncio.get_running_loop().time() + SILENCE_S)
            yield message


@asynccontextmanager
async def connect(url: str, *, token: str) -> AsyncIterator[Connection]:
    """Open the WebSocket with our `token`, none if empty; it is closed at the end of the `async with`.

    Raises:
        CredentialRefused: 401 or 403.
        ConnectionLost: any other reason why there is no connection.
    """
    opening = _Opening(
        url,
        additional_headers={"Authorization": f"Bearer {token}"} if token else {},
        compression=None,  # costs CPU and 64 kB a connection, and gains nothing on frames of 300 bytes
        open_timeout=OPEN_TIMEOUT_S,
        close_timeout=CLOSE_TIMEOUT_S,
        ping_interval=None,  # `arrival` is the keepalive; the library's waits for ever behind a full socket
        max_size=MAX_MESSAGE_BYTES,
        proxy=None,
    )
    try:
        websocket = await opening
    except InvalidStatus as error:
        status = error.response.status_code
        kind = CredentialRefused if status in _REFUSED_STATUS else ConnectionLost
        raise kind(f"the orchestrator answered {status}") from None
    except (OSError, TimeoutError, InvalidHandshake, ProtocolError, WebSocketException) as error:
        raise ConnectionLost(f"{type(error).__name__}: {error}") from None
    try:
        yield Connection(websocket)
    finally:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await websocket.close()
        except TimeoutError:  # behind a full socket `close` waits for ever, before its own time-out begins
            pass
        finally:
            websocket.transport.abort()


class _Opening(Opening):
    """A handshake that follows no redirect: it would carry our token to whomever it names."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def lost(error: ConnectionClosed) -> ConnectionLost:
    """Return what a closed connection means."""
    code = error.rcvd.code if error.rcvd is not None else None
    if code in _REFUSED_CLOSE:
        return CredentialRefused(f"the orchestrator closed with {code}")
    return ConnectionLost(f"the orchestrator closed with {code}" if code is not None else f"broken: {error}")


def check(settings: Settings) -> None:
    """Check what a connection needs of the settings, before anything starts.

    Raises:
        SettingsInvalid: no WebSocket can be opened with them.
    """
    try:
        parse_uri(settings.orchestrator_ws_url)
    except InvalidURI as error:
        raise SettingsInvalid(f"AGENT_EXEC_ORCHESTRATOR_WS_URL: {error.msg}. Give a ws:// or wss:// address.") from None
    ServiceToken(settings).check()


@dataclass(slots=True)
class Backoff:
    """How long to wait before connecting again: full jitter under a ceiling that doubles up to `cap_s`.

    The ceiling falls back only after a connection that was of use: an orchestrator that accepts and then closes is
    backed off from like one that is down.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    cap_s: float
    _failures: int = 0

    def ended(self, *, lived_s: float, was_acked: bool) -> None:
        """Note how a connection went."""
        if was_acked or lived_s > GOOD_AFTER_S:
            self._failures = 0

    def pause_s(self) -> float:
        """Return how long to wait now."""
        ceiling_s = min(self.cap_s, FIRST_PAUSE_S * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return random.uniform(0, ceiling_s)


def refused_pause_s() -> float:
    """Return how long to wait before a token that was refused is shown again: that will hardly help."""
    return random.uniform(*REFUSED_PAUSE_S)
