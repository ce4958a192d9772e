"""Every benchmark runs, at a size at which its figures mean nothing: that it measures, not what."""

from __future__ import annotations

import importlib
import re

import pytest

from benchmarks import simulation
from benchmarks.__main__ import NAMES

#: The arguments that make it small, and what its report must have.
SMALL = {
    "whole_service": ("--executions 2 --rounds 1 --gap-s 0", r"ratio +\d"),
    "provider_stream": ("--executions 2 --rounds 1 --gap-ms 1", r"paced: ours, openai / openai SDK: \d"),
    "hint_cost": ("--tenants 1 5 --stock-up-to 1 --hints 20 --rounds 1", r"ours, 5 tenants / 1: Redis \d"),
    "quiet_tenant": ("--flood 300 --quiet 2 --patience-s 1 --services 26", r"weights 8:4:1, 26 services: 16:8:2"),
    "streams": ("--streams 6 --peer-streams 4 --slots 10 --gap-s 0.01", r"ours, 6 +6 at once"),
    "relay": (
        "--streams 2 --tokens 3 --gap-ms 1 --burst-tokens 20 --rounds 1",
        r"paced: ours +6 of 6 tokens(.|\n)+ours / connections: age p50 \d",
    ),
    "accept": (
        "--requests 20 --callers 2 --calls 1 --gap-ms 0 --rounds 1",
        r"ours / peer: CPU of the process \d(.|\n)+Prefer: wait: whole answer [+-]\d",
    ),
    "chain_step": ("--executions 2 --links 3 --joins 2 --rounds 1", r"chord, ours / stock: worker \d"),
    "notifier_outage": (
        "--outage-s 2 --events-per-s 200 --kills 1 --executions 3",
        r"missing 0, out of order 0; RSS most \d+ MB / goal 150 MB: ratio 0\.\d",
    ),
    "simulation": (
        "--tenants 300 --hints 5000 --in-flight-ticks 20 --sample-tenants 50 --sample-hints 400",
        r"serve \d+ hints of 50 tenants in the same order",
    ),
}


@pytest.mark.timeout(120)  # some start a dozen processes one after another
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_reports(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = SMALL[name]
    importlib.import_module(f"benchmarks.{name}").run(arguments.split())
    told = capsys.readouterr().out
    assert re.search(expected, told), told


def test_the_simulation_repeats_itself_and_loses_nothing() -> None:
    load = simulation.Load(tenants=200, hints=4_000, seed=7, in_flight_ticks=30)
    first, second = simulation.simulate(load), simulation.simulate(load)
    assert sum(first.served) == first.services == 4_000
    assert (first.served, first.late_rounds, first.waits) == (second.served, second.late_rounds, second.waits)


def test_the_fluid_server_divides_by_weight() -> None:
    fluid = simulation.Fluid([1, 3])
    fluid.push(0, 10)
    fluid.push(1, 6)
    for _ in range(8):
        fluid.serve()
    assert (fluid.given(0), fluid.given(1)) == pytest.approx((2, 6))
    fluid.serve()
    assert (fluid.given(0), fluid.given(1)) == pytest.approx((3, 6))
