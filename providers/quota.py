"""What a provider tells of its limits in the head of an answer, or of a refusal: `x-ratelimit-*` → `Quota`.

Owns the reading of these headers. Does not know what is made of them, nor the pause that a refusal asks for (failure.py).
They are told by whoever serves the wire, so a value that cannot be is as good as none. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MINUTE_S = 60.0
DAY_S = 86_400.0
#: A limit beyond this limits nothing, and numbers up to here stay exact on their way through Redis.
MAX_LIMIT = 10**12

#: Seconds of each unit of a duration as Go writes it, which OpenAI and Groq do: `6m0s`, `1m26.4s`, `20ms`.
_UNITS_S: Mapping[str, float] = {
    "d": DAY_S,
    "h": 3_600,
    "m": 60,
    "s": 1,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}
_PART = r"(\d{1,12}(?:\.\d{1,12})?)(d|h|ms|m|s|us|µs|ns)"
_DURATION = re.compile(rf"(?:{_PART})+", re.ASCII)
_COUNT = re.compile(r"\d{1,13}(?:\.0{1,6})?", re.ASCII)
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,12})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one key may use of one kind: `limit` in each `period_s`, of which `remaining` was left at the answer's head."""

    limit: int
    remaining: int
    period_s: float


@dataclass(frozen=True, slots=True)
class Quota:
    """What an answer told: requests and tokens, each if it was told."""

    requests: Allowance | None
    tokens: Allowance | None


def read_quota(headers: Mapping[str, str]) -> Quota | None:
    """Return what `headers` tell; None if they tell neither kind. Names are looked up in small letters.

    Requests are counted by the minute, or by the day: Groq and OpenAI's lower tiers name a day's under the same header. A
    minute's is full again within the minute; only a day's takes longer. What has used so little of its day that it takes
    less is taken for a minute's, and corrected by what remains long before it matters. Tokens are a minute's everywhere.

    Source: OpenAI, "Rate limits", Rate limits in headers; Groq, "Rate Limits", Rate limit headers.
    """
    full_in_s = duration_s(headers.get("x-ratelimit-reset-requests"))
    requests = _allowance(headers, "requests", DAY_S if full_in_s is not None and full_in_s > MINUTE_S else MINUTE_S)
    tokens = _allowance(headers, "tokens", MINUTE_S)
    return None if requests is None and tokens is None else Quota(requests, tokens)


def duration_s(text: str | None) -> float | None:
    """Return a duration in seconds: `6m0s`, `20ms`, or a plain number of seconds; None if it is neither."""
    told = (text or "").strip()
    if _SECONDS.fullmatch(told):
        return float(told)
    if not _DURATION.fullmatch(told):
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(_PART, told))


def _allowance(headers: Mapping[str, str], kind: str, period_s: float) -> Allowance | None:
    limit = _count(headers.get(f"x-ratelimit-limit-{kind}"))
    if not limit:  # also a limit of nothing, which no answer would have come under
        return None
    remaining = _count(headers.get(f"x-ratelimit-remaining-{kind}"))
    return Allowance(limit, limit if remaining is None else min(remaining, limit), period_s)


def _count(text: str | None) -> int | None:
    told = (text or "").strip()
    if not _COUNT.fullmatch(told):
        return None
    count = int(told.partition(".")[0])
    return count if count <= MAX_LIMIT else None
