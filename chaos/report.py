"""What a run came to, in figures: for eyes as a table, for programs as JSON.

Owns which figures there are, and what each counts. Does not know how the evidence was gathered.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.table import Table

from chaos.evidence import Evidence
from chaos.invariants import EFFECT_TOOLS, Violation, open_behind_ms
from chaos.run import Outcome

#: How many violations are shown; the JSON holds all.
SHOWN_VIOLATIONS = 40

Figures = dict[str, Any]


def figures(outcome: Outcome, violations: Sequence[Violation]) -> Figures:
    """Return the figures, in the order in which they are read."""
    evidence = outcome.evidence
    broken = Counter(violation.invariant for violation in violations)
    ended = sum(one.terminal is not None for one in evidence.executions)
    statuses = Counter(one.status for one in evidence.executions)
    repeated = sum(len(calls) - 1 for calls in evidence.calls_by_step.values())
    recovery_s = sorted(recoveries_s(evidence))
    staffed_s = sorted(recoveries_s(evidence, staffed=True))
    closes_ms = cancel_closes_ms(evidence)
    deaths = Counter((death.name.split("-")[0].split(".")[0], death.cause) for death in evidence.deaths)
    return {
        "accepted": sum(one.execution_id is not None for one in evidence.submissions),
        "never answered": sum(one.execution_id is None for one in evidence.submissions),
        "stored": len(evidence.executions),
        "terminal": ended,
        "completed": statuses["completed"],
        "cancelled": sum(_code(one.response) == "cancelled" for one in evidence.executions),
        "lost": broken["I1"],
        "doubled": broken["I2"],
        "gaps": broken["I3"],
        "mix-ups": broken["I7"],
        "provider calls": len(evidence.calls),
        "repeated calls": repeated,
        "repeated calls, %": round(100 * repeated / max(1, len(evidence.calls)), 3),
        "calls in flight at kills": in_flight(evidence),
        "tool calls": len(evidence.tool_calls),
        "tool effects doubled": _doubled_effects(evidence),
        "tool calls in doubt": sum(_in_doubt(one.response) for one in evidence.executions),
        "notices": len(evidence.notices),
        "notices repeated": len(evidence.notices) - len({notice.event_id for notice in evidence.notices}),
        "callbacks": len({callback.execution_id for callback in evidence.callbacks}),
        "callbacks repeated": len(evidence.callbacks) - len({callback.execution_id for callback in evidence.callbacks}),
        "cancels answered": len(evidence.cancels),
        "sockets closed by cancels": len(closes_ms),
        "slowest close behind a cancel, ms": max(closes_ms, default=None),
        "worker kills": deaths["worker", "killed"],
        "worker restarts asked for": outcome.struck["ReplaceWorker"],
        "Redis kills": outcome.struck["KillRedis"],
        "notifier kills": deaths["notifier", "killed"],
        "connections cut": outcome.cuts,
        "replies dropped": outcome.dropped_replies,
        "orchestrator closed": outcome.struck["CloseOrchestrator"],
        "Redis held": outcome.struck["Hold"],
        "submissions retried": outcome.retries,
        "recoveries": len(recovery_s),
        "recovery p50, s": _quantile(recovery_s, 0.5),
        "recovery p99, s": _quantile(recovery_s, 0.99),
        "with Redis and a worker there: p50, s": _quantile(staffed_s, 0.5),
        "with Redis and a worker there: p99, s": _quantile(staffed_s, 0.99),
        "under fire, s": round(outcome.under_fire_s, 1),
        "quiet after healing, s": round(outcome.quiet_after_s, 1),
        "violations": len(violations),
    }


def in_flight(evidence: Evidence) -> int:
    """Return how many provider calls were in flight at kills: begun by the killed worker, their step not journaled."""
    return sum(
        evidence.in_flight_at_kill(evidence.by_id[execution_id], call) is not None
        for (execution_id, _), calls in evidence.calls_by_step.items()
        for call in calls
    )


def recoveries_s(evidence: Evidence, *, staffed: bool = False) -> list[float]:
    """Return, for each call in flight at a kill that was repeated, the time from the kill to the next call of its step.

    `staffed` leaves out the times in which there was no Redis or no worker that had finished starting.
    """
    found = []
    for (execution_id, _), calls in evidence.calls_by_step.items():
        for call, following in pairwise(calls):
            death = evidence.in_flight_at_kill(evidence.by_id[execution_id], call)
            if death is not None:
                whole_ms = max(0, following.at_ms - death.at_ms)
                found.append((evidence.staffed_ms(death.at_ms, following.at_ms) if staffed else whole_ms) / 1000)
    return found


def cancel_closes_ms(evidence: Evidence) -> list[int]:
    """Return how long each provider's socket that was open when a cancel was answered stayed so, Redis being there."""
    found = []
    for cancel in evidence.cancels:
        for turn in (1, 2):
            for call in evidence.calls_by_step.get((cancel.execution_id, turn), []):
                open_ms = open_behind_ms(evidence, cancel.answered_at_ms, call.at_ms, call.ended_at_ms)
                if cancel.requested and open_ms is not None:
                    found.append(open_ms)
    return found


def show(found: Figures, violations: Sequence[Violation], *, console: Console) -> None:
    """Print the table, and each violation by its name."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in found.items():
        table.add_row(name, "–" if value is None else f"{value:,}", style="red" if _is_bad(name, value) else None)
    console.print(table)
    for violation in violations[:SHOWN_VIOLATIONS]:
        console.print(f"{violation.invariant} {violation.subject}", style="red")
        console.print(f"   expected {violation.expected}\n   saw      {violation.seen}", markup=False)
    if len(violations) > SHOWN_VIOLATIONS:
        console.print(f"… and {len(violations) - SHOWN_VIOLATIONS} more; --json shows all.")
    console.print("The promise holds." if not violations else "The promise is broken.")


def as_json(found: Figures, violations: Sequence[Violation]) -> dict[str, Any]:
    """Return all of it for a program."""
    return {"figures": found, "violations": [asdict(violation) for violation in violations]}


def evidence_json(evidence: Evidence) -> str:
    """Return the evidence as JSON, for whoever looks into a violation."""
    return json.dumps(evidence, default=lambda part: {field.name: getattr(part, field.name) for field in fields(part)})


def _is_bad(name: str, value: Any) -> bool:
    return name in ("lost", "doubled", "gaps", "mix-ups", "tool effects doubled", "violations") and bool(value)


def _doubled_effects(evidence: Evidence) -> int:
    asked = Counter(call.key for call in evidence.tool_calls if call.tool in EFFECT_TOOLS)
    doubled = {key for key, times in asked.items() if times > 1}
    return len(doubled | {key for key, times in evidence.effects.items() if times > 1})


def _in_doubt(response: Any) -> int:
    calls = response["tool_calls"] if response is not None else []
    return sum(call["error"] is not None and call["error"]["code"] == "in_doubt" for call in calls)


def _code(response: Any) -> str | None:
    return response["error"]["code"] if response is not None and response["error"] is not None else None


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that so large a share of them does not exceed."""
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 2) if ordered else None
