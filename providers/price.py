"""What tokens cost: a model's name and counts → dollars, from prices that came with the package.

Owns the look-up and its warning. Does not know who spends, or what budgets there are. Asks no network.
"""

from __future__ import annotations

import structlog
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot

#: Names to remember as warned about; a server that makes up names gets no more of our memory than this.
MAX_UNPRICED = 1_000

log = structlog.get_logger(__name__)


class Tariff:
    """The prices of one provider. A model that nobody knows costs None, never 0."""

    def __init__(self, provider: str, *, provider_id: str | None = None, base_url: str | None = None) -> None:
        """Take our name of the provider and, to find its prices, genai-prices' name or the address it serves."""
        self._provider = provider
        self._provider_id = provider_id
        self._base_url = base_url
        self._unpriced: set[str] = set()
        get_snapshot()  # loads the price list, a third of a second, now and not amid a stream

    def cost_usd(
        self, model: str, *, served_as: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int
    ) -> float | None:
        """Return the price of one call in dollars, or None and, the first time, a warning.

        `served_as` is the provider's word for the model, asked when `model` has no price: a deployment's name has none.
        `cached_tokens` are part of `prompt_tokens`.
        """
        usage = Usage(
            input_tokens=prompt_tokens,
            cache_read_tokens=min(cached_tokens, prompt_tokens),
            output_tokens=completion_tokens,
        )
        if model not in self._unpriced:
            for name in dict.fromkeys((model, served_as)):
                try:
                    if self._provider_id is not None:
                        return float(calc_price(usage, name, provider_id=self._provider_id).total_price)
                    return float(calc_price(usage, name, provider_api_url=self._base_url).total_price)
                except LookupError:
                    continue
            if len(self._unpriced) < MAX_UNPRICED:
                self._unpriced.add(model)
                log.warning("model without a price, its cost is null", provider=self._provider, model=model)
        return None
