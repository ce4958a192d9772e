"""What a call of a model may cost is reserved before it is made, and settled by what it did cost.

Owns the calls that change what is spent. Does not know prices, nor which step calls; where the limit comes from is the
execution's snapshot.

What is promised: money spent and reserved on a day is never more than the limit, but for three things. A call that cost more
than was reserved for it counts in full. A call whose price is unknown counts with its tokens and no money, and is never
refused; nor is one that is free. A reservation whose holder died is dropped when its time is over, and not charged: nobody
knows what the call came to, and our crashes must not use up a tenant's budget. What was dropped stays to be seen (`lapsed`).

A call counts on the day, UTC by Redis's clock, on which it was reserved. Money is kept in whole micro-dollars, each call's
rounded up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_exec import keys
from agent_exec.contract.completion import Usage
from agent_exec.errors import BudgetExceeded
from agent_exec.ledger.ledger import Hold
from agent_exec.script import Call, Script

_LUA = Path(__file__).parent / "lua"
_RESERVE = Script.load(_LUA / "reserve.lua")
_NOTE_LIMIT = Script.load(_LUA / "note_limit.lua")
_SETTLE = Script.load(_LUA / "settle.lua")

#: A month that has ended can still be billed for some days.
KEPT_DAYS = 35
#: As long as the scripts remember one.
MAX_HOLD_S = 86_400.0
MICROS = 1_000_000
#: A thousand million dollars: no call costs more, no limit is higher, and Lua still counts such numbers one by one.
MAX_USD_MICROS = 10**15


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of something that is paid for. Of the tries of one name, the number of a later one is higher.

    An attempt may pay for several calls, one after the other: each is reserved, then settled or refunded.
    """

    tenant_id: str
    name: str
    number: int

    @classmethod
    def of_step(cls, hold: Hold) -> Attempt:
        """Return the attempt at a step that `hold` stands for."""
        return cls(hold.ref.tenant_id, f"{hold.ref.execution_id}.{hold.ref.step}", hold.fence)


@dataclass(frozen=True, slots=True)
class Reserved:
    """The call may be made."""


@dataclass(frozen=True, slots=True)
class OverBudget:
    """The call must not be made; nothing is reserved. All of it is of today."""

    spent_usd_micros: int
    reserved_usd_micros: int
    wanted_usd_micros: int
    limit_usd_micros: int
    resets_in_s: float

    @property
    def may_fit_later(self) -> bool:
        """Whether only calls under way are in the way, which may come to less than is reserved for them."""
        return self.spent_usd_micros + self.wanted_usd_micros <= self.limit_usd_micros

    def error(self, tenant_id: str) -> BudgetExceeded:
        """Return it as the end of an execution."""
        return BudgetExceeded(
            f"Tenant '{tenant_id}': its budget of {_dollars(self.limit_usd_micros)} a day has no room for this call: "
            f"{_dollars(self.spent_usd_micros)} spent, {_dollars(self.reserved_usd_micros)} kept for calls under way, and "
            f"this one may cost {_dollars(self.wanted_usd_micros)}. The next day begins in {self.resets_in_s / 3600:.1f} h; "
            "or raise budget.usd_per_day in Agent Management."
        )


def reserve(
    attempt: Attempt, *, usd: float | None, tokens: int, limit_usd_per_day: float | None, holds_s: float
) -> Call[Reserved | OverBudget]:
    """Reserve what a call may cost at most: `usd`, None where its price is unknown, and `tokens` of prompt and answer.

    `limit_usd_per_day` is the execution's snapshot's; without one, what workers last noted of the tenant counts: a message
    that brings its whole configuration knows no budget, and must not pass it by.

    The reservation lapses after `holds_s`, which has to be longer than the call may take; those of earlier attempts of this
    name lapse at once, so that a step whose worker died does not stand in its own way.
    """
    wanted = "" if usd is None else usd_micros(usd)

    def parse(reply: list[Any]) -> Reserved | OverBudget:
        if reply[0] == b"reserved":
            return Reserved()
        _, spent, reserved, limit, left_ms = reply
        return OverBudget(spent, reserved, int(wanted), limit, left_ms / 1000)

    holds_ms = round(min(holds_s, MAX_HOLD_S) * 1000)
    return Call(
        _RESERVE,
        [*spending_keys(attempt.tenant_id), keys.spending_limit(attempt.tenant_id)],
        [KEPT_DAYS, attempt.name, attempt.number, tokens, wanted, _limit(limit_usd_per_day), holds_ms],
        parse,
    )


def note_limit(tenant_id: str, usd_per_day: float | None) -> Call[None]:
    """Note a tenant's budget, as Agent Management has just told it, for calls that do not know it."""
    args = [_limit(usd_per_day), KEPT_DAYS * 86_400]
    return Call(_NOTE_LIMIT, [keys.spending_limit(tenant_id)], args, lambda reply: None)


def settle(attempt: Attempt, usage: Usage, *, waste: bool = False) -> Call[bool]:
    """Count what an attempt's call came to, in the place of its reservation; return whether it counted.

    It counts once, however often it is called, and only where something was reserved: False says that it had been settled
    or refunded before. A lapsed reservation can be settled for a day: by its holder, where that is alive after all, or by
    whoever learns what the call came to. `waste`: what came of it is not used, for it is repeated, cancelled or superseded.
    """
    micros = 0 if usage.cost_usd is None else usd_micros(usage.cost_usd)
    used = {
        "calls": 1,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "usd_micros": micros,
    }
    counts = {f"{part}_{name}": by for part in (["used", "waste"] if waste else ["used"]) for name, by in used.items()}
    if usage.cost_usd is None:
        counts["unpriced_calls"] = 1
    flat = [one for pair in counts.items() for one in pair]
    return Call(_SETTLE, spending_keys(attempt.tenant_id), [attempt.name, attempt.number, *flat], _is_settled)


def refund(attempt: Attempt) -> Call[bool]:
    """Give back what an attempt reserved for a call that was not made; return whether there was something."""
    return Call(_SETTLE, spending_keys(attempt.tenant_id), [attempt.name, attempt.number], _is_settled)


def usd_micros(usd: float) -> int:
    """Return dollars as whole micro-dollars, rounded up; no more than `MAX_USD_MICROS`."""
    return math.ceil(min(round(usd * MICROS, 3), MAX_USD_MICROS))


def spending_keys(tenant_id: str) -> list[str]:
    """Return the three keys that `lua/_spending.lua` takes."""
    return [keys.spending_open(tenant_id), keys.spending_looks(tenant_id), keys.spending_day_prefix(tenant_id)]


def _is_settled(reply: bytes) -> bool:
    return reply == b"settled"


def _limit(usd_per_day: float | None) -> str | int:
    return "" if usd_per_day is None else usd_micros(usd_per_day)


def _dollars(micros: int) -> str:
    return f"${micros / MICROS:.6f}".rstrip("0").rstrip(".")
