"""`python -m sandbox demo`: everything started, one execution followed to its end, and where its time went.

Owns the story that is told. Does not know how the stack is run, nor how a stage is worked out.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent_exec.cli.event_view import EventView
from agent_exec.cli.text import one_line, printable
from agent_exec.contract.event import EventName, Frame
from agent_exec.contract.execution import ExecutionView, FinalResponse
from agent_exec.embedded import EmbeddedServer
from agent_exec.errors import AgentExecError
from agent_exec.settings import read_settings
from sandbox import ending
from sandbox.stack import FLOWER_USER, QUESTION, Ports, Stack, running
from sandbox.supervised import Failed
from sandbox.timeline import Span, Stage, stages

TENANT, AGENT = "acme", "desk"
#: Small, and they call tools well.
REAL_MODELS = {"openai": "gpt-4o-mini", "groq": "llama-3.3-70b-versatile"}
#: The last frames are on their way to the orchestrator while the answer is read.
FRAMES_WITHIN_S = 5.0
#: Workers gather their events for Flower for about a second.
FLOWER_WITHIN_S = 3.0
#: The demo hears that it is still connected, and looks whether every process still runs.
PING_S = 1
#: What the table of times is wide without its bars.
TIMES_CHARS = 68
PLAIN_CHARS = 120
SCRIPTED = "scripted"


def demo(*, question: str | None, provider: str | None, model: str | None) -> int:
    """Tell the story; return the exit code. `provider` is a real one to use; None asks a person, if one is there."""
    ending.raise_on_signals()
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_CHARS)
    state_dir = read_settings().state_dir
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="demo-", dir=state_dir))
    try:
        real = _real_provider(provider)
        began = time.monotonic()
        with _stack(directory, real=real) as stack:
            _await_ready(console, stack, began=began)
            if real is not None:
                chosen = {"provider": real, "model": model or REAL_MODELS[real]}
                stack.neighbour("/management/_agents", body={"tenant_id": TENANT, "agent_id": AGENT, **chosen})
            _tell(console, stack, question=question or QUESTION)
    except ending.Asked as asked:
        console.print("\nStopped.")
        code = asked.exit_code
    except (AgentExecError, Failed, httpx.HTTPError) as error:
        click.echo(f"\nThe demo failed: {error}\nAll logs: {directory / 'logs'}", err=True)
        return 1
    else:
        code = 0
    shutil.rmtree(directory)
    return code


@contextmanager
def _stack(directory: Path, *, real: str | None) -> Iterator[Stack]:
    """Start everything, on a store of its own: another stack on this machine is not disturbed."""
    inherited = os.environ  # noqa: TID251 handed on to the processes of the service
    environment = {name: value for name, value in inherited.items() if not name.startswith("AGENT_EXEC_")}
    with EmbeddedServer(directory / "redis") as redis:
        environment |= {"AGENT_EXEC_REDIS_URL": redis.url, "AGENT_EXEC_API_SSE_PING_S": str(PING_S)}
        with running(
            state_dir=directory,
            environment=environment,
            ports=Ports.free(),
            echo=False,
            redis=redis.directory,
            real_provider=real,
        ) as stack:
            yield stack


def _await_ready(console: Console, stack: Stack, *, began: float) -> None:
    left = list(stack.supervised.members)

    def ready(name: str) -> None:
        left.remove(name)
        status.update(f"starting {', '.join(left)}")

    with console.status(f"starting {', '.join(left)}") as status:
        stack.await_ready(ready=ready)
    names = ", ".join(stack.supervised.members)
    console.print(f"Ready in {time.monotonic() - began:.1f} s: embedded Valkey, {names}.")


def _tell(console: Console, stack: Stack, *, question: str) -> None:
    _heading(console, "One execution, over HTTP")
    with httpx.Client(
        base_url=stack.shim_url,
        headers={"Authorization": f"Bearer {stack.keys[TENANT]}"},
        timeout=30,
        trust_env=False,
    ) as http:
        sent = time.monotonic()
        answer = http.post("/v1/executions", json={"agent_id": AGENT, "query": question}).raise_for_status()
        accepted_ms = (time.monotonic() - sent) * 1000
        execution_id = answer.json()["execution_id"]
        console.print(f"POST /v1/executions → {answer.status_code} in {accepted_ms:.0f} ms: {printable(question)}")
        console.print(f"GET  /v1/executions/{execution_id}/events\n")
        frames = _follow(console, stack, http, execution_id)
        view = ExecutionView.model_validate_json(http.get(f"/v1/executions/{execution_id}").raise_for_status().content)
    if view.response is None:
        raise Failed(f"Execution '{execution_id}': its events ended, and there is no final response.")
    _heading(console, "The final response")
    console.print(_response(view.response))
    _heading(console, "What the orchestrator received over its WebSocket")
    console.print(_arrivals(_frames_at_orchestrator(stack, execution_id, count=len(frames))))
    _heading(console, "What an operator sees in Flower")
    console.print(_flower_tasks(_tasks_in_flower(stack, execution_id, count=_steps(frames))))
    _heading(console, "Where the time went (█ this service, ░ provider and tools)")
    bar_cells = max(10, min(60, console.width - TIMES_CHARS))
    console.print(_times(stages(frames, provider_calls=_provider_calls(stack)), bar_cells=bar_cells))
    if view.response.error is not None:
        raise Failed(f"Execution '{execution_id}': {view.response.error.code}: {view.response.error.message}")


def _follow(console: Console, stack: Stack, http: httpx.Client, execution_id: str) -> list[Frame]:
    """Show the events as they come; return them all."""
    frames: list[Frame] = []
    with http.stream("GET", f"/v1/executions/{execution_id}/events") as events, EventView(console=console) as view:
        events.raise_for_status()
        for line in events.iter_lines():
            stack.supervised.check()
            if line.startswith("data:"):
                frames.append(Frame.model_validate_json(line.removeprefix("data:").strip()))
                view.show(frames[-1])
    return frames


def _response(response: FinalResponse) -> Table:
    usage = response.usage
    cost = "unknown" if usage.cost_usd is None else f"${usage.cost_usd:.6f}"
    table = _table("", "")
    table.show_header = False
    table.add_row("status", response.status)
    table.add_row("text", Text(printable(response.output.text), "bold"))
    table.add_row("model", f"{response.provider} {response.model}, {response.turns} turns")
    table.add_row("usage", f"{usage.prompt_tokens} tokens read, {usage.completion_tokens} written, cost {cost}")
    for call in response.tool_calls:
        said = one_line(call.error.model_dump() if call.error is not None else call.result)
        table.add_row("tool call", Text(f"{call.name} {one_line(call.arguments)} → {said}"))
    return table


def _frames_at_orchestrator(stack: Stack, execution_id: str, *, count: int) -> list[dict[str, Any]]:
    """Return the frames that the orchestrator holds, once all are there.

    Raises:
        Failed: they are not, in time.
    """
    give_up_at = time.monotonic() + FRAMES_WITHIN_S
    while True:
        answer = stack.neighbour(f"/orchestrator/frames?execution={execution_id}")
        if len(answer["frames"]) >= count:
            frames: list[dict[str, Any]] = answer["frames"]
            return frames
        if time.monotonic() > give_up_at:
            came = f"{len(answer['frames'])} of {count} frames came to the orchestrator"
            raise stack.supervised.members["notifier"].failure(f"is late: {came} within {FRAMES_WITHIN_S:.0f} s")
        time.sleep(0.05)


def _arrivals(arrivals: Sequence[dict[str, Any]]) -> Table:
    frames = [Frame.model_validate(arrival["frame"], strict=False) for arrival in arrivals]
    late_ms = [
        arrival["received_at_ms"] - frame.timestamp.timestamp() * 1000
        for arrival, frame in zip(arrivals, frames, strict=True)
    ]
    gap_free = [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
    table = _table("event", "frames")
    for event, count in Counter(frame.event for frame in frames).items():
        table.add_row(event.value, str(count))
    table.add_section()
    order = "in order, each once" if gap_free else "NOT in order"
    table.add_row(
        f"all {order}, {sorted(late_ms)[len(late_ms) // 2]:.0f} ms after the event (median)", str(len(frames))
    )
    return table


def _steps(frames: Sequence[Frame]) -> int:
    """How many Celery tasks these events came from: the prompt, and each turn and tool call."""
    turns = sum(frame.event == EventName.PROGRESS and frame.data["stage"] == "thinking" for frame in frames)
    return 1 + turns + sum(frame.event == EventName.TOOL_CALL_COMPLETED for frame in frames)


def _tasks_in_flower(stack: Stack, execution_id: str, *, count: int) -> list[dict[str, Any]]:
    """Return the tasks of the execution that Flower has seen end, oldest first; fewer than `count` if it is late."""
    login = (FLOWER_USER, stack.flower_password)
    give_up_at = time.monotonic() + FLOWER_WITHIN_S
    with httpx.Client(base_url=stack.flower_url, auth=login, timeout=10, trust_env=False) as http:
        while True:
            tasks: dict[str, dict[str, Any]] = http.get("/api/tasks").raise_for_status().json()
            ended = [task for task in tasks.values() if execution_id in task["uuid"] and task["state"] == "SUCCESS"]
            if len(ended) >= count or time.monotonic() > give_up_at:
                return sorted(ended, key=lambda task: float(task["received"]))
            time.sleep(0.1)


def _flower_tasks(tasks: Sequence[dict[str, Any]]) -> Table:
    table = _table("task", "step", "runtime")
    for task in tasks:
        step = str(task["uuid"]).partition(".")[2]
        table.add_row(task["name"], step, f"{float(task['runtime']) * 1000:.0f} ms")
    return table


def _provider_calls(stack: Stack) -> list[Span]:
    """Return when the scripted provider was at work, by its own journal."""
    calls = stack.neighbour("/openai/journal")["calls"]
    return [Span(call["at_ms"], call["ended_at_ms"]) for call in calls if call["ended_at_ms"] is not None]


def _times(of: Sequence[Stage], *, bar_cells: int) -> Table:
    whole = Span(of[0].span.from_ms, of[-1].span.to_ms)
    table = _table("stage", "began", "took", "others", "this service", "first token", "")
    for column in table.columns[1:6]:
        column.justify = "right"
    for stage in of:
        began_ms = stage.span.from_ms - whole.from_ms
        times = (began_ms, stage.span.ms, stage.elsewhere_ms, stage.here_ms, stage.first_token_ms)
        table.add_row(stage.name, *map(_milliseconds, times), _bar(stage, whole, cells=bar_cells))
    table.add_section()
    elsewhere_ms = sum(stage.elsewhere_ms for stage in of)
    times = (0.0, whole.ms, elsewhere_ms, whole.ms - elsewhere_ms, None)
    table.add_row("all", *map(_milliseconds, times), "")
    return table


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms"


def _bar(stage: Stage, whole: Span, *, cells: int) -> Text:
    """Return the stage's place in the whole: light where others were at work, dark where we were."""
    bar = Text()
    for cell in range(cells):
        at_ms = whole.from_ms + (cell + 0.5) * whole.ms / cells
        if not stage.span.from_ms <= at_ms < stage.span.to_ms:
            bar.append(" ")
        elif any(span.from_ms <= at_ms < span.to_ms for span in stage.elsewhere):
            bar.append("░", "cyan")
        else:
            bar.append("█", "green")
    return bar


def _heading(console: Console, text: str) -> None:
    console.print()
    if console.is_terminal:
        console.rule(f"[bold]{text}", align="left", style="dim")
    else:
        console.print(text)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, style="dim" if number == 0 else "", overflow="fold")
    return table


def _real_provider(asked: str | None) -> str | None:
    """Return the real provider to use, if any: the one asked for, or the one whose key is set and a person agrees to."""
    settings = read_settings()
    keys = {"openai": settings.openai_api_key, "groq": settings.groq_api_key}
    if asked is not None and asked != SCRIPTED:
        if keys[asked] is None:
            raise Failed(f"--provider {asked} needs {asked.upper()}_API_KEY.")
        return asked
    usable = [name for name, key in keys.items() if key is not None]
    if asked == SCRIPTED or not usable:
        return None
    name = usable[0]
    if sys.stdin.isatty() and sys.stdout.isatty():
        question = f"{name.upper()}_API_KEY is set. Ask {name} (its tokens cost money) instead of the scripted model?"
        return name if click.confirm(question, default=False) else None
    click.echo(f"{name.upper()}_API_KEY is set: --provider {name} asks {name} instead of the scripted model.")
    return None
