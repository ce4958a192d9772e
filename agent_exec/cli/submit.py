"""`submit` and `run`: hand in one execution; `run` stays with it to its end."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Any, TextIO

import click
from pydantic import ValidationError

from agent_exec.cli.options import INTERRUPTED, connected_client, json_option, tenant_option
from agent_exec.cli.watch import follow
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.message import Message
from agent_exec.errors import InvalidMessage
from agent_exec.submission import complaints, message_of


def _with_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options that make an execution; it gets them as the standard message."""

    @functools.wraps(command)
    def verb(
        *,
        tenant_id: str,
        agent_id: str,
        query: str | None,
        context: TextIO | None,
        priority: int,
        callback_url: str | None,
        **rest: Any,
    ) -> None:
        asked = {"agent_id": agent_id, "query": _query(query), "context": _context(context), "priority": priority}
        asked |= {} if callback_url is None else {"callback_url": callback_url}
        try:
            request = ExecutionRequest.model_validate_json(json.dumps(asked))
            message = message_of(request, tenant_id=tenant_id)
        except ValidationError as error:
            raise InvalidMessage(f"The request breaks the contract: {complaints(error)}.") from None
        command(message=message, **rest)

    options = [
        tenant_option,
        click.option("--agent", "agent_id", required=True, metavar="A", help="The agent to run."),
        click.option("--query", metavar="TEXT", help="What to ask it; without this, the standard input is read."),
        click.option("--context", type=click.File(), metavar="FILE", help="JSON: history, variables, documents."),
        click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="9 is most urgent."),
        click.option("--callback-url", metavar="URL", help="Gets the answer by a signed POST when it has ended."),
        click.option("--idempotency-key", metavar="KEY", help="Submitting again with it within 24 h changes nothing."),
        json_option,
    ]
    return functools.reduce(lambda made, option: option(made), reversed(options), verb)


@click.command()
@_with_request
def submit(*, message: Message, idempotency_key: str | None, as_json: bool) -> None:
    """Store one execution and print its id; it is stored when this returns."""
    with connected_client() as client:
        execution_id = client.submit(message, idempotency_key=idempotency_key)
    click.echo(json.dumps({"execution_id": execution_id}) if as_json else execution_id)


@click.command()
@_with_request
def run(*, message: Message, idempotency_key: str | None, as_json: bool) -> None:
    """Submit one execution and watch it to its end.

    The exit code is 0 when it completes and 1 when it fails. Ctrl-C stops watching; the execution goes on.
    """
    tenant_id = message.tenant_id
    with connected_client() as client:
        execution_id = client.submit(message, idempotency_key=idempotency_key)
        try:
            completed = follow(client, tenant_id, execution_id, as_json=as_json)
        except KeyboardInterrupt:
            if sys.stdin.isatty() and click.confirm("\nCancel the execution?", err=True):
                client.cancel(tenant_id, execution_id)
                click.echo("Its end is asked for.", err=True)
            else:
                click.echo(f"It goes on: agent-exec watch {execution_id} --tenant {tenant_id}", err=True)
            sys.exit(INTERRUPTED)
    sys.exit(0 if completed else 1)


def _query(given: str | None) -> str:
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        raise click.UsageError("Say what to ask: --query TEXT, or write it to the standard input.")
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"The standard input is not text: {error}.") from None


def _context(file: TextIO | None) -> Any:
    if file is None:
        return {}
    try:
        return json.load(file)
    except ValueError as error:
        raise click.BadParameter(f"{file.name} is not JSON: {error}.", param_hint="--context") from None
