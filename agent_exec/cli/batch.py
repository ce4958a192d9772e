"""`batch`: hand in many requests from a file, watch them with a progress bar, and write what they came to.

Owns the file's reading, the bar, and the file of results, which a later run of the same command goes on with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import click
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agent_exec.cli.options import INTERRUPTED, connected_client, json_option, tenant_option
from agent_exec.client import AgentExecClient
from agent_exec.contract.batch import MAX_ITEMS, BatchView
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.errors import InvalidMessage
from agent_exec.submission import MAX_COMPLAINTS, complaints

LOOK_EVERY_S = 0.5


@click.command()
@click.argument("file", type=click.File("rb"), metavar="FILE.jsonl")
@tenant_option
@click.option("--agent", "agent_id", metavar="A", help="The agent of each request that names none.")
@click.option("--callback-url", metavar="URL", help="Is told by a signed POST when the batch is over.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the results there.")
@click.option("--detach", is_flag=True, help="Print the batch's id and do not wait for it.")
@click.option(
    "--idempotency-key", metavar="KEY", help="Instead of one made from the file: run the same file anew with another."
)
@json_option
@click.pass_context
def batch(
    ctx: click.Context,
    file: BinaryIO,
    tenant_id: str,
    agent_id: str | None,
    callback_url: str | None,
    out: Path | None,
    detach: bool,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Run the requests of a file, a JSON object a line, as one batch; `-` is the standard input.

    A line is a request as `POST /v1/executions` takes it: {"agent_id": "…", "query": "…"}. Requests of a batch are the
    least urgent work of their tenant unless they say otherwise. The same file is the same batch for as long as that is
    kept: run the command again to go on watching it, or to go on writing its results.

    The exit code is 0 when all completed and 1 when some failed. Ctrl-C stops watching; the batch goes on.
    """
    requests, digest = _requests(file, agent_id)
    with connected_client() as client:
        batch_id = client.submit_batch(
            requests, tenant_id=tenant_id, callback_url=callback_url, idempotency_key=idempotency_key or digest
        )
        if detach:
            click.echo(json.dumps({"batch_id": batch_id}) if as_json else batch_id)
            return
        try:
            with _results_file(out) as results:
                view = _follow(client, tenant_id, batch_id, results, as_json=as_json)
        except KeyboardInterrupt:
            if sys.stdin.isatty() and click.confirm("\nCancel the batch?", err=True):
                client.cancel_batch(tenant_id, batch_id)
                click.echo("Its end is asked for.", err=True)
            else:
                click.echo(f"Batch {batch_id} goes on; the same command shows it again.", err=True)
            ctx.exit(INTERRUPTED)
    if as_json:
        click.echo(view.model_dump_json())
    else:
        cancelled = f", {view.cancelled} cancelled" if view.cancelled else ""
        click.echo(f"Batch {batch_id}: {view.completed} completed, {view.failed} failed{cancelled}.", err=True)
    ctx.exit(0 if view.completed == view.count else 1)


def _requests(file: BinaryIO, agent_id: str | None) -> tuple[list[ExecutionRequest], str]:
    """Read the requests, and a digest of the file.

    Raises:
        InvalidMessage: names the lines that are wrong, and how.
    """
    text = file.read()
    requests, wrong = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            asked = json.loads(line)
            if isinstance(asked, dict) and agent_id is not None:
                asked = {"agent_id": agent_id, **asked}
            requests.append(ExecutionRequest.model_validate_json(json.dumps(asked)))
        except ValidationError as error:
            wrong.append(f"line {number}: {complaints(error)}")
        except ValueError as error:
            wrong.append(f"line {number} is not JSON: {error}")
    if wrong:
        more = f"; and {len(wrong) - MAX_COMPLAINTS} more lines" if len(wrong) > MAX_COMPLAINTS else ""
        raise InvalidMessage(f"{'; '.join(wrong[:MAX_COMPLAINTS])}{more}. Nothing was submitted.")
    if not 1 <= len(requests) <= MAX_ITEMS:
        raise InvalidMessage(f"A batch has 1 to {MAX_ITEMS} requests; this file has {len(requests)}.")
    return requests, hashlib.sha256(text + (agent_id or "").encode()).hexdigest()


@contextlib.contextmanager
def _results_file(out: Path | None) -> Iterator[tuple[BinaryIO | None, int]]:
    """Open the file of results behind the lines that are whole; yield it, and how many those are."""
    if out is None:
        yield None, 0
        return
    with out.open("a+b") as file:
        file.seek(0)
        whole = [line for line in file.readlines() if line.endswith(b"\n")]
        file.truncate(sum(map(len, whole)))
        yield file, len(whole)


def _follow(
    client: AgentExecClient, tenant_id: str, batch_id: str, results: tuple[BinaryIO | None, int], *, as_json: bool
) -> BatchView:
    """Show the batch until it is over, and write its results as they come."""
    file, written = results
    columns: Sequence[TextColumn | BarColumn | MofNCompleteColumn | TimeElapsedColumn | TimeRemainingColumn] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=as_json) as progress:
        task = progress.add_task("batch", total=None)
        while True:
            view = client.get_batch(tenant_id, batch_id)
            done = view.completed + view.failed + view.cancelled
            failed = f", {view.failed} failed" if view.failed else ""
            progress.update(task, total=view.count, completed=done, description=f"{view.status}{failed}")
            if file is not None:
                for result in client.batch_results(tenant_id, batch_id, after=written):
                    file.write(result.model_dump_json().encode() + b"\n")
                    written += 1
                file.flush()
            if view.finished_at is not None:
                return view
            time.sleep(LOOK_EVERY_S)
