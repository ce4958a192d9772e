"""`usage`: what a tenant has spent, day by day."""

from __future__ import annotations

import click

from agent_exec.cli.options import connected_store, json_option, tenant_option
from agent_exec.cli.text import columns
from agent_exec.contract.spending import Foreseen, Spending, TenantUsage
from agent_exec.spending import usage as spending
from agent_exec.spending.reservation import KEPT_DAYS

HEADER = ("DAY", "CALLS", "TOKENS READ", "WRITTEN", "COST", "WASTED CALLS", "TOKENS", "COST", "LIMIT", "")


@click.command()
@tenant_option
@click.option(
    "--days", type=click.IntRange(1, KEPT_DAYS), default=7, show_default=True, help="How many days, UTC, up to today."
)
@json_option
def usage(tenant_id: str, days: int, as_json: bool) -> None:
    """Show what a tenant has spent, day by day.

    Wasted is what repeated, cancelled and superseded calls cost: part of the whole.
    """
    with connected_store() as store:
        read = store.run(spending.usage(tenant_id, days=days))
    click.echo(read.model_dump_json() if as_json else _table(read))


def _table(read: TenantUsage) -> str:
    if not read.days:
        return f"Tenant '{read.tenant_id}': nothing from {read.first_day} to {read.last_day}."
    rows = [_row(str(day.day), day, "" if day.limit_usd is None else f"${day.limit_usd:g}") for day in read.days]
    return columns([HEADER, *rows, _row("total", read.total, "")])


def _row(label: str, spent: Spending, limit: str) -> tuple[object, ...]:
    used, waste = spent.used, spent.waste
    wasted_tokens = waste.prompt_tokens + waste.completion_tokens
    return (
        label,
        used.calls,
        used.prompt_tokens,
        used.completion_tokens,
        f"${used.cost_usd:.6f}",
        waste.calls,
        wasted_tokens,
        f"${waste.cost_usd:.6f}",
        limit,
        "; ".join(_remarks(spent)),
    )


def _remarks(spent: Spending) -> list[str]:
    remarks = []
    if spent.unpriced_calls:
        remarks.append(f"price unknown: {_calls(spent.unpriced_calls)}")
    if spent.reserved.calls:
        remarks.append(f"under way: {_foreseen(spent.reserved)}")
    if spent.lapsed.calls:
        remarks.append(f"lost with their worker: {_foreseen(spent.lapsed)}")
    return remarks


def _foreseen(calls: Foreseen) -> str:
    return f"{_calls(calls.calls)} of at most ${calls.cost_usd:.6f}"


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count} calls"
