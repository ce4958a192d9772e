"""`watch`: follow an execution's events, for eyes or as JSON."""

from __future__ import annotations

import click

from agent_exec.cli.event_view import EventView
from agent_exec.cli.options import connected_client, json_option, tenant_option
from agent_exec.client import AgentExecClient


@click.command()
@click.argument("execution_id", metavar="ID")
@tenant_option
@click.option("--after", type=click.IntRange(0), default=0, metavar="N", help="Begin after the event of this sequence.")
@json_option
@click.pass_context
def watch(ctx: click.Context, execution_id: str, tenant_id: str, after: int, as_json: bool) -> None:
    """Show the events of an execution as they come, and end with it: exit code 0 if it completed, 1 if it failed."""
    with connected_client() as client:
        completed = follow(client, tenant_id, execution_id, after=after, as_json=as_json)
    ctx.exit(0 if completed else 1)


def follow(client: AgentExecClient, tenant_id: str, execution_id: str, *, after: int = 0, as_json: bool) -> bool:
    """Show the events after `after` until the execution has ended; return whether it completed."""
    frames = client.events(tenant_id, execution_id, after=after)
    if as_json:
        for frame in frames:
            click.echo(frame.model_dump_json())
    else:
        began_at = client.get(tenant_id, execution_id).created_at
        with EventView(began_at=began_at) as view:
            for frame in frames:
                view.show(frame)
    return client.get(tenant_id, execution_id).status == "completed"
