"""`notifier`: whether the orchestrator is told what happens, and how far behind that is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime

import click

from agent_exec.cli.options import connected_store, json_option
from agent_exec.cli.text import columns, moment
from agent_exec.notifier_state import NotifierReport, NotifierState, notifier_state


@click.command()
@click.option("--check", is_flag=True, help="Exit with 1 where no notifier is active.")
@json_option
def notifier(check: bool, as_json: bool) -> None:
    """Show whether the orchestrator is told what happens.

    Which notifier is active, whether it is connected, what waits. The lag is the age of the oldest event that was not sent.
    """
    with connected_store() as store:
        state = store.run(notifier_state())
    if as_json:
        report = state.report.model_dump() if state.report else None
        click.echo(json.dumps({**asdict(state), "is_connected": state.is_connected, "report": report}))
    else:
        click.echo(columns(list(_rows(state))))
    if check and not state.is_active:
        raise SystemExit(1)


def _rows(state: NotifierState) -> Iterator[tuple[str, str]]:
    report = state.report
    yield "ACTIVE", _active(state)
    yield "CONNECTED", _connected(state)
    yield "UNSENT", f"{_executions(state.unsent)}, lag {state.lag_s:.1f} s"
    yield "UNACKED", _executions(state.unacked)
    if report is not None:
        yield "SENT", f"{report.sent} frames over {report.connections} connections"
        for reason, count in report.ignored.items():
            yield "IGNORED", f"{reason}: {count}"


def _active(state: NotifierState) -> str:
    if not state.is_active:
        return "no notifier; start one: python -m notifier"
    return "just now" if state.report is None else state.report.holder + _since(state.report.active_since_ms)


def _connected(state: NotifierState) -> str:
    match state:
        case NotifierState(is_active=True, report=NotifierReport(connected_since_ms=int(at_ms))):
            return f"yes{_since(at_ms)}"
        case NotifierState(is_active=True, report=NotifierReport(trouble=str(why))):
            return f"no: {why}"
        case _:
            return "no"


def _since(at_ms: int | None) -> str:
    return "" if at_ms is None else f" since {moment(datetime.fromtimestamp(at_ms / 1000, tz=UTC))}"


def _executions(count: int) -> str:
    return "1 execution" if count == 1 else f"{count} executions"
