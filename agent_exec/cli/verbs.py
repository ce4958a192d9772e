"""The verbs of `agent-exec`, and how an error of the service becomes a line and an exit code.

Owns the table of verbs. Does not import what a verb needs before it is asked for: help comes at once.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import click

from agent_exec.errors import AgentExecError, CallbackUrlInvalid, InvalidMessage

USAGE = 2
FAILURE = 1


class Verb(NamedTuple):
    """The module that has a verb's command, and the verb's line in the help."""

    module: str
    line: str


VERBS = {
    "submit": Verb("submit", "Store one execution and print its id."),
    "run": Verb("submit", "Submit one execution and watch it to its end."),
    "batch": Verb("batch", "Run the requests of a file as one batch."),
    "watch": Verb("watch", "Show the events of an execution as they come."),
    "show": Verb("execution", "Show where an execution stands, and its answer."),
    "cancel": Verb("execution", "Ask for the end of an execution."),
    "approve": Verb("approval", "Let a tool call run that waits for approval."),
    "reject": Verb("approval", "Refuse a tool call that waits for approval."),
    "prioritise": Verb("execution", "Change how urgent an execution is."),
    "why": Verb("why", "Explain why an execution is not further, and what to do."),
    "usage": Verb("usage", "Show what a tenant has spent, day by day."),
    "queues": Verb("queues", "Show what waits and what is in flight, by tenant."),
    "notifier": Verb("notifier", "Show whether the orchestrator is told what happens."),
    "dead-letters": Verb("queues", "Show the messages that nobody will run, and why."),
    "callbacks": Verb("callbacks", "List callbacks, and have one sent again."),
    "schedules": Verb("schedules", "Run a request again and again."),
    "keys": Verb("keys", "Make, list and revoke API keys."),
    "schemas": Verb("schemas", "Write the JSON Schemas of the contract."),
}


class Verbs(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's command."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"agent_exec.cli.{VERBS[cmd_name].module}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.line) for name, verb in VERBS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; an error of the service is one line, for its message says what and what now."""
        try:
            return super().invoke(ctx)
        except AgentExecError as error:
            click.echo(f"agent-exec: {error.code}: {error}", err=True)
            ctx.exit(USAGE if isinstance(error, InvalidMessage | CallbackUrlInvalid) else FAILURE)


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="agent-exec")
def main() -> None:
    """Run LLM agents as durable, tenant-fair work.

    The service's Redis is AGENT_EXEC_REDIS_URL; without it, the private server of AGENT_EXEC_STATE_DIR (.agent-exec).
    """
