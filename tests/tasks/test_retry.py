"""Which failed attempt is tried again, and when."""

from __future__ import annotations

import pytest

from agent_exec.errors import (
    AgentNotFound,
    ExecutionError,
    NeighbourUnavailable,
    ProviderAuth,
    ProviderOverloaded,
    ProviderRateLimited,
)
from tasks.next_step import Fail, WaitUntil
from tasks.retry import BASE_S, MAX_S, after_failure, backoff_s


@pytest.mark.parametrize("error", [AgentNotFound("x"), ProviderAuth("x", provider="openai")])
def test_an_error_that_no_retry_mends_fails_at_once(error: ExecutionError) -> None:
    assert after_failure(error, retries=0, max_retries=5) == Fail(error)


@pytest.mark.parametrize(
    "error", [NeighbourUnavailable("x", neighbour="Tool Registry"), ProviderOverloaded("x", provider="groq")]
)
def test_a_passing_error_waits_and_then_fails(error: ExecutionError) -> None:
    assert isinstance(after_failure(error, retries=0, max_retries=2), WaitUntil)
    assert isinstance(after_failure(error, retries=1, max_retries=2), WaitUntil)
    assert after_failure(error, retries=2, max_retries=2) == Fail(error)


def test_the_providers_own_pause_wins_when_longer() -> None:
    error = ProviderRateLimited("x", provider="openai", retry_after_s=20.0)
    waits = after_failure(error, retries=0, max_retries=1)
    assert isinstance(waits, WaitUntil)
    assert waits.due_in_s == 20.0


def test_pauses_grow_and_stay_bounded() -> None:
    for attempt in (1, 2, 3, 10, 1_000):
        longest = max(backoff_s(attempt) for _ in range(300))
        assert longest <= min(MAX_S, BASE_S * 2 ** min(attempt - 1, 16))
    assert max(backoff_s(4) for _ in range(300)) > BASE_S


def test_attempts_count_from_one() -> None:
    with pytest.raises(ValueError, match="from 1"):
        backoff_s(0)
