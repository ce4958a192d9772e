"""The sandbox's command line: `neighbours` serves the four, `up` and `demo` the whole service among them.

Owns the verbs. Does not know what they start.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

import click

from sandbox.app import DEFAULT_TOKEN, create_app, sandbox_environment
from sandbox.frame_line import frame_line
from sandbox.local_model import MissingModel, serve_local_model
from sandbox.serving import serving


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """The Agent Execution Service's neighbours, played on this machine. Without a command: `neighbours`."""
    if context.invoked_subcommand is None:
        context.invoke(neighbours)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8701, show_default=True, help="0 takes any that is free.")
@click.option("--token", default=DEFAULT_TOKEN, show_default=True, help="Bearer token that the neighbours ask for.")
@click.option(
    "--pace", default=1.0, show_default=True, type=click.FloatRange(min=0), help="Stretches the LLM's pauses."
)
@click.option("--ack-every", default=1, show_default=True, type=click.IntRange(min=0), help="Frames; 0: no acks.")
@click.option("--print-frames", is_flag=True, help="Print each frame that the orchestrator gets.")
def neighbours(host: str, port: int, token: str, pace: float, ack_every: int, print_frames: bool) -> None:
    """Serve the LLM, the tool registry, Agent Management and the orchestrator on one port, until Ctrl-C."""
    show = (lambda frame: click.echo(frame_line(frame))) if print_frames else None
    app = create_app(token=token, pace=pace, ack_every=ack_every, show=show)

    async def serve() -> None:
        async with serving(app, host=host, port=port) as base_url:
            click.echo(f"The neighbours answer at {base_url}. For the service:\n")
            for name, value in sandbox_environment(base_url, token).items():
                click.echo(f"export {name}={value}")
            click.echo("")
            await _stopped()

    try:
        asyncio.run(serve())
    except OSError as error:
        raise click.ClickException(f"Cannot listen on {host}:{port}: {error.strerror}.") from None


@main.command()
@click.option("--shim-port", default=8080, show_default=True)
@click.option("--flower-port", default=5555, show_default=True)
@click.option("--neighbours-port", default=8701, show_default=True)
@click.option("--port-base", metavar="N", type=int, help="Shim at N, Flower at N+1, neighbours at N+2.")
def up(shim_port: int, flower_port: int, neighbours_port: int, port_base: int | None) -> None:
    """Start the whole service among its neighbours, and keep it running until Ctrl-C."""
    from sandbox.stack import Ports
    from sandbox.up import up as keep_up

    if port_base is not None:
        shim_port, flower_port, neighbours_port = range(port_base, port_base + 3)
    sys.exit(keep_up(ports=Ports(shim=shim_port, flower=flower_port, neighbours=neighbours_port)))


@main.command()
@click.option("--question", metavar="TEXT", help="What to ask; without it, something that needs two tools.")
@click.option("--provider", type=click.Choice(["scripted", "openai", "groq"]), help="Who answers; default: scripted.")
@click.option("--model", metavar="M", help="Which model of a real provider.")
def demo(question: str | None, provider: str | None, model: str | None) -> None:
    """Start the whole service, follow one execution to its end, and show where its time went."""
    from sandbox.demo import demo as tell

    sys.exit(tell(question=question, provider=provider, model=model))


@main.command()
@click.option("--port", default=8702, show_default=True)
@click.option("--slots", default=2, show_default=True, type=click.IntRange(min=1), help="Answers at once.")
def local_model(port: int, slots: int) -> None:
    """Serve SmolLM2, a real small model, at an OpenAI-compatible address, until Ctrl-C."""
    try:
        with serve_local_model(port=port, slots=slots) as base_url:
            click.echo(f"SmolLM2 answers at {base_url}/v1/chat/completions. For the service:\n")
            click.echo(f'export AGENT_EXEC_PROVIDERS=\'{{"local": {{"base_url": "{base_url}/v1"}}}}\'\n')
            asyncio.run(_stopped())
    except MissingModel as error:
        raise click.ClickException(str(error)) from None


async def _stopped() -> None:
    """Return on SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt by itself
            loop.add_signal_handler(number, stop.set)
    await stop.wait()


if __name__ == "__main__":
    main()
