"""`python -m sandbox up`: the whole stack in one terminal, until Ctrl-C.

Owns what is said to whoever started it. Does not know what the stack consists of.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from agent_exec import embedded
from agent_exec.errors import AgentExecError
from agent_exec.settings import Settings, read_settings
from agent_exec.store import BlockingStore, redis_errors
from sandbox import ending
from sandbox.stack import FLOWER_USER, QUESTION, Ports, PortTaken, Stack, agents_by_tenant, running
from sandbox.supervised import Failed


def up(*, ports: Ports) -> int:
    """Run the stack until Ctrl-C or SIGTERM; return the exit code: 0, or 1 when something failed."""
    ending.raise_on_signals()
    console = Console(highlight=False, soft_wrap=True)
    try:
        settings = read_settings()
        _reach_store(settings)
        with running(
            state_dir=settings.state_dir,
            environment=dict(os.environ),  # noqa: TID251 handed on to the processes of the service
            ports=ports,
            echo=True,
            redis=embedded.server_directory(settings) if settings.redis_url is None else None,
        ) as stack:
            stack.await_ready(ready=lambda name: None)
            console.print(_welcome(stack, settings))
            stack.supervised.wait()
    except ending.Asked:
        console.print("\nEverything is stopped.")
        return 0
    except PortTaken as error:
        click.echo(
            f"{error}. Choose others: make up args='--port-base 9000', or see python -m sandbox up --help.", err=True
        )
        return 1
    except (AgentExecError, Failed) as error:
        click.echo(f"\n{error}", err=True)
        return 1


def _reach_store(settings: Settings) -> None:
    """Start the embedded server, or see that the one that is set answers: here an error is read."""
    store = BlockingStore(embedded.redis_url(settings))
    try:
        with redis_errors():
            store.redis.ping()
    finally:
        store.close()


def _welcome(stack: Stack, settings: Settings) -> Text:
    tenants = agents_by_tenant()
    tenant_id = next(iter(tenants))
    command = _shown(Path(sys.executable).parent / "agent-exec")
    is_found = settings.redis_url is not None or settings.state_dir == Settings.model_fields["state_dir"].default
    where = "" if is_found else f"AGENT_EXEC_STATE_DIR={shlex.quote(str(settings.state_dir))} "
    text = Text()
    text.append("\nThe Agent Execution Service is ready.\n\n", "bold green")

    def line(label: str, value: str, style: str = "") -> None:
        text.append(f"{label:<16}", "dim")
        text.append(f"{value}\n", style)

    line("HTTP", f"{stack.shim_url}   (what it takes: {stack.shim_url}/openapi.json)", "bold")
    line("Flower", f"{stack.flower_url}   (user {FLOWER_USER}, password {stack.flower_password})")
    line("Neighbours", stack.neighbours_url)
    line("Logs", _shown(settings.state_dir / "logs"))
    for tenant, agents in tenants.items():
        line(f"Key of {tenant}", f"{stack.keys[tenant]}   (agents: {', '.join(agents)})")
    text.append("\nTry, in another terminal\n", "dim")
    text.append(f"  {where}{command} run --tenant {tenant_id} --agent desk --query {shlex.quote(QUESTION)}\n")
    text.append(
        f"  curl -s {stack.shim_url}/v1/executions -H 'Authorization: Bearer {stack.keys[tenant_id]}' \\\n"
        f"    -H 'Content-Type: application/json' -H 'Prefer: wait=30' \\\n"
        f'    -d \'{{"agent_id": "desk", "query": "{QUESTION}"}}\'\n'
    )
    text.append("\nCtrl-C stops everything.\n", "dim")
    return text


def _shown(path: Path) -> str:
    """Return a path as short as it can be said from here."""
    return os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path)
