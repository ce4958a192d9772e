"""What an execution's limits leave for a call, whatever has been used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_exec.contract.agent import Limits
from agent_exec.contract.completion import CompletionRequest, Usage
from agent_exec.errors import LimitExceeded
from tasks.allowance import MIN_OUTPUT_TOKENS, WorstCase, within_limits

COUNT = st.integers(0, 20_000)
MONEY = st.floats(0, 2)


def priced(prompt_tokens: int, usd_per_token: float | None) -> WorstCase:
    def worst_case(request: CompletionRequest) -> Usage:
        total = prompt_tokens + request.max_output_tokens
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=request.max_output_tokens,
            total_tokens=total,
            cost_usd=None if usd_per_token is None else total * usd_per_token,
        )

    return worst_case


def asking(max_output_tokens: int) -> CompletionRequest:
    return CompletionRequest(provider="openai", model="m", messages=[], max_output_tokens=max_output_tokens)


@given(
    prompt_tokens=COUNT,
    wanted=st.integers(1, 20_000),
    usd_per_token=st.none() | st.floats(0, 0.001),
    used_tokens=COUNT,
    used_usd=MONEY,
    max_tokens=st.integers(1, 50_000),
    max_usd=MONEY,
)
def test_what_is_asked_for_fits_and_is_as_much_as_fits(
    prompt_tokens: int,
    wanted: int,
    usd_per_token: float | None,
    used_tokens: int,
    used_usd: float,
    max_tokens: int,
    max_usd: float,
) -> None:
    worst_case = priced(prompt_tokens, usd_per_token)
    used = Usage(total_tokens=used_tokens, cost_usd=used_usd)
    limits = Limits(max_total_tokens=max_tokens, max_cost_usd=max_usd)

    def fits(output: int) -> bool:
        worst = worst_case(asking(output))
        cost_usd = worst.cost_usd or 0.0
        return worst.total_tokens <= max_tokens - used_tokens and (
            usd_per_token is None or cost_usd <= max_usd - used_usd
        )

    least = min(wanted, MIN_OUTPUT_TOKENS)
    if not fits(least):
        with pytest.raises(LimitExceeded, match=r"limits\.max_(total_tokens|cost_usd) is"):
            within_limits(asking(wanted), worst_case=worst_case, used=used, limits=limits)
        return
    request, worst = within_limits(asking(wanted), worst_case=worst_case, used=used, limits=limits)
    most = request.max_output_tokens
    assert least <= most <= wanted
    assert fits(most)
    assert most == wanted or not fits(most + 1)
    assert worst == worst_case(request)


def test_money_of_a_model_without_a_price_is_not_limited() -> None:
    limits = Limits(max_cost_usd=0.0)
    request, worst = within_limits(asking(100), worst_case=priced(10, None), used=Usage(cost_usd=None), limits=limits)
    assert (request.max_output_tokens, worst.cost_usd) == (100, None)


def test_a_short_answer_that_was_wanted_is_no_waste() -> None:
    request, _ = within_limits(asking(1), worst_case=priced(10, None), used=Usage(), limits=Limits(max_total_tokens=11))
    assert request.max_output_tokens == 1
    with pytest.raises(LimitExceeded, match=r"limits\.max_total_tokens is 10\."):
        within_limits(asking(1), worst_case=priced(10, None), used=Usage(), limits=Limits(max_total_tokens=10))
