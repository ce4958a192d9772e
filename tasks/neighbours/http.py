"""One HTTP connection to one neighbour: JSON in, JSON out, bounded in time and size.

Owns the service token, the time-out, the cap on an answer and the translation of transport errors. Follows no redirect
and reads no proxy from the environment. Does not know any neighbour's paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp

from agent_exec.errors import NeighbourRefused, NeighbourUnavailable

#: What of an answer is read; a tool that says more has to be asked for less.
MAX_ANSWER_BYTES = 2_000_000
#: Below what servers keep an idle connection for (uvicorn 5 s): a request that meets the end of one is lost, and a tool with
#: an effect would be in doubt for it.
KEEP_ALIVE_S = 2.0
#: To find the address, connect and agree on a key. What was not sent within this can be sent again, whatever it does.
CONNECT_TIMEOUT_S = 5.0
#: A server that asks for a longer pause is treated as one that names none.
MAX_RETRY_AFTER_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer whose body is still text."""

    status: int
    body: bytes
    etag: str | None
    retry_after_s: float | None


class Neighbour:
    """A neighbour's address and the connections to it; made inside of the running loop."""

    def __init__(self, name: str, url: str, *, token: Callable[[], str], timeout_s: float) -> None:
        """Take the neighbour's `name` for errors, its base `url`, and what gives our token for it, which may change."""
        self.name = name
        self._url = url.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s
        self._session = aiohttp.ClientSession(
            # Unlimited: what waits here for a connection holds one of the worker's slots, and these are bounded.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),  # a cookie would carry one tenant's session into another's request
            trust_env=False,
        )

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Send one request; return any answer below 500.

        Raises:
            NeighbourUnavailable: no connection, no answer in time, 429 or a 5xx. A later try may do.
            NeighbourRefused: a redirect, or an answer larger than `MAX_ANSWER_BYTES`.
        """
        sent = dict(headers or {})
        if token := self._token():
            sent["Authorization"] = f"Bearer {token}"
        if body is not None:
            sent["Content-Type"] = "application/json"
        timeout = aiohttp.ClientTimeout(
            total=self._timeout_s if timeout_s is None else timeout_s, connect=CONNECT_TIMEOUT_S
        )
        try:
            async with self._session.request(
                method, self._url + path, data=body, headers=sent, allow_redirects=False, timeout=timeout
            ) as response:
                if response.status == 429 or response.status >= 500:
                    raise NeighbourUnavailable(
                        f"{self.name} answered {response.status} to {method} {path}; it is asked again later.",
                        neighbour=self.name,
                        retry_after_s=retry_after_s(response.headers.get("Retry-After")),
                        unheard=response.status == 429,
                    )
                if 300 <= response.status < 400 and response.status != 304:
                    raise NeighbourRefused(
                        f"{self.name} redirects {method} {path}, which is never followed; set its address to where it "
                        "really is.",
                        neighbour=self.name,
                    )
                return Answer(
                    response.status,
                    await self._read(response),
                    etag=response.headers.get("ETag"),
                    retry_after_s=retry_after_s(response.headers.get("Retry-After")),
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise self._unreachable(error, unheard=True) from error
        except TimeoutError as error:
            raise NeighbourUnavailable(
                f"{self.name} did not answer {method} {path} in time.", neighbour=self.name
            ) from error
        except aiohttp.ClientError as error:
            raise self._unreachable(error, unheard=False) from error

    def _unreachable(self, error: Exception, *, unheard: bool) -> NeighbourUnavailable:
        return NeighbourUnavailable(
            f"{self.name} cannot be reached at {self._url} ({type(error).__name__}); check its address and that it runs.",
            neighbour=self.name,
            unheard=unheard,
        )

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        parts, size = [], 0
        async for part in response.content.iter_any():
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise NeighbourRefused(
                    f"{self.name} answered with more than {MAX_ANSWER_BYTES} bytes.", neighbour=self.name
                )
            parts.append(part)
        return b"".join(parts)

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


def retry_after_s(header: str | None) -> float | None:
    """Return the pause that an answer asks for in seconds, or None where it names none that is waited for."""
    if header is None or not header.isdecimal():
        return None
    seconds = float(header)
    return seconds if seconds <= MAX_RETRY_AFTER_S else None
