"""The connections to one endpoint, shared by all who ask it: their bounds, and what they must not remember.

Owns the session beneath an SDK's client. Does not know which SDK, nor what is sent.
"""

from __future__ import annotations

import ssl
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

#: Streams of one process at once; the pool of steps is the bound, this one only must not be lower.
MAX_CONNECTIONS = 10_000
#: Tools run between two turns: a connection that lives through them saves a handshake.
KEEP_ALIVE_S = 60.0
#: A gateway's cookie may stand for the key that it came with, and the next request may be another tenant's.
NO_COOKIES = DefaultCookiePolicy(allowed_domains=[])


def open_session(base_url: str, *, tls: ssl.SSLContext) -> aiohttp.ClientSession:
    """Return a session that keeps connections, and nothing else, from one request to the next."""
    connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_ALIVE_S, ssl=tls)
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), proxy=_environment_s_proxy(base_url)
    )


def _environment_s_proxy(base_url: str) -> str | None:
    address = urlsplit(base_url)
    return None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)
