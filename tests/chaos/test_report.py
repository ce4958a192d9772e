"""What the figures count: calls in flight at kills, recoveries, and how long cancelled sockets stayed open."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

from rich.console import Console

from chaos.evidence import Evidence, Outage, Shift
from chaos.invariants import Violation
from chaos.report import as_json, cancel_closes_ms, evidence_json, figures, in_flight, recoveries_s, show
from chaos.run import Outcome
from tests.chaos.test_invariants import GOOD, KILL, REPEATED, STOPPED, called


def outcome(evidence: Evidence) -> Outcome:
    return Outcome(
        evidence=evidence,
        struck=Counter(KillRedis=3),
        cuts=5,
        dropped_replies=7,
        retries=2,
        under_fire_s=61.23,
        quiet_after_s=4.56,
    )


def test_a_call_is_in_flight_at_a_kill_until_its_step_is_journaled() -> None:
    assert in_flight(GOOD) == 0
    assert in_flight(REPEATED) == 1
    assert in_flight(replace(GOOD, deaths=(KILL,))) == 2, "both calls are the killed worker's"
    assert in_flight(replace(GOOD, deaths=(replace(KILL, at_ms=1_500),))) == 1, "the first turn was journaled before"


def test_a_recovery_lasts_from_the_kill_to_the_next_call_of_the_step() -> None:
    assert recoveries_s(GOOD) == []
    assert recoveries_s(REPEATED) == [0.1]
    twice = replace(
        REPEATED,
        calls=(REPEATED.calls[0], called(1, 800, worker="worker-1.1"), called(1, 950, worker="worker-2.1")),
        deaths=(KILL, replace(KILL, name="worker-1.1", at_ms=900)),
    )
    assert recoveries_s(twice) == [0.1, 0.05]


def test_a_recovery_can_leave_out_the_times_without_redis_or_a_worker() -> None:
    absent = replace(
        REPEATED,
        outages=(Outage(from_ms=710, until_ms=730),),
        shifts=(
            Shift(name="worker-0.1", from_ms=0, until_ms=700),
            Shift(name="worker-1.1", from_ms=760, until_ms=9_000),
        ),
    )
    assert recoveries_s(absent) == [0.1]
    assert recoveries_s(absent, staffed=True) == [0.04]


def test_a_cancelled_socket_counts_from_the_cancels_answer() -> None:
    assert cancel_closes_ms(STOPPED) == [200]
    assert cancel_closes_ms(GOOD) == []


def test_the_table_shows_every_figure_and_names_each_violation() -> None:
    violations = [Violation("I1", "e9", "a terminal event", "none")] * 50
    found = figures(outcome(REPEATED), violations)
    console = Console(record=True, width=200, file=None, quiet=True)
    console.quiet = False
    with console.capture() as capture:
        show(found, violations, console=console)
    shown = capture.get()

    assert (found["accepted"], found["never answered"], found["terminal"], found["lost"]) == (1, 1, 1, 50)
    assert (found["provider calls"], found["repeated calls"], found["calls in flight at kills"]) == (3, 1, 1)
    assert (found["worker kills"], found["Redis kills"], found["replies dropped"]) == (1, 3, 7)
    assert (found["recovery p50, s"], found["recovery p99, s"]) == (0.1, 0.1)
    assert all(name in shown for name in found)
    assert "I1 e9" in shown
    assert "and 10 more" in shown
    assert "broken" in shown
    assert len(as_json(found, violations)["violations"]) == 50


def test_a_promise_that_holds_is_told_so() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        show(figures(outcome(GOOD), []), [], console=console)

    assert "The promise holds." in capture.get()


def test_evidence_can_be_kept() -> None:
    kept = json.loads(evidence_json(REPEATED))

    assert len(kept["calls"]) == 3
    assert kept["executions"][0]["log"][0]["event"] == "agent_execution_started"
    assert kept["deaths"][0]["cause"] == "killed"
