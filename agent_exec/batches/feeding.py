"""The calls of who makes executions of a batch's items: what is due, what to do, that it is done.

Owns the Python side of these scripts. Does not know how an execution runs: an item is submitted as any request is, and the
script in which its execution ends says so to the batch (`ledger/lua/finish.lua`).

`feed` says which items are next, and `fed` that they have been submitted. Between the two the feeder may die: the next one
submits the same executions, which are there once, for their ids come from the batch's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_exec import keys
from agent_exec.batches.batch import error_json
from agent_exec.batches.item import BYTES_AT_ONCE, BatchRef, Item
from agent_exec.callbacks.callbacks import KEEP_MS as KEEP_CALLBACK_MS
from agent_exec.errors import AgentExecError
from agent_exec.script import Call, Script

#: A feeder that has died is replaced after this long.
FEED_AGAIN_AFTER_MS = 5_000
#: So many items are submitted in one go, and so many batches taken up.
ITEMS_AT_ONCE = 50
BATCHES_AT_ONCE = 20

_LUA = Path(__file__).parent / "lua"
_DUE = Script.load(_LUA / "due.lua")
_FEED = Script.load(_LUA / "feed.lua")
_FED = Script.load(_LUA / "fed.lua")
_REFUSE = Script.load(_LUA / "refuse.lua")


@dataclass(frozen=True, slots=True)
class Submit:
    """Submit these items, as they are stored, the first of them with the index `start`; then say `fed`."""

    start: int
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CancelItems:
    """Cancel the executions of these items."""

    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing, until the batch is due again."""


def due() -> Call[list[BatchRef]]:
    """Take the batches that want feeding."""
    return Call(
        _DUE,
        [keys.due_batches()],
        [BATCHES_AT_ONCE, FEED_AGAIN_AFTER_MS],
        lambda reply: [BatchRef(tenant.decode(), batch.decode()) for tenant, batch in reply],
    )


def feed(ref: BatchRef, *, window: int) -> Call[Submit | CancelItems | Rest]:
    """Ask what to do for a batch, `window` being how many items of all the tenant's batches may be open at once."""

    def parse(reply: list[Any]) -> Submit | CancelItems | Rest:
        match reply:
            case [b"submit", start, *items]:
                return Submit(start, tuple(item.decode() for item in items))
            case [b"cancel", *indexes]:
                return CancelItems(tuple(indexes))
        return Rest()

    return Call(
        _FEED,
        [*ref.keys, keys.fair_share()],
        [ref.tenant_id, ref.batch_id, window, ITEMS_AT_ONCE, BYTES_AT_ONCE, FEED_AGAIN_AFTER_MS],
        parse,
    )


def fed(ref: BatchRef, submitted: Submit, *, open_keep_s: int, keep_s: int) -> Call[bool]:
    """Say that items have been submitted; False where another feeder has said so.

    The batch is forgotten when nothing of it is fed for `open_keep_s`; if all was refused, it is over and kept for `keep_s`.
    """
    end = submitted.start + len(submitted.items)
    args: list[str | int] = [ref.tenant_id, ref.batch_id, submitted.start, end]
    return Call(_FED, ref.keys, [*args, open_keep_s * 1000, keep_s * 1000, KEEP_CALLBACK_MS], bool)


def refuse(item: Item, error: AgentExecError, *, keep_s: int) -> Call[None]:
    """Say that an item will be no execution, and why; a batch that ends so is kept for `keep_s`."""
    ref = item.batch
    told = error_json(error.code, str(error), retryable=error.retryable)
    args: list[str | int] = [ref.tenant_id, ref.batch_id, item.index, told, keep_s * 1000, KEEP_CALLBACK_MS]
    return Call(_REFUSE, ref.keys, args, lambda _: None)
