"""HTTP to addresses that strangers name: one POST each, to an address that was checked, and of its answer the status alone.

Owns resolving, connecting and the time that all of it may take. A name is resolved once; every address that it has must be
allowed, and one of these is connected to, under the name's own TLS. No redirect is followed, no proxy of the environment
used, no cookie kept, no connection used twice, and an answer's body is not read. Does not know callbacks.

Past this process a network policy or a filtering proxy should say the same (docs/security.md): an address of ours behind
a NAT cannot be known for one here.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from ssl import SSLContext
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from agent_exec.callbacks.destination import Address, Rules
from agent_exec.contract.callback import CallbackFault
from agent_exec.errors import CallbackUrlInvalid

#: To resolve the name, connect, and agree on a key.
CONNECT_TIMEOUT_S = 5.0
#: To the end of the answer's head, however slowly it drips.
TOTAL_TIMEOUT_S = 30.0
#: UDP's "discard": nothing is ever sent there.
_ANY_PORT = 9


@dataclass(frozen=True, slots=True)
class Answered:
    """The receiver's answer, and the pause that it asks for."""

    status: int
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """There was no answer; `why` is for the log alone."""

    fault: CallbackFault
    why: str


#: Return the addresses of a name, as text. It may block.
Lookup = Callable[[str], Sequence[str]]


def system_lookup(host: str) -> Sequence[str]:
    """Ask the system's resolver."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class Egress:
    """The connections to strangers; made inside of the running loop."""

    def __init__(self, rules: Rules, *, lookup: Lookup = system_lookup, tls: SSLContext | None = None) -> None:
        """Take what is allowed; tests bring names and authorities of their own."""
        self._rules = rules
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_CheckedResolver(self._check, lookup),
                use_dns_cache=False,  # resolved once for each request, and checked then
                force_close=True,
                limit=0,  # bounded by who sends
                ssl=tls or True,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=TOTAL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,
            auto_decompress=False,
        )

    async def post(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> Answered | Failed:
        """Send one request. Nothing that a stranger does raises."""
        try:
            destination = self._rules.destination(url)
            if destination.address is not None:
                self._check([destination.address], destination.port)
            async with self._session.post(
                URL(url, encoded=True), data=body, headers=headers, allow_redirects=False
            ) as response:
                return Answered(response.status, _retry_after_s(response.headers.get("Retry-After")))
        except CallbackUrlInvalid as error:
            return Failed("forbidden", str(error))
        except TimeoutError as error:
            return Failed("timed_out", type(error).__name__)
        except aiohttp.ClientSSLError as error:
            return Failed("untrusted", type(error).__name__)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a header that HTTP does not know
            return Failed("unreachable", type(error).__name__)

    def _check(self, addresses: Iterable[Address], port: int) -> None:
        found = list(addresses)
        self._rules.admit(found, port=port)
        outside = [one for one in found if not any(one in network for network in self._rules.allowed_networks)]
        if any(map(is_ours, outside)):
            raise CallbackUrlInvalid("A callback may not go to this machine.")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.aclose()


class _CheckedResolver(AbstractResolver):
    """Names to addresses, all of which have passed."""

    def __init__(self, check: Callable[[Iterable[Address], int], None], lookup: Lookup) -> None:
        self._check = check
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = [ip_address(text) for text in await _in_a_thread(self._lookup, host)]
        if not found:
            raise OSError("no address")
        self._check(found, port)
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in found
        ]

    async def close(self) -> None:
        pass


def is_ours(address: Address) -> bool:
    """Say whether an address is this machine's: it is, if packets to it would leave from it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), _ANY_PORT))
        except OSError:  # no way there
            return False
        return ip_address(probe.getsockname()[0]) == address


async def _in_a_thread(lookup: Lookup, host: str) -> Sequence[str]:
    """Run a lookup in a thread of its own.

    A name server that does not answer holds one up for half a minute, and nothing can cut that off: in a pool it would
    hold up the names of others, and at the end the process.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Sequence[str]] = loop.create_future()

    def settle(addresses: Sequence[str], error: Exception | None) -> None:
        if found.done():  # nobody waits any more
            return
        if error is None:
            found.set_result(addresses)
        else:
            found.set_exception(error)

    def work() -> None:
        addresses: Sequence[str] = ()
        failure: Exception | None = None
        try:
            addresses = lookup(host)
        except (OSError, ValueError) as error:  # ValueError: no name at all, by IDNA
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, addresses, failure)

    threading.Thread(target=work, name="lookup", daemon=True).start()
    return await found


def _retry_after_s(header: str | None) -> float | None:
    """Return the pause that an answer asks for, in seconds or until a date; None where it asks for none that can be read."""
    if header is None:
        return None
    if header.isascii() and header.isdecimal():
        return float(header[:10])
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):  # TypeError: a date without a zone
        return None
