"""`show`, `cancel` and `prioritise`: executions, as they stand, to their end, and sooner or later than others."""

from __future__ import annotations

import json

import click

from agent_exec.cli.options import connected_client, json_option, tenant_option
from agent_exec.cli.text import columns, moment, one_line, printable
from agent_exec.contract.execution import ExecutionView
from agent_exec.errors import NotFound
from agent_exec.ledger.ledger import AlreadyOver


@click.command()
@click.argument("execution_id", metavar="ID")
@tenant_option
@json_option
def show(execution_id: str, tenant_id: str, as_json: bool) -> None:
    """Show where an execution stands, and its answer once there is one."""
    with connected_client() as client:
        view = client.get(tenant_id, execution_id)
    click.echo(view.model_dump_json() if as_json else _portrait(view))


@click.command()
@click.argument("execution_ids", metavar="ID...", nargs=-1, required=True)
@tenant_option
@json_option
@click.pass_context
def cancel(ctx: click.Context, execution_ids: tuple[str, ...], tenant_id: str, as_json: bool) -> None:
    """Ask for the end of an execution, or of several; durable when this returns.

    One that has ended already is no error. The exit code is 1 if one is not there; the others are cancelled all the same.
    """
    missing = False
    with connected_client() as client:
        for execution_id in execution_ids:
            try:
                answer = client.cancel(tenant_id, execution_id)
            except NotFound as error:
                click.echo(f"agent-exec: {error.code}: {error}", err=True)
                missing = True
                continue
            over = answer.status if isinstance(answer, AlreadyOver) else None
            if as_json:
                click.echo(json.dumps({"execution_id": execution_id, "status": over or "cancel_requested"}))
            elif over is None:
                click.echo(f"Execution '{execution_id}': its end is asked for; it will fail with 'cancelled'.")
            else:
                click.echo(f"Execution '{execution_id}': had ended before, as {over}.")
    ctx.exit(1 if missing else 0)


@click.command()
@click.argument("execution_id", metavar="ID")
@click.option(
    "--priority", type=click.IntRange(0, 9), required=True, help="9 is most urgent; the tenant's plan bounds it."
)
@tenant_option
@json_option
def prioritise(execution_id: str, priority: int, tenant_id: str, as_json: bool) -> None:
    """Change how urgent an execution is; what of it waits already moves in its queue."""
    with connected_client() as client:
        answer = client.prioritise(tenant_id, execution_id, priority)
    over, effective = (answer.status, None) if isinstance(answer, AlreadyOver) else (None, answer.priority)
    if as_json:
        click.echo(json.dumps({"execution_id": execution_id, "already_over": over, "priority": effective}))
    elif over is None:
        click.echo(f"Execution '{execution_id}': its priority is {effective} now.")
    else:
        click.echo(f"Execution '{execution_id}': had ended before, as {over}.")


def _portrait(view: ExecutionView) -> str:
    rows: list[tuple[str, object]] = [
        ("execution", view.execution_id),
        ("tenant", view.tenant_id),
        ("agent", view.agent_id),
        ("status", f"{view.status}, its end is asked for" if _is_ending(view) else view.status),
        ("priority", view.priority),
        ("created", moment(view.created_at)),
        ("started", moment(view.started_at)),
        ("finished", moment(view.finished_at)),
        ("events", view.last_sequence),
    ]
    if view.parent_execution_id is not None:
        rows.insert(1, ("asked for by", f"execution {view.parent_execution_id}"))
    rows += [("waits for", f"approval of the tool call {printable(call)}") for call in view.awaiting_approval]
    rows += [("waits for", f"another agent, execution {child}") for child in view.awaiting_executions]
    response = view.response
    if response is None:
        return columns(rows)
    usage = response.usage
    cost = "unknown" if usage.cost_usd is None else f"${usage.cost_usd:.6f}"
    rows += [
        ("model", f"{response.provider} {response.model}"),
        ("turns", response.turns),
        ("tokens", f"{usage.total_tokens} ({usage.prompt_tokens} read, {usage.completion_tokens} written)"),
        ("cost", cost),
    ]
    rows += [
        ("tool call", f"{call.name} {one_line(call.arguments)} → {one_line(call.error or call.result)}")
        for call in response.tool_calls
    ]
    if response.error is not None:
        rows.append(("error", f"{response.error.code}: {response.error.message}"))
    text = printable(response.output.text)
    return f"{columns(rows)}\n\n{text}" if text else columns(rows)


def _is_ending(view: ExecutionView) -> bool:
    return view.cancel_requested and view.response is None
