"""Where the time of one execution went: its stages, and in each what others took and what we took. Pure.

Owns the reading of an execution's frames as stages. Does not know where frames come from, nor how a stage is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agent_exec.contract.event import TERMINAL_EVENTS, EventName, Frame


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when, in ms since the epoch."""

    from_ms: float
    to_ms: float

    @property
    def ms(self) -> float:
        """How long."""
        return self.to_ms - self.from_ms


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of an execution, from the end of the one before. `elsewhere`: when a provider or a tool was at work."""

    name: str
    span: Span
    elsewhere: Sequence[Span] = ()
    first_token_ms: float | None = None

    @property
    def elsewhere_ms(self) -> float:
        """How long others were at work, two at once counted once."""
        total, covered_to = 0.0, self.span.from_ms
        for span in sorted(self.elsewhere, key=lambda span: span.from_ms):
            total += max(0.0, span.to_ms - max(span.from_ms, covered_to))
            covered_to = max(covered_to, span.to_ms)
        return total

    @property
    def here_ms(self) -> float:
        """How long we were."""
        return self.span.ms - self.elsewhere_ms


@dataclass(slots=True)
class _Reading:
    """Where the reading of the frames stands."""

    stages: list[Stage] = field(default_factory=list)
    cursor_ms: float = 0.0
    thinking_ms: float = 0.0
    first_token_ms: float | None = None
    tools_left: int = 0
    tools: list[Span] = field(default_factory=list)


def stages(frames: Sequence[Frame], *, provider_calls: Sequence[Span]) -> list[Stage]:
    """Return the stages of an execution that has ended, in order.

    `provider_calls` is when the provider was at work by its own journal; without one, the whole time from the step's first
    event counts as the provider's.
    """
    reading = _Reading(cursor_ms=_ms(frames[0]))
    for frame in frames:
        _read(reading, frame, provider_calls)
    return reading.stages


def _read(reading: _Reading, frame: Frame, provider_calls: Sequence[Span]) -> None:
    at_ms, said = _ms(frame), frame.data
    match frame.event:
        case EventName.PROGRESS if said["stage"] == "thinking":
            reading.thinking_ms, reading.first_token_ms = at_ms, None
        case EventName.PROGRESS if said["stage"] in ("processing", "retrieving"):
            _end(reading, Stage(str(said["step"]), Span(reading.cursor_ms, at_ms)))
        case EventName.TOKEN if reading.first_token_ms is None and said["token"]:
            reading.first_token_ms = at_ms
        case EventName.TOOL_CALL_REQUESTED:
            if reading.tools_left == 0:
                _end(reading, _completion(reading, f"completion {said['turn']}", at_ms, provider_calls))
            reading.tools_left += 1
        case EventName.TOOL_CALL_COMPLETED:
            reading.tools_left -= 1
            reading.tools.append(Span(at_ms - _duration_ms(said), at_ms))
            if reading.tools_left == 0:
                _end(reading, Stage("tools", Span(reading.cursor_ms, at_ms), elsewhere=tuple(reading.tools)))
                reading.tools = []
        case event if event in TERMINAL_EVENTS:
            turns = sum(stage.name.startswith("completion") for stage in reading.stages)
            if reading.thinking_ms >= reading.cursor_ms:
                _end(reading, _completion(reading, f"completion {turns + 1}", at_ms, provider_calls))
            else:  # it ended before the model was asked
                _end(reading, Stage("end", Span(reading.cursor_ms, at_ms)))
        case _:
            pass


def _completion(reading: _Reading, name: str, at_ms: float, provider_calls: Sequence[Span]) -> Stage:
    span = Span(reading.cursor_ms, at_ms)
    by_journal = [call for call in provider_calls if span.from_ms <= call.from_ms <= span.to_ms]
    began_ms = max(reading.thinking_ms, span.from_ms)
    first_token_ms = None if reading.first_token_ms is None else reading.first_token_ms - span.from_ms
    elsewhere = by_journal if provider_calls else [Span(began_ms, at_ms)]
    return Stage(name, span, elsewhere=tuple(elsewhere), first_token_ms=first_token_ms)


def _end(reading: _Reading, stage: Stage) -> None:
    reading.stages.append(stage)
    reading.cursor_ms = stage.span.to_ms


def _ms(frame: Frame) -> float:
    return frame.timestamp.timestamp() * 1000


def _duration_ms(said: dict[str, Any]) -> float:
    return float(said["duration_s"]) * 1000
