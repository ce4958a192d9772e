"""Frames for a reader: a line an event, the answer as it streams; coloured on a terminal, plain elsewhere.

Owns how each event reads. Does not know where frames come from: `agent-exec watch` reads Redis, the demo reads SSE.
"""

from __future__ import annotations

from datetime import datetime
from types import TracebackType
from typing import Any, Self, assert_never

from rich.console import Console
from rich.status import Status
from rich.text import Text

from agent_exec.cli.text import one_line, printable
from agent_exec.contract.event import TERMINAL_EVENTS, EventName, Frame


class EventView:
    """Shows one execution. A context manager: on a terminal, a line below the events says what is waited for."""

    def __init__(self, *, began_at: datetime | None = None, console: Console | None = None) -> None:
        """Take the moment that times are counted from; without it, the first frame's."""
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._began_at = began_at
        self._waiting_for = Status("waiting for a worker", console=self._console, spinner="dots")
        self._in_answer = False

    def show(self, frame: Frame) -> None:
        """Show one frame."""
        self._began_at = self._began_at or frame.timestamp
        said = frame.data
        match frame.event:
            case EventName.STARTED:
                above = f", for execution {said['parent_execution_id']}" if "parent_execution_id" in said else ""
                self._line(frame, "accepted", f"execution {frame.execution_id}, agent {said['agent_id']}{above}")
            case EventName.PROGRESS:
                self._line(frame, str(said["stage"]), _progress(said), style="dim")
                self._wait_for(str(said["stage"]))
            case EventName.TOOL_CALL_REQUESTED:
                child = f", execution {said['child_execution_id']}" if "child_execution_id" in said else ""
                self._line(frame, "tool call", f"{said['name']} {one_line(said['arguments'])}{child}", style="yellow")
                self._wait_for("waiting for the tools")
            case EventName.TOOL_CALL_COMPLETED:
                self._tool_result(frame, said)
            case EventName.TOOL_APPROVAL_REQUESTED:
                how = f"agent-exec approve {frame.execution_id} {said['tool_call_id']}"
                self._line(frame, "approval", f"{said['name']} waits for somebody's approval: {how}", style="magenta")
                self._wait_for("waiting for somebody's approval")
            case EventName.TOKEN:
                self._token(frame, str(said["token"]))
            case EventName.STEP_RESTARTED:
                self._line(frame, "restarted", f"{said['step']}: its text so far is void", style="magenta")
            case EventName.COMPLETED:
                self._line(frame, "completed", _sum(said["response"]), style="bold green")
            case EventName.FAILED:
                error: Any = said["error"]
                self._line(frame, "failed", f"{error['code']}: {one_line(error['message'])}", style="bold red")
            case other:
                assert_never(other)

    def __enter__(self) -> Self:
        """Begin to wait."""
        self._waiting_for.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as a next line may be written."""
        self._waiting_for.stop()
        self._end_answer()

    def _line(self, frame: Frame, label: str, text: str, *, style: str = "") -> None:
        self._end_answer()
        self._console.print(
            Text.assemble(
                (f"{_seconds(self._began_at, frame):8.3f}  ", "dim"), (f"{label:<12}", style), printable(text)
            )
        )
        if frame.event in TERMINAL_EVENTS:
            self._waiting_for.stop()

    def _tool_result(self, frame: Frame, said: dict[str, Any]) -> None:
        took = f"in {said['duration_s']:.3f} s"
        if said.get("error"):
            error = said["error"]
            self._line(
                frame, "tool error", f"{said['name']} → {error['code']}: {error['message']}, {took}", style="red"
            )
        else:
            self._line(frame, "tool result", f"{said['name']} → {one_line(said['result'])}, {took}", style="yellow")

    def _token(self, frame: Frame, token: str) -> None:
        if not self._in_answer and token:
            self._line(frame, "answer", "", style="cyan")
            self._waiting_for.stop()  # it would stand in the middle of the text
            self._in_answer = True
        self._console.out(printable(token), end="", style="bold", highlight=False)

    def _end_answer(self) -> None:
        if self._in_answer:
            self._console.print()
            self._in_answer = False

    def _wait_for(self, what: str) -> None:
        self._waiting_for.update(what)
        self._waiting_for.start()


def _seconds(began_at: datetime | None, frame: Frame) -> float:
    return 0.0 if began_at is None else (frame.timestamp - began_at).total_seconds()


def _progress(said: dict[str, Any]) -> str:
    detail = said.get("detail") or {}
    return f"{said['step']} {one_line(detail)}" if detail else str(said["step"])


def _sum(response: Any) -> str:
    usage = response["usage"]
    cost = "cost unknown" if usage["cost_usd"] is None else f"${usage['cost_usd']:.6f}"
    tokens = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
    turns = "1 turn" if response["turns"] == 1 else f"{response['turns']} turns"
    return f"{turns}, {tokens}, {cost}, {response['provider']} {response['model']}"
