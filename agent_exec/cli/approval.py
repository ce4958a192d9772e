"""`approve` and `reject`: what a person says to a tool call that waits for approval."""

from __future__ import annotations

import click

from agent_exec.cli.options import connected_client, json_option, tenant_option
from agent_exec.cli.text import printable
from agent_exec.contract.approval import MAX_REASON_CHARS, ApprovalAnswer
from agent_exec.errors import InvalidMessage


@click.command()
@click.argument("execution_id", metavar="ID")
@click.argument("tool_call_id", metavar="TOOL_CALL_ID")
@click.option("--reason", help="Kept with the decision.")
@tenant_option
@json_option
def approve(execution_id: str, tool_call_id: str, reason: str | None, tenant_id: str, as_json: bool) -> None:
    """Let a tool call run that waits for approval; durable when this returns."""
    _resolve(tenant_id, execution_id, tool_call_id, approved=True, reason=reason, as_json=as_json)


@click.command()
@click.argument("execution_id", metavar="ID")
@click.argument("tool_call_id", metavar="TOOL_CALL_ID")
@click.option("--reason", help="The model reads it.")
@tenant_option
@json_option
def reject(execution_id: str, tool_call_id: str, reason: str | None, tenant_id: str, as_json: bool) -> None:
    """Refuse a tool call that waits for approval: it does not run, and the model reads why."""
    _resolve(tenant_id, execution_id, tool_call_id, approved=False, reason=reason, as_json=as_json)


def _resolve(
    tenant_id: str, execution_id: str, tool_call_id: str, *, approved: bool, reason: str | None, as_json: bool
) -> None:
    if reason is not None and len(reason) > MAX_REASON_CHARS:
        raise InvalidMessage(f"The reason has {len(reason)} characters; at most {MAX_REASON_CHARS} are taken.")
    with connected_client() as client:
        standing = client.resolve_approval(tenant_id, execution_id, tool_call_id, approved=approved, reason=reason)
    if as_json:
        answer = ApprovalAnswer(execution_id=execution_id, tool_call_id=tool_call_id, **dict(standing))
        click.echo(answer.model_dump_json())
        return
    said = "approved; it runs now" if standing.approved else "rejected; the model is told"
    click.echo(f"Tool call '{printable(tool_call_id)}': {said}.")
