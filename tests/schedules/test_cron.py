"""When a schedule is due: the cron lines of every day, and the two nights in which clocks change."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_exec.schedules import cron

BERLIN = "Europe/Berlin"


def at_ms(text: str, zone: str = BERLIN, *, fold: int = 0) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp() * 1000)


@pytest.mark.parametrize(
    ("line", "after", "due"),
    [
        ("0 7 * * 1-5", "2026-11-20 07:00", "2026-11-23 07:00"),  # from Friday to Monday
        ("*/15 * * * *", "2026-11-20 07:00", "2026-11-20 07:15"),
        ("0 0 29 2 *", "2026-11-20 07:00", "2028-02-29 00:00"),
        ("30 2 * * *", "2026-03-28 12:00", "2026-03-29 03:00"),  # that night has no 2:30
        ("30 2 * * *", "2026-10-24 12:00", "2026-10-25 02:30"),  # that night has two
    ],
)
def test_a_line_is_due_when_cron_says_so(line: str, after: str, due: str) -> None:
    assert cron.next_ms(line, BERLIN, after_ms=at_ms(after)) == at_ms(due)


def test_a_time_that_comes_twice_counts_once() -> None:
    first = at_ms("2026-10-25 02:30")
    assert cron.next_ms("30 2 * * *", BERLIN, after_ms=first) == at_ms("2026-10-26 02:30")


def test_every_hour_is_every_hour_whatever_the_clocks_do() -> None:
    hours = [at_ms("2026-10-25 00:00")]
    for _ in range(5):
        hours.append(cron.next_ms("0 * * * *", BERLIN, after_ms=hours[-1]))
    assert [later - earlier for earlier, later in pairwise(hours)] == [3_600_000] * 5


@given(after_ms=st.integers(0, 4_000_000_000_000), minute=st.integers(0, 59), step=st.integers(1, 30))
def test_what_is_due_next_lies_ahead(after_ms: int, minute: int, step: int) -> None:
    for line in (f"{minute} * * * *", f"*/{step} * * * *"):
        due_ms = cron.next_ms(line, BERLIN, after_ms=after_ms)
        assert after_ms < due_ms <= after_ms + 3 * 3_600_000
        assert due_ms % 60_000 == 0


@pytest.mark.parametrize(
    "line", ["", "* * * *", "* * * * * *", "60 * * * *", "* * * * BOB", "0 0 30 2 *", "@daily", "0-0-0 * * * *"]
)
def test_what_is_no_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="cron line"):
        cron.check_line(line)


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../../etc/passwd", "/etc/localtime", "Europe/Berlin\x00"])
def test_what_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        cron.check_zone(name)
