"""`callbacks`: those that wait, those that were given up, and having one sent again."""

from __future__ import annotations

import click

from agent_exec.callbacks import callbacks as calls
from agent_exec.callbacks.callbacks import LISTS, CallbackRef, ListedState
from agent_exec.cli.options import connected_store, json_option, tenant_option
from agent_exec.cli.text import columns, moment, printable
from agent_exec.contract.callback import CallbackView


@click.group()
def callbacks() -> None:
    """List callbacks, and have one sent again. One that was given up is listed for two weeks."""


@callbacks.command("list")
@click.option("--state", type=click.Choice(list(LISTS)), default="dead", show_default=True)
@click.option(
    "--limit", type=click.IntRange(1, 1_000), default=20, show_default=True, help="How many, the latest first."
)
@tenant_option
@json_option
def list_callbacks(state: ListedState, limit: int, tenant_id: str, as_json: bool) -> None:
    """List a tenant's callbacks that were given up, or wait, or are on their way."""
    with connected_store() as store:
        listed = store.run(calls.page(tenant_id, state, limit=limit))
    views = [one.view for one in listed if one.view is not None]
    if as_json:
        for view in views:
            click.echo(view.model_dump_json())
    elif not views:
        click.echo(f"No callbacks: {state}.")
    else:
        rows = [
            (
                view.callback_id,
                view.attempts,
                moment(view.last_attempt_at),
                moment(view.due_at),
                _outcome(view),
                view.url,
            )
            for view in views
        ]
        click.echo(columns([("ID", "ATTEMPTS", "LAST", "DUE", "CAME TO", "URL"), *rows]))


@callbacks.command()
@click.argument("callback_id", metavar="ID")
@tenant_option
@json_option
def show(callback_id: str, tenant_id: str, as_json: bool) -> None:
    """Show where a callback stands; its id is the execution's."""
    with connected_store() as store:
        view = store.run(calls.look(CallbackRef(tenant_id, callback_id)))
    click.echo(view.model_dump_json() if as_json else _portrait(view))


@callbacks.command()
@click.argument("callback_id", metavar="ID")
@tenant_option
@json_option
def redeliver(callback_id: str, tenant_id: str, as_json: bool) -> None:
    """Have a callback sent now: one that was given up with all its tries anew, one that waits ahead of its time."""
    with connected_store() as store:
        ref = CallbackRef(tenant_id, callback_id)
        verdict = store.run(calls.redeliver(ref))
        view = store.run(calls.look(ref))
    if as_json:
        click.echo(view.model_dump_json())
        return
    said = "is on its way" if verdict == "sending" else "is sent now, by any running notifier"
    click.echo(f"Callback '{callback_id}': {said}.")


def _portrait(view: CallbackView) -> str:
    rows: list[tuple[str, object]] = [
        ("callback", view.callback_id),
        ("tenant", view.tenant_id),
        ("url", printable(view.url)),
        ("state", view.state),
        ("attempts", view.attempts),
        ("created", moment(view.created_at)),
        ("last", moment(view.last_attempt_at)),
        ("due", moment(view.due_at)),
        ("came to", _outcome(view)),
    ]
    return columns([(name, value) for name, value in rows if value != ""])


def _outcome(view: CallbackView) -> str:
    if view.last_fault is not None and view.last_fault != "answered":
        return view.last_fault
    return "" if view.last_status is None else f"answered {view.last_status}"
