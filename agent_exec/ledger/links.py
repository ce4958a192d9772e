"""The ledger's call about links that were not sent: those of executions whose worker died between the end and the sending.

Owns how soon they are looked for. They are stored by `accept` and become due by `finish`; who sends them takes them away.
"""

from __future__ import annotations

from pathlib import Path

from agent_exec import keys
from agent_exec.script import Call, Script

#: Who ends an execution sends its links in the same moment.
LOST_LINKS_AFTER_MS = 2_000
#: And who takes them up because that one died may die too.
LINKS_AGAIN_AFTER_MS = 5_000
#: How many are taken up at once.
LINKS_AT_ONCE = 50

_DUE_LINKS = Script.load(Path(__file__).parent / "lua" / "due_links.lua")


def due_links() -> Call[list[tuple[str, str]]]:
    """Take ended executions whose links are still to be sent: each one's tenant and id."""

    def parse(reply: list[bytes]) -> list[tuple[str, str]]:
        return [(tenant, execution) for tenant, execution in (entry.decode().split(" ") for entry in reply)]

    return Call(_DUE_LINKS, [keys.unsent_links()], [LINKS_AT_ONCE, LINKS_AGAIN_AFTER_MS], parse)
