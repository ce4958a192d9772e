"""`schedules`: requests that become executions at the times of a cron line; make, list, pause, resume, delete."""

from __future__ import annotations

import json
from typing import TextIO

import click
from pydantic import ValidationError

from agent_exec.cli.options import connected_client, json_option, tenant_option
from agent_exec.cli.text import columns, moment
from agent_exec.contract.schedule import ScheduleRequest, ScheduleView
from agent_exec.errors import InvalidMessage
from agent_exec.submission import complaints


@click.group()
def schedules() -> None:
    """Run a request again and again, at the times of a cron line."""


@schedules.command()
@tenant_option
@click.option("--cron", required=True, metavar="'0 7 * * 1-5'", help="Minute, hour, day of month, month, day of week.")
@click.option("--timezone", default="UTC", show_default=True, metavar="ZONE", help="Whose clock, as Europe/Berlin.")
@click.option("--agent", "agent_id", required=True, metavar="A", help="The agent to run.")
@click.option("--query", required=True, metavar="TEXT", help="What to ask it each time.")
@click.option("--context", type=click.File(), metavar="FILE", help="JSON: history, variables, documents.")
@click.option("--no-overlap", is_flag=True, help="Leave out a time at which the execution before has not ended.")
@click.option("--idempotency-key", metavar="KEY", help="Creating again with it changes nothing.")
@json_option
def create(
    tenant_id: str,
    cron: str,
    timezone: str,
    agent_id: str,
    query: str,
    context: TextIO | None,
    no_overlap: bool,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Store a schedule, and print its id."""
    try:
        request = {"agent_id": agent_id, "query": query, "context": {} if context is None else json.load(context)}
    except ValueError as error:
        raise click.BadParameter(f"it is not JSON: {error}.", param_hint="--context") from None
    asked = {"cron": cron, "timezone": timezone, "request": request, "overlap": not no_overlap}
    try:
        wanted = ScheduleRequest.model_validate_json(json.dumps(asked))
    except ValidationError as error:
        raise InvalidMessage(f"The schedule breaks the contract: {complaints(error)}.") from None
    with connected_client() as client:
        view = client.create_schedule(wanted, tenant_id=tenant_id, idempotency_key=idempotency_key)
    if as_json:
        click.echo(view.model_dump_json())
    else:
        click.echo(view.schedule_id)
        click.echo(f"It is next due {moment(view.next_at)}.", err=True)


@schedules.command("list")
@tenant_option
@json_option
def list_schedules(tenant_id: str, as_json: bool) -> None:
    """List a tenant's schedules, newest first."""
    with connected_client() as client:
        views = list(client.schedules(tenant_id))
    if as_json:
        for view in views:
            click.echo(view.model_dump_json())
    elif not views:
        click.echo("No schedules.")
    else:
        rows = [
            (view.schedule_id, view.cron, view.timezone, view.request.agent_id, _next(view), moment(view.last_at))
            for view in views
        ]
        click.echo(columns([("ID", "CRON", "ZONE", "AGENT", "NEXT", "LAST"), *rows]))


@schedules.command()
@click.argument("schedule_id", metavar="ID")
@tenant_option
@json_option
def show(schedule_id: str, tenant_id: str, as_json: bool) -> None:
    """Show a schedule: what it asks, and when it is next due."""
    with connected_client() as client:
        view = client.get_schedule(tenant_id, schedule_id)
    if as_json:
        click.echo(view.model_dump_json())
        return
    rows = [
        ("schedule", view.schedule_id),
        ("cron", f"{view.cron} ({view.timezone})"),
        ("agent", view.request.agent_id),
        ("query", view.request.query),
        ("next", _next(view)),
        ("last", moment(view.last_at)),
        ("began", view.last_execution_id or ""),
    ]
    click.echo(columns([row for row in rows if row[1]]))


@schedules.command()
@click.argument("schedule_id", metavar="ID")
@tenant_option
def pause(schedule_id: str, tenant_id: str) -> None:
    """Begin nothing more; what runs goes on."""
    with connected_client() as client:
        client.pause_schedule(tenant_id, schedule_id)
    click.echo(f"Schedule '{schedule_id}': it begins nothing more until it is resumed.")


@schedules.command()
@click.argument("schedule_id", metavar="ID")
@tenant_option
def resume(schedule_id: str, tenant_id: str) -> None:
    """Go on from the next of its times; those that passed meanwhile are not made up for."""
    with connected_client() as client:
        view = client.resume_schedule(tenant_id, schedule_id)
    click.echo(f"Schedule '{schedule_id}': it is next due {moment(view.next_at)}.")


@schedules.command()
@click.argument("schedule_id", metavar="ID")
@tenant_option
def delete(schedule_id: str, tenant_id: str) -> None:
    """Forget a schedule; what it has begun goes on."""
    with connected_client() as client:
        client.delete_schedule(tenant_id, schedule_id)
    click.echo(f"Schedule '{schedule_id}': it is deleted.")


def _next(view: ScheduleView) -> str:
    return "paused" if view.paused else moment(view.next_at)
