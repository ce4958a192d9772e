"""What a Redis server must be for the promise to hold, and whether it takes writes at this moment.

Owns the demands, and what is said and done about a server that does not meet them. Does not know what is stored.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from redis.exceptions import RedisError

from agent_exec import address
from agent_exec.embedded import redis_url
from agent_exec.exposure import is_elsewhere
from agent_exec.script import Call, Script
from agent_exec.settings import Settings
from agent_exec.store import CONNECTION, Store

log = logging.getLogger(__name__)

#: What the scripts need: their flags (`#!lua`) came with 7.0.
OLDEST = (7, 0)
OPEN = (
    "This Redis is on another machine and asks nobody for a password: whoever reaches it reads and changes every tenant's "
    "work. Turn its default user off (docs/redis-users.acl), or set requirepass."
)

_INFO = Script.load(Path(__file__).parent / "lua" / "info.lua")
_WRITABLE = Script.load(Path(__file__).parent / "lua" / "writable.lua")


def info() -> Call[dict[str, str]]:
    """Read what the server says of itself."""

    def parse(reply: bytes) -> dict[str, str]:
        lines = [line.partition(":") for line in reply.decode(errors="replace").splitlines()]
        return {name: value.strip() for name, colon, value in lines if colon}

    return Call(_INFO, [], [], parse)


def writable() -> Call[None]:
    """Find out whether the server takes writes now; it is not written to.

    Raises:
        StorageFull: (when run) it is full, read-only, or cannot write to its disk.
    """
    return Call(_WRITABLE, [], [], lambda reply: None)


async def inspect(store: Store, settings: Settings) -> None:
    """Wait for the server, then log once for each demand that it does not meet.

    One on another machine that lets in everybody ends this process, in good order, unless this is the sandbox.
    """
    said = await store.insist(info())
    for complaint in complaints(said):
        log.warning("%s", complaint)
    if settings.redis_url is None or not is_elsewhere(settings.redis_url):
        return
    if not await lets_anybody_in(redis_url(settings)):
        return
    if settings.environment == "sandbox":
        log.warning("%s", OPEN)
    else:
        log.critical("%s This process ends.", OPEN)
        os.kill(os.getpid(), signal.SIGTERM)


async def lets_anybody_in(url: str) -> bool:
    """Find out whether the server at `url` answers one who shows no password. One that is away does not."""
    stranger = address.async_client(address.without_login(url), retries=0, single_connection=True, **CONNECTION)
    try:
        return bool(await stranger.ping())
    except (RedisError, OSError):  # NOAUTH, or protected mode
        return False
    finally:
        await stranger.aclose()


def complaints(said: Mapping[str, str]) -> Iterator[str]:
    """Say what is wrong with a server, and what to do, by what it says of itself (`INFO`)."""
    version = said.get("redis_version", "0")  # Valkey gives the Redis that it is compatible with
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        yield f"Redis {version} is too old: {'.'.join(map(str, OLDEST))} is the oldest that will do. Scripts will fail."
    if said.get("role") == "slave":
        yield (
            "This Redis is a replica, and takes no writes: point AGENT_EXEC_REDIS_URL at the primary, or at the sentinels "
            "(sentinel://host1:26379;sentinel://host2:26379)."
        )
    if said.get("cluster_enabled") == "1":
        yield "This Redis is a node of a cluster, where scripts fail: point AGENT_EXEC_REDIS_URL at a single primary."
    policy = said.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield (
            f"This Redis throws keys away when it is full ({policy}), and executions with them: set maxmemory-policy "
            "noeviction."
        )
    if said.get("aof_enabled") == "0":
        yield "This Redis keeps no log, and a restart loses what was accepted: set appendonly yes."
