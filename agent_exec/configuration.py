"""Since when what is cached of a tenant's configuration is void.

Owns the mark that a change leaves, and its reading. Does not know the caches: an entry is kept with the edition that was
read before it was fetched, and is used no more once another is read. Where a mark is lost, an entry lives its whole time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent_exec import keys
from agent_exec.script import Call, Script

_LUA = Path(__file__).parent / "lua"
_INVALIDATE = Script.load(_LUA / "invalidate.lua")
_EDITION = Script.load(_LUA / "edition.lua")

#: As long as a cache may keep an entry at most: `AGENT_EXEC_CONFIG_TTL_S` has the same bound.
KEEP_S = 86_400


@dataclass(frozen=True, slots=True)
class Edition:
    """Names what is current; of use only to be compared."""

    tenant: str = ""
    agent: str = ""


#: What a cache is asked for where nobody has looked which is current.
FIRST = Edition()


def invalidate(tenant_id: str, agent_id: str | None = None) -> Call[None]:
    """Void what is cached of an agent's configuration and tools; without `agent_id`, of the tenant and all its agents."""
    return Call(_INVALIDATE, [keys.configuration(tenant_id)], [agent_id or "*", KEEP_S], lambda reply: None)


def edition(tenant_id: str, agent_id: str) -> Call[Edition]:
    """Read which edition of an agent's and its tenant's configuration is current."""

    def parse(reply: list[bytes]) -> Edition:
        whole, own = (mark.decode() for mark in reply)
        return Edition(tenant=whole, agent=f"{whole} {own}")

    return Call(_EDITION, [keys.configuration(tenant_id)], [agent_id], parse)
