"""What a tenant has spent, as those who run it, and the services beside us, are told."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from pydantic import Field

from agent_exec.contract.model import ContractModel, TenantId

Count = Annotated[int, Field(ge=0)]
Usd = Annotated[float, Field(ge=0)]


class Used(ContractModel):
    """Calls of models, their tokens, and what they cost as far as their price is known."""

    calls: Count = 0
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    cost_usd: Usd = 0.0

    def plus(self, other: Used) -> Used:
        """Return the sum."""
        return Used(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost_usd=round(self.cost_usd + other.cost_usd, 6),
        )


class Foreseen(ContractModel):
    """Calls that are not settled, and what they may come to at most."""

    calls: Count = 0
    tokens: Count = 0
    cost_usd: Usd = 0.0

    def plus(self, other: Foreseen) -> Foreseen:
        """Return the sum."""
        return Foreseen(
            calls=self.calls + other.calls,
            tokens=self.tokens + other.tokens,
            cost_usd=round(self.cost_usd + other.cost_usd, 6),
        )


class Spending(ContractModel):
    """What was spent, and what of it for nothing. A call counts on the day on which it began."""

    used: Used = Used()
    waste: Annotated[
        Used, Field(description="the part of `used` that repeated, cancelled and superseded calls cost")
    ] = Used()
    unpriced_calls: Annotated[Count, Field(description="the calls of `used` whose price is unknown")] = 0
    reserved: Annotated[Foreseen, Field(description="calls under way; the budget has room for them")] = Foreseen()
    lapsed: Annotated[
        Foreseen, Field(description="calls whose worker died: what they cost is unknown, and counted nowhere else")
    ] = Foreseen()

    def plus(self, other: Spending) -> Spending:
        """Return the sum."""
        return Spending(
            used=self.used.plus(other.used),
            waste=self.waste.plus(other.waste),
            unpriced_calls=self.unpriced_calls + other.unpriced_calls,
            reserved=self.reserved.plus(other.reserved),
            lapsed=self.lapsed.plus(other.lapsed),
        )


class DaySpending(Spending):
    """One day, UTC."""

    day: date
    limit_usd: Annotated[Usd | None, Field(description="the budget that the day's last call was held to, if any")] = (
        None
    )


class TenantUsage(ContractModel):
    """What a tenant has spent from one day to another; days of which nothing is known are left out."""

    tenant_id: TenantId
    first_day: date
    last_day: date
    days: list[DaySpending]
    total: Spending
