"""`queues` and `dead-letters`: what waits, what is in flight, and what nobody will run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from agent_exec.broker import fair_queue
from agent_exec.broker.fair_queue import FamilyDepth
from agent_exec.cli.options import connected_store, json_option
from agent_exec.cli.text import columns, moment, one_line


@click.command()
@json_option
def queues(as_json: bool) -> None:
    """Show what waits and what is in flight, by family and tenant.

    `plain` is what came from Celery apps without this package, and has not been looked at yet.
    """
    with connected_store() as store:
        families = store.run(fair_queue.depths())
    rows = [row for name, family in families.items() for row in _rows(name, family)]
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
    else:
        click.echo(columns([("FAMILY", "TENANT", "WAITING", "IN FLIGHT", ""), *[_line(row) for row in rows]]))


@click.command("dead-letters")
@click.option("--limit", type=click.IntRange(1, 1_000), default=20, show_default=True, help="How many, newest first.")
@json_option
def dead_letters(limit: int, as_json: bool) -> None:
    """Show the messages that nobody will run, newest first, and why."""
    with connected_store() as store:
        letters = store.run(fair_queue.dead_letters(limit=limit))
    if as_json:
        for letter in letters:
            click.echo(json.dumps(asdict(letter)))
    elif not letters:
        click.echo("No dead letters.")
    else:
        lines = [
            (
                moment(datetime.fromtimestamp(letter.at_ms / 1000, tz=UTC)),
                letter.queue,
                letter.tag,
                letter.deliveries,
                one_line(letter.reason),
            )
            for letter in letters
        ]
        click.echo(columns([("AT", "QUEUE", "TAG", "DELIVERIES", "REASON"), *lines]))


def _rows(name: str, family: FamilyDepth) -> Iterator[dict[str, Any]]:
    """Yield a row for the family, then one a tenant of it."""
    whole = {"waiting": family.waiting, "in_flight": family.in_flight, "plain": family.plain}
    yield {"family": name, "tenant": None, **whole}
    for tenant, depth in family.tenants.items():
        yield {"family": name, "tenant": tenant, **asdict(depth)}


def _line(row: dict[str, Any]) -> tuple[object, ...]:
    remark = "at its cap: waits for one of its own to end" if row.get("at_cap") else ""
    if row.get("plain"):
        remark = f"{row['plain']} of them from apps without this package"
    return row["family"], row["tenant"] or "(all)", row["waiting"], row["in_flight"], remark
