"""An address of Redis, and what connects by it: our clients, and Celery's broker.

Owns the schemes: `redis://`, `rediss://` and `unix://` as redis-py reads them, `sentinel://` as kombu does, for both alike.
Does not know what is sent.

    sentinel://user:password@host1:26379/0;sentinel://host2:26379;sentinel://host3:26379

The user, password and database are the server's, and stand in any one of the parts. The name that the sentinels have for
the primary, and their own password, come from settings; `complete` writes them into the address, so that one text is all
that a process hands on.
"""

# redis-py's sentinels are not typed:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from agent_exec.errors import SettingsInvalid

SENTINEL_PORT = 26_379
#: What Celery's broker gives a sentinel to answer; it needs a millisecond.
SENTINEL_TIMEOUT_S = 1.0
#: What says that a connection was lost. uvloop says so by a RuntimeError, which redis-py would let pass.
LOST: tuple[type[Exception], ...] = (RedisConnectionError, RedisTimeoutError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Broker:
    """Celery's names for an address."""

    broker_url: str
    transport_options: dict[str, Any] = field(default_factory=dict)
    use_ssl: dict[str, Any] | None = None


class Undisclosed(Mapping[str, Any]):
    """Options of Celery's transport that its worker does not tell about itself, in `inspect stats` and Flower: they hold a
    password, and what JSON cannot say.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Take the options."""
        self._options = dict(options)

    def __getitem__(self, name: str) -> Any:
        """Return one of them."""
        return self._options[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over their names."""
        return iter(self._options)

    def __len__(self) -> int:
        """Count them."""
        return len(self._options)

    def __repr__(self) -> str:
        """Tell names alone."""
        return f"Undisclosed({', '.join(self)})"

    def __json__(self) -> list[str]:
        """Tell names alone; kombu calls this."""
        return list(self)


@dataclass(frozen=True, slots=True)
class Sentinels:
    """A primary that sentinels know: they are asked for its address whenever a connection is made."""

    hosts: tuple[tuple[str, int], ...]
    master_name: str
    sentinel_password: str | None
    username: str | None
    password: str | None
    database: int

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read an address that `complete` has completed.

        Raises:
            ValueError: it is none.
        """
        parts = [urlsplit(part) for part in url.split(";")]
        if any(part.scheme != "sentinel" or not part.hostname for part in parts):
            raise ValueError("each part between the semicolons reads sentinel://host:port")
        query = parse_qs(parts[-1].query)
        login = next((part for part in parts if part.password), parts[0])
        database = next((part.path.strip("/") for part in parts if part.path.strip("/")), "0")
        return cls(
            hosts=tuple((str(part.hostname), part.port or SENTINEL_PORT) for part in parts),
            master_name=query["master_name"][0],
            sentinel_password=query.get("sentinel_password", [None])[0],
            username=unquote(login.username) if login.username else None,
            password=unquote(login.password) if login.password else None,
            database=int(database),
        )

    def connection(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return what a connection to the primary is opened with."""
        return {"username": self.username, "password": self.password, "db": self.database, **options}

    def sentinel_connection(self, options: dict[str, Any], retry: Any) -> dict[str, Any]:
        """Return what a connection to a sentinel is opened with; one that is away is passed over at once."""
        timeouts = {name: value for name, value in options.items() if name.startswith("socket_")}
        return {"password": self.sentinel_password, "retry": retry, **timeouts}

    def broker(self) -> Broker:
        """Return Celery's names for it: kombu takes user, password and database from each part by itself."""
        login = f"{quote(self.username or '')}:{quote(self.password)}@" if self.password else ""
        url = ";".join(f"sentinel://{login}{_bracketed(host)}:{port}/{self.database}" for host, port in self.hosts)
        timeouts = {"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S}
        sentinel = self.sentinel_connection(timeouts, Retry(NoBackoff(), 0))
        return Broker(url, {"master_name": self.master_name, "sentinel_kwargs": Undisclosed(sentinel)})


def complete(url: str, *, master_name: str, sentinel_password: str) -> str:
    """Return an address with all that is needed to connect; one without sentinels is complete as it is.

    Raises:
        SettingsInvalid: the sentinels' addresses do not do.
    """
    if not url.startswith("sentinel://"):
        return url
    more = {"master_name": master_name} | ({"sentinel_password": sentinel_password} if sentinel_password else {})
    whole = f"{url}{'&' if '?' in url.rpartition(';')[2] else '?'}{urlencode(more)}"
    try:
        Sentinels.parse(whole)
    except ValueError as error:
        raise SettingsInvalid(
            f"AGENT_EXEC_REDIS_URL: {error}, as in sentinel://:password@host1:26379/0;sentinel://host2:26379."
        ) from None
    return whole


def without_login(url: str) -> str:
    """Return an address as one would write it who has no user and no password."""
    parts = [urlsplit(part) for part in url.split(";")]
    return ";".join(part._replace(netloc=part.netloc.rpartition("@")[2]).geturl() for part in parts)


def blocking_client(url: str, *, retries: int, **options: Any) -> redis.Redis:
    """Return a client for synchronous callers; `retries` counts a lost connection's, `options` are redis-py's.

    Raises:
        ValueError: it is no address of a Redis.
    """
    retry = Retry(NoBackoff(), retries)
    if not url.startswith("sentinel://"):
        return redis.Redis.from_url(url, retry=retry, **_fitting(url, options))
    found = Sentinels.parse(url)
    manager = redis.sentinel.Sentinel(
        found.hosts, sentinel_kwargs=found.sentinel_connection(options, Retry(NoBackoff(), 0))
    )
    pool = _Pool(found.master_name, manager, retry=retry, connection_class=_Connection, **found.connection(options))
    return redis.Redis.from_pool(pool)


def async_client(url: str, *, retries: int, single_connection: bool = False, **options: Any) -> redis.asyncio.Redis:
    """Return a client for coroutines, of many connections or of a single one.

    Raises:
        ValueError: it is no address of a Redis.
    """
    retry = AsyncRetry(NoBackoff(), retries, supported_errors=LOST)  # type: ignore[arg-type]  # any exception will do
    if not url.startswith("sentinel://"):
        return redis.asyncio.Redis.from_url(
            url, retry=retry, single_connection_client=single_connection, **_fitting(url, options)
        )
    found = Sentinels.parse(url)
    manager = redis.asyncio.sentinel.Sentinel(
        found.hosts, sentinel_kwargs=found.sentinel_connection(options, AsyncRetry(NoBackoff(), 0))
    )
    pool = _AsyncPool(
        found.master_name, manager, retry=retry, connection_class=_AsyncConnection, **found.connection(options)
    )
    client = redis.asyncio.Redis(connection_pool=pool, single_connection_client=single_connection)
    client.auto_close_connection_pool = True
    return client


def broker(url: str) -> Broker:
    """Return Celery's names for an address."""
    match urlsplit(url).scheme:
        case "sentinel":
            return Sentinels.parse(url).broker()
        case "rediss":
            # Left to itself, kombu verifies no certificate.
            return Broker(url, use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED})
        case "unix":
            parts = urlsplit(url)
            login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
            return Broker(
                f"redis+socket://{login}{parts.path}?virtual_host={parse_qs(parts.query).get('db', ['0'])[0]}"
            )
        case _:
            return Broker(url)


# A connection that was cut connects anew by itself, in redis-py to the address that it had: to a primary of yesterday.


class _Connection(redis.sentinel.SentinelManagedConnection):
    """A connection that asks the sentinels before it connects again."""

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self._sock:
            self.connect()
        super().send_packed_command(command, check_health)


class _AsyncConnection(redis.asyncio.sentinel.SentinelManagedConnection):
    """A connection that asks the sentinels before it connects again."""

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect()
        await super().send_packed_command(command, check_health)


class _Pool(redis.sentinel.SentinelConnectionPool):
    """A pool that closes its connections to the sentinels too."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:  # else the primary has another address, and the sentinels are being asked
            for sentinel in self.sentinel_manager.sentinels:
                sentinel.close()


class _AsyncPool(redis.asyncio.sentinel.SentinelConnectionPool):
    """A pool that closes its connections to the sentinels too."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


def _fitting(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a connection to a Unix socket does not take."""
    of_tcp = ("socket_keepalive",) if url.startswith("unix://") else ()
    return {name: value for name, value in options.items() if name not in of_tcp}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
