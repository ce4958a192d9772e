"""`python -m notifier`: pushes every event to the orchestrator until SIGTERM, then lets what is on its way arrive.

Owns the process: settings, logs, signals, the loop. Does not know what the notifier does.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket

import click

from agent_exec import logs, server
from agent_exec.embedded import redis_url
from agent_exec.errors import AgentExecError
from agent_exec.settings import Settings, read_settings
from agent_exec.store import Store
from notifier.connection import check
from notifier.notifier import Notifier


@click.command()
def main() -> None:
    """Push every event of every execution to the Agent Orchestrator's WebSocket.

    Configured by the environment: AGENT_EXEC_ORCHESTRATOR_WS_URL, AGENT_EXEC_SERVICE_TOKEN, AGENT_EXEC_REDIS_URL; see
    docs/operations.md. Several may run: one is active, the others take over when it ends.
    """
    try:
        settings = read_settings()
        logs.configure(settings, "notifier")
        check(settings)
        url = redis_url(settings)
    except AgentExecError as error:
        raise click.ClickException(str(error)) from None
    asyncio.run(_notify(settings, url))


async def _notify(settings: Settings, url: str) -> None:
    store = Store(url)
    holder = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    notifier = Notifier(settings, store=store, holder=holder)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, notifier.stop)
    inspection = asyncio.create_task(server.warn(store))
    try:
        await notifier.run()
    finally:
        inspection.cancel()
        await asyncio.gather(inspection, return_exceptions=True)
        await store.aclose()


main()
