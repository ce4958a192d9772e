"""Which time zone a city keeps.

Owns the names of cities that are no name of a zone. Does not know the time.
"""

from __future__ import annotations

from functools import cache
from zoneinfo import ZoneInfo, available_timezones

_CITIES = {
    "amsterdam": "Europe/Amsterdam",
    "bangalore": "Asia/Kolkata",
    "barcelona": "Europe/Madrid",
    "beijing": "Asia/Shanghai",
    "boston": "America/New_York",
    "cape town": "Africa/Johannesburg",
    "delhi": "Asia/Kolkata",
    "geneva": "Europe/Zurich",
    "hamburg": "Europe/Berlin",
    "miami": "America/New_York",
    "milan": "Europe/Rome",
    "montreal": "America/Toronto",
    "mumbai": "Asia/Kolkata",
    "munich": "Europe/Berlin",
    "new delhi": "Asia/Kolkata",
    "osaka": "Asia/Tokyo",
    "rio de janeiro": "America/Sao_Paulo",
    "san francisco": "America/Los_Angeles",
    "seattle": "America/Los_Angeles",
    "washington": "America/New_York",
}


class UnknownPlace(ValueError):
    """No time zone by this name."""


#: Other zones, such as Mexico/General, are old names of these and no cities.
_CONTINENTS = ("Africa/", "America/", "Asia/", "Atlantic/", "Australia/", "Europe/", "Indian/", "Pacific/", "UTC")


@cache
def _zones_by_city() -> dict[str, str]:
    names = sorted(name for name in available_timezones() if name.startswith(_CONTINENTS))
    return {name.rpartition("/")[2].replace("_", " ").lower(): name for name in names}


def zone_of(place: str) -> ZoneInfo:
    """Return the zone of a city or of a name such as `Europe/Oslo`.

    Raises:
        UnknownPlace: nobody here knows it.
    """
    asked = " ".join(place.replace("_", " ").lower().split())
    name = _CITIES.get(asked) or _zones_by_city().get(asked.rpartition("/")[2])
    if name is None:
        raise UnknownPlace(f"unknown place {place!r}")
    return ZoneInfo(name)
