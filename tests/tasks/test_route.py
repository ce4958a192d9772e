"""Which model a turn asks, after whatever became of those before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_exec.contract.agent import AgentConfig, ModelChoice
from agent_exec.contract.completion import Usage
from agent_exec.errors import (
    ContentFiltered,
    ContextTooLong,
    ModelNotFound,
    ProviderAuth,
    ProviderBadRequest,
    ProviderError,
    ProviderKeyUnusable,
    ProviderNotConfigured,
    ProviderOverloaded,
    ProviderProtocol,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnreachable,
)
from tasks.route import PATIENCE_S, Ask, GiveUp, Pause, Route

CONFIG = AgentConfig(
    agent_id="desk",
    provider="openai",
    model="first",
    fallbacks=[
        ModelChoice(provider="groq", model="second"),
        ModelChoice(provider="openai", model="first"),  # once is enough
        ModelChoice(provider="local", model="third"),
    ],
)
ALONE = CONFIG.model_copy(update={"fallbacks": []})
NOW_MS = 1_000_000.0

#: Failures in a row, as codes, and what follows: the model that is asked next (`wait`: not at once), or the end.
WAYS = """
provider_overloaded                                              wait first
provider_overloaded provider_overloaded                          second
provider_overloaded provider_overloaded provider_unreachable     wait second
provider_unreachable provider_protocol                           second
provider_timeout                                                 second
provider_timeout provider_timeout                                third
provider_timeout provider_timeout provider_timeout               wait first
provider_key_unusable                                            wait first
provider_auth                                                    second
provider_not_configured                                          second
provider_bad_request                                             second
model_not_found                                                  second
context_too_long                                                 second
context_too_long context_too_long                                third
context_too_long context_too_long context_too_long               end context_too_long
content_filtered                                                 end content_filtered
provider_timeout content_filtered                                end content_filtered
provider_auth model_not_found provider_bad_request               end provider_auth
"""
CASES = [(line[:65].split(), line[65:].strip()) for line in WAYS.strip().splitlines()]
KINDS = {kind.code: kind for kind in ProviderError.__subclasses__()}


def route(config: AgentConfig = CONFIG, *, note: str = "", max_retries: int = 5) -> Route:
    return Route.of(config, note=note, max_retries=max_retries)


def choice(of: Route, *, now_ms: float = NOW_MS) -> ModelChoice:
    way = of.way(now_ms=now_ms)
    assert isinstance(way, Ask), way
    return way.choice


def failure(code: str, *, retry_after_s: float | None = None) -> ProviderError:
    return KINDS[code](f"it says {code}", provider="p", retry_after_s=retry_after_s)


@pytest.mark.parametrize(("codes", "then"), CASES)
def test_what_follows_a_failure(codes: list[str], then: str) -> None:
    on, now_ms = route(), NOW_MS
    for code in codes:
        asked = choice(on, now_ms=now_ms)
        on = on.asked(asked).failed(asked, failure(code), now_ms=now_ms)
        last_ms, now_ms = now_ms, now_ms + PATIENCE_S * 1000
    way = on.way(now_ms=last_ms)
    waits = isinstance(way, Pause) or (isinstance(way, Ask) and on.standings[on.chain.index(way.choice)].failures > 0)
    match way:
        case GiveUp(error):
            assert f"end {error.code}" == then
        case _:
            assert f"{'wait ' if waits else ''}{choice(on, now_ms=now_ms).model}" == then


def test_every_failure_of_a_provider_is_in_the_table() -> None:
    told = {code for codes, _ in CASES for code in codes}
    assert told | {ProviderRateLimited.code} == KINDS.keys()


def test_the_chain_is_the_agents_model_and_its_fallbacks_each_once() -> None:
    assert [model.model for model in route().chain] == ["first", "second", "third"]
    assert choice(route()) == ModelChoice(provider="openai", model="first")


@pytest.mark.parametrize(("pause_s", "model"), [(PATIENCE_S - 1, "first"), (PATIENCE_S + 1, "second")])
def test_a_long_pause_is_not_waited_for_while_another_model_may_answer(pause_s: float, model: str) -> None:
    limited = failure("provider_rate_limited", retry_after_s=pause_s)
    first = choice(route())
    on = route().asked(first).failed(first, limited, now_ms=NOW_MS)
    way = on.way(now_ms=NOW_MS)
    if model == "first":
        assert isinstance(way, Pause)
        assert way.due_in_s == pytest.approx(pause_s)
        assert way.error.code == "provider_rate_limited"
    else:
        assert way == Ask(
            ModelChoice(provider="groq", model="second"),
            {"from": "openai/first", "to": "groq/second", "code": "provider_rate_limited"},
        )


def test_without_a_fallback_a_pause_is_waited_for_as_long_as_it_is() -> None:
    first = choice(route(ALONE))
    on = route(ALONE).failed(first, failure("provider_rate_limited", retry_after_s=600.0), now_ms=NOW_MS)
    way = on.way(now_ms=NOW_MS)
    assert isinstance(way, Pause)
    assert way.due_in_s == pytest.approx(600, abs=0.001)
    assert choice(on, now_ms=NOW_MS + 600_000) == first


def test_all_that_have_to_be_waited_for_are_and_the_soonest_first() -> None:
    on = route()
    for pause_s in (60.0, 20.0, 40.0):
        asked = choice(on)
        on = on.asked(asked).failed(asked, failure("provider_rate_limited", retry_after_s=pause_s), now_ms=NOW_MS)
    way = on.way(now_ms=NOW_MS)
    assert isinstance(way, Pause)
    assert way.due_in_s == pytest.approx(20, abs=0.001)
    assert choice(on, now_ms=NOW_MS + 20_000).model == "second"


def test_a_deferral_is_no_failure() -> None:
    on, first = route(ALONE, max_retries=0), choice(route(ALONE))
    limited = ProviderRateLimited("full", provider="openai")
    for _ in range(100):
        on = on.deferred(first, limited, due_in_s=2.0, now_ms=NOW_MS)
        assert isinstance(on.way(now_ms=NOW_MS), Pause)
        assert choice(on, now_ms=NOW_MS + 2_000) == first
    assert isinstance(on.failed(first, failure("provider_timeout"), now_ms=NOW_MS).way(now_ms=NOW_MS), GiveUp)


def test_retries_are_counted_and_the_first_try_of_a_model_is_none() -> None:
    on, now_ms, asked = route(max_retries=2), NOW_MS, []
    while isinstance(on.way(now_ms=now_ms), Ask):
        model = choice(on, now_ms=now_ms)
        asked.append(model.model)
        on = on.asked(model).failed(model, failure("provider_unreachable"), now_ms=now_ms)
        now_ms += 60_000
    assert asked == ["first", "first", "second", "second", "third"]


def test_what_is_too_long_for_all_comes_round_shorter() -> None:
    on, asked = Route.of(CONFIG, note="", max_retries=99, max_tightened=2), []
    while isinstance(way := on.way(now_ms=NOW_MS), Ask):
        asked.append((way.choice.model, way.tightened))
        on = on.asked(way.choice).failed(way.choice, failure("context_too_long"), now_ms=NOW_MS)
    assert asked == [(model, tightened) for tightened in (0, 1, 2) for model in ("first", "second", "third")]
    assert isinstance(way, GiveUp)
    assert way.error.code == "context_too_long"


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        (["provider_auth", "provider_timeout", "model_not_found"], "provider_timeout"),
        (["context_too_long", "provider_not_configured", "provider_auth"], "context_too_long"),
        (["provider_overloaded", "provider_timeout", "provider_auth"], "provider_overloaded"),
    ],
)
def test_the_end_tells_the_error_that_says_most_and_all_the_others(codes: list[str], code: str) -> None:
    on = route(max_retries=0)
    for one in codes:
        asked = choice(on)
        on = on.asked(asked).failed(asked, failure(one), now_ms=NOW_MS)
    end = on.way(now_ms=NOW_MS)
    assert isinstance(end, GiveUp)
    assert end.error.code == code
    tried = [
        {"model": model, "code": one}
        for model, one in zip(["openai/first", "groq/second", "local/third"], codes, strict=True)
    ]
    assert end.error.detail == {"tried": tried}
    assert str(end.error).startswith(f"it says {code}")
    for one in tried:
        assert one["code"] in str(end.error)


def test_a_note_brings_the_route_back() -> None:
    first = choice(route())
    on = route().asked(first).failed(first, failure("provider_timeout"), now_ms=NOW_MS)
    on = on.wasting(Usage(prompt_tokens=7, completion_tokens=1, total_tokens=8, cost_usd=0.5))
    on = on.wasting(Usage(prompt_tokens=7, completion_tokens=1, total_tokens=8, cost_usd=None))
    again = route(note=on.note)
    assert again == on
    assert again.wasted == Usage(prompt_tokens=14, completion_tokens=2, total_tokens=16, cost_usd=0.5)
    assert len(route().note) < 60, "a turn that nothing has happened in says next to nothing"


@pytest.mark.parametrize(
    "note", ["", "{", "[]", '{"version":2}', '{"version":1,"last":9,"standings":[{},{},{}]}', '{"version":1}']
)
def test_a_note_that_says_nothing_begins_at_the_first_model(note: str) -> None:
    assert route(note=note) == route()


FAILURES = st.sampled_from(
    [
        ContentFiltered,
        ContextTooLong,
        ModelNotFound,
        ProviderAuth,
        ProviderBadRequest,
        ProviderKeyUnusable,
        ProviderNotConfigured,
        ProviderOverloaded,
        ProviderProtocol,
        ProviderRateLimited,
        ProviderTimeout,
        ProviderUnreachable,
    ]
)


@given(
    failures=st.lists(st.tuples(FAILURES, st.none() | st.floats(0, 3_600)), min_size=60, max_size=60),
    max_retries=st.integers(0, 8),
    models=st.integers(1, 9),
    max_tightened=st.integers(0, 2),
)
def test_every_turn_ends_after_a_bounded_number_of_calls(
    failures: list[tuple[type[ProviderError], float | None]], max_retries: int, models: int, max_tightened: int
) -> None:
    fallbacks = [ModelChoice(provider="groq", model=f"m{place}") for place in range(1, models)]
    config = CONFIG.model_copy(update={"fallbacks": fallbacks})
    bounds = {"max_retries": max_retries, "max_tightened": max_tightened}
    on, now_ms, calls, told = Route.of(config, note="", **bounds), NOW_MS, 0, set()
    for kind, retry_after_s in failures:
        way = on.way(now_ms=now_ms)
        if isinstance(way, Pause):
            assert 0 < way.due_in_s <= 3_600.001
            now_ms += way.due_in_s * 1000 + 1
            way = on.way(now_ms=now_ms)
        if isinstance(way, GiveUp):
            assert way.error.code in told
            break
        assert isinstance(way, Ask)
        calls += 1
        told.add(kind.code)
        error = kind("x" * 1_000, provider="p", retry_after_s=retry_after_s)
        on = on.asked(way.choice).failed(way.choice, error, now_ms=now_ms)
        on = Route.of(config, note=on.note, **bounds)  # as if each attempt were another worker's
    assert calls <= models + max_retries
    assert isinstance(on.way(now_ms=now_ms), GiveUp)
    assert len(on.note) < 6_000
