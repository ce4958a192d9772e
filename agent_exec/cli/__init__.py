"""The `agent-exec` command: one module a group of verbs, each imported when its verb is used."""

from agent_exec.cli.verbs import main

__all__ = ["main"]
