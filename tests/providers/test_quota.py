"""What heads tell of limits: as OpenAI and Groq write it, as others do, and as nobody should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.provider import Provider
from providers.quota import DAY_S, MAX_LIMIT, MINUTE_S, Allowance, Quota, duration_s, read_quota
from tests.providers.asking import failure, request
from tests.providers.wire_server import Exchange, WireServer, text_turn

OPENAI = {
    "x-ratelimit-limit-requests": "500",
    "x-ratelimit-remaining-requests": "499",
    "x-ratelimit-reset-requests": "120ms",
    "x-ratelimit-limit-tokens": "30000",
    "x-ratelimit-remaining-tokens": "29976",
    "x-ratelimit-reset-tokens": "48ms",
}
GROQ = {
    "x-ratelimit-limit-requests": "14400",
    "x-ratelimit-remaining-requests": "14370",
    "x-ratelimit-reset-requests": "2m59.56s",
    "x-ratelimit-limit-tokens": "18000",
    "x-ratelimit-remaining-tokens": "17997",
    "x-ratelimit-reset-tokens": "7.66s",
}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("2m59.56s", 179.56),
        ("1h2m3.5s", 3723.5),
        ("1d", 86_400.0),
        ("854µs", 854e-6),
        ("854us", 854e-6),
        ("0s", 0.0),
        ("12", 12.0),
        ("0.5", 0.5),
        (" 1s ", 1.0),
        *[
            (odd, None)
            for odd in ("", "s", "-1s", "1 s", "1x", "1s2", "1e3s", "nan", "inf", "1,5s", "٣s", "9" * 40 + "s")
        ],
        (None, None),
    ],
)
def test_a_duration_is_read_as_go_writes_it(text: str | None, seconds: float | None) -> None:
    assert duration_s(text) == (None if seconds is None else pytest.approx(seconds))


def test_openais_are_by_the_minute() -> None:
    assert read_quota(OPENAI) == Quota(Allowance(500, 499, MINUTE_S), Allowance(30_000, 29_976, MINUTE_S))


def test_groqs_requests_are_by_the_day() -> None:
    assert read_quota(GROQ) == Quota(Allowance(14_400, 14_370, DAY_S), Allowance(18_000, 17_997, MINUTE_S))


def test_a_days_that_is_hardly_used_is_taken_for_a_minutes() -> None:
    """What is left of it still bounds it; and long before that is used up, it tells what it is."""
    hardly = read_quota({**GROQ, "x-ratelimit-remaining-requests": "14399", "x-ratelimit-reset-requests": "6s"})
    assert hardly is not None
    assert hardly.requests == Allowance(14_400, 14_399, MINUTE_S)


def test_one_kind_alone_may_be_told() -> None:
    tokens = {name: value for name, value in OPENAI.items() if name.endswith("-tokens")}
    assert read_quota(tokens) == Quota(None, Allowance(30_000, 29_976, MINUTE_S))


def test_what_is_left_is_at_most_the_limit() -> None:
    assert read_quota({"x-ratelimit-limit-requests": "5"}) == Quota(Allowance(5, 5, MINUTE_S), None)
    told = {"x-ratelimit-limit-requests": "5", "x-ratelimit-remaining-requests": "9"}
    assert read_quota(told) == Quota(Allowance(5, 5, MINUTE_S), None)


@pytest.mark.parametrize(
    "odd", ["", "0", "-5", "five", "1e9", "0x10", "NaN", "9" * 30, str(MAX_LIMIT + 1), "٣", "5;w=60"]
)
def test_a_limit_that_cannot_be_is_none(odd: str) -> None:
    assert read_quota({"x-ratelimit-limit-requests": odd, "x-ratelimit-remaining-requests": "5"}) is None


@given(
    st.dictionaries(st.sampled_from(sorted(OPENAI)), st.text() | st.sampled_from(["1", "1.0", "0", "1s", "-1", "61"]))
)
def test_whatever_is_told_is_no_error(headers: dict[str, str]) -> None:
    quota = read_quota(headers)
    for allowance in (quota.requests, quota.tokens) if quota is not None else ():
        if allowance is not None:
            assert 0 <= allowance.remaining <= allowance.limit <= MAX_LIMIT
            assert allowance.limit > 0
            assert allowance.period_s in (MINUTE_S, DAY_S)


async def test_a_call_tells_what_the_head_of_its_answer_told(wire: WireServer, provider: Provider) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(text_turn("hi"), headers=OPENAI)

    wire.answer = answer
    call = provider.stream(request())
    assert call.quota is None, "nothing was told yet"
    async with call as deltas:
        assert call.quota == read_quota(OPENAI), "at the head, before the first delta"
        assert [delta async for delta in deltas]


async def test_a_call_tells_what_the_head_of_a_refusal_told(wire: WireServer, provider: Provider) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.refuse(429, {"message": "slow down"}, headers=GROQ)

    wire.answer = answer
    call = provider.stream(request())
    with pytest.raises(Exception, match="too many"):
        await call.__aenter__()
    assert call.quota == read_quota(GROQ)


async def test_a_head_that_tells_nothing_is_no_quota(wire: WireServer, provider: Provider) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.reset()

    wire.answer = answer
    await failure(provider)
    call = provider.stream(request())
    with pytest.raises(Exception, match="reached"):
        await call.__aenter__()
    assert call.quota is None
