"""`python -m notifier`: pushes events and sends callbacks until SIGTERM, then lets what is on its way arrive.

Owns the process: settings, logs, signals, the loop. Does not know what the notifier or the sender of callbacks does.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket

import click

from agent_exec import exposure, logs, server
from agent_exec.callbacks.destination import Rules
from agent_exec.callbacks.secrets import CallbackSecrets
from agent_exec.embedded import redis_url
from agent_exec.ending import end
from agent_exec.errors import AgentExecError
from agent_exec.settings import Settings, read_settings
from agent_exec.store import Store
from notifier.callbacks import CallbackSender
from notifier.connection import check
from notifier.egress import Egress
from notifier.notifier import Notifier

try:
    from uvloop import new_event_loop
except ImportError:  # it has no build for Windows
    from asyncio import new_event_loop  # type: ignore[assignment]  # both make a loop


@click.command()
def main() -> None:
    """Push every event of every execution to the Agent Orchestrator's WebSocket, and send the callbacks that were asked for.

    Configured by the environment: AGENT_EXEC_ORCHESTRATOR_WS_URL, AGENT_EXEC_SERVICE_TOKEN, AGENT_EXEC_REDIS_URL,
    AGENT_EXEC_CALLBACK_…; see docs/operations.md. Several may run: one has the WebSocket, the others take over when it ends;
    all of them send callbacks.
    """
    try:
        settings = read_settings()
        logs.configure(settings, "notifier")
        check(settings)
        exposure.check(settings)
        exposure.warn(settings)
        callback_secrets = CallbackSecrets(settings)
        url = redis_url(settings)
    except AgentExecError as error:
        raise click.ClickException(str(error)) from None
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_notify(settings, url, callback_secrets))


async def _notify(settings: Settings, url: str, callback_secrets: CallbackSecrets) -> None:
    store = Store(url)
    holder = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    notifier = Notifier(settings, store=store, holder=holder)
    egress = Egress(Rules.of(settings))
    sender = CallbackSender(settings, store=store, secrets=callback_secrets, egress=egress)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        notifier.stop()
        sender.stop()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop)
    inspection = asyncio.create_task(server.inspect(store, settings))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(notifier.run())
            group.create_task(sender.run())
    finally:
        await end([inspection])
        await egress.aclose()
        await store.aclose()


main()
