"""When a schedule is next due. Pure.

Owns the reading of cron lines. They mean what Debian's cron makes of them, also where the clocks change: a time that does
not exist comes right after the gap, and one that comes twice counts once, unless the line names every hour.

Source: cron(8), Debian; the library `cronsim`, which follows it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

FIELDS = 5
_ANY_DAY = datetime(2000, 1, 1, tzinfo=UTC)


def check_line(line: str) -> str:
    """Return a cron line as it is.

    Raises:
        ValueError: it is none, or names a moment that never comes.
    """
    if len(line.split()) != FIELDS:
        raise ValueError("a cron line has five fields: minute, hour, day of month, month, day of week")
    try:
        next(CronSim(line, _ANY_DAY))
    except CronSimError as error:
        raise ValueError(f"no cron line: {error}") from None
    except StopIteration:
        raise ValueError("a cron line that names a day which never comes") from None
    return line


def check_zone(name: str) -> str:
    """Return a time zone's name as it is.

    Raises:
        ValueError: the IANA database has no such zone.
    """
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("no time zone of the IANA database, such as Europe/Berlin") from None
    return name


def next_ms(line: str, zone: str, *, after_ms: int) -> int:
    """Return the first moment of `line`, read in `zone`, that comes after `after_ms`; both in ms since 1970."""
    after = datetime.fromtimestamp(after_ms / 1000, ZoneInfo(zone))
    return int(next(CronSim(line, after)).timestamp() * 1000)
