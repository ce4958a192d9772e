from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from providers import price
from providers.price import Tariff


def cost_usd(tariff: Tariff, model: str, *, served_as: str = "?") -> float | None:
    return tariff.cost_usd(model, served_as=served_as, prompt_tokens=1_000_000, cached_tokens=0, completion_tokens=0)


@pytest.mark.parametrize(
    ("tariff", "model"),
    [
        (Tariff("openai", provider_id="openai"), "gpt-4o"),
        (Tariff("openai", provider_id="openai"), "gpt-4o-2024-11-20"),
        (Tariff("groq", provider_id="groq"), "llama-3.3-70b-versatile"),
        (Tariff("azure", base_url="https://x.openai.azure.com/openai/v1"), "gpt-4o"),
    ],
)
def test_known_models_have_a_price(tariff: Tariff, model: str) -> None:
    with capture_logs() as logs:
        assert 0.1 < (cost_usd(tariff, model) or 0) < 100
    assert logs == []


def test_a_deployment_s_name_costs_what_it_serves() -> None:
    azure = Tariff("azure", base_url="https://x.openai.azure.com/openai/v1")
    assert cost_usd(azure, "our-deployment", served_as="gpt-4o") == cost_usd(azure, "gpt-4o")


@pytest.mark.parametrize(
    "tariff", [Tariff("openai", provider_id="openai"), Tariff("local", base_url="http://127.0.0.1:1/v1")]
)
def test_an_unknown_model_costs_null_and_one_warning(tariff: Tariff) -> None:
    with capture_logs() as logs:
        assert [cost_usd(tariff, model) for model in ("one", "two", "one", "two")] == [None] * 4
    assert [(log["log_level"], log["model"]) for log in logs] == [("warning", "one"), ("warning", "two")]


def test_made_up_names_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price, "MAX_UNPRICED", 3)
    tariff = Tariff("local", base_url="http://127.0.0.1:1/v1")
    with capture_logs() as logs:
        assert [cost_usd(tariff, f"model-{n}") for n in range(10)] == [None] * 10
    assert len(logs) == 3
