"""What a tenant has spent, read.

Owns the meaning of the counts of a day (`lua/_spending.lua`). Changes nothing but that it lets lapse what has to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from agent_exec.contract.spending import DaySpending, Foreseen, Spending, TenantUsage, Used
from agent_exec.script import Call, Script
from agent_exec.spending.reservation import KEPT_DAYS, MICROS, spending_keys

_USAGE = Script.load(Path(__file__).parent / "lua" / "usage.lua")

#: Days are numbered from it.
EPOCH = date(1970, 1, 1)


def usage(
    tenant_id: str, *, first: date | None = None, last: date | None = None, days: int = KEPT_DAYS
) -> Call[TenantUsage]:
    """Read what a tenant has spent from `first` to `last`, both included; of these, the last `days` at most.

    Without `last`, up to today by Redis's clock. A tenant that nobody knows has spent nothing.
    """

    def parse(reply: list[Any]) -> TenantUsage:
        first_number, last_number, *found = reply
        read = [_day(number, dict(zip(flat[::2], flat[1::2], strict=True))) for number, *flat in found]
        return TenantUsage(
            tenant_id=tenant_id,
            first_day=_date(first_number),
            last_day=_date(last_number),
            days=read,
            total=_total(read),
        )

    bounds = ["" if day is None else (day - EPOCH).days for day in (first, last)]
    return Call(_USAGE, spending_keys(tenant_id), [*bounds, days], parse)


def _date(number: int) -> date:
    return EPOCH + timedelta(days=number)


def _day(number: int, counts: Mapping[bytes, bytes]) -> DaySpending:
    named = {name.decode(): text.decode() for name, text in counts.items()}
    limit = named.pop("limit_usd_micros", "")
    ours = {name: int(text) for name, text in named.items()}
    return DaySpending(
        day=_date(number),
        used=_used("used", ours),
        waste=_used("waste", ours),
        unpriced_calls=ours.get("unpriced_calls", 0),
        reserved=_foreseen("reserved", ours),
        lapsed=_foreseen("lapsed", ours),
        limit_usd=int(limit) / MICROS if limit else None,
    )


def _used(part: str, counts: Mapping[str, int]) -> Used:
    return Used(
        calls=counts.get(f"{part}_calls", 0),
        prompt_tokens=counts.get(f"{part}_prompt_tokens", 0),
        completion_tokens=counts.get(f"{part}_completion_tokens", 0),
        cost_usd=counts.get(f"{part}_usd_micros", 0) / MICROS,
    )


def _foreseen(part: str, counts: Mapping[str, int]) -> Foreseen:
    return Foreseen(
        calls=counts.get(f"{part}_calls", 0),
        tokens=counts.get(f"{part}_tokens", 0),
        cost_usd=counts.get(f"{part}_usd_micros", 0) / MICROS,
    )


def _total(days: Iterable[Spending]) -> Spending:
    total = Spending()
    for day in days:
        total = total.plus(day)
    return total
