"""How much a model reads and writes at once, from the data that came with genai-prices.

Owns the look-up. Does not know what a conversation is. Asks no network.
"""

from __future__ import annotations

from functools import lru_cache

from genai_prices.data_snapshot import get_snapshot

#: The endpoints whose models are what their names say; behind another one a model may be served with a smaller window.
KNOWN_PROVIDERS = frozenset({"openai", "groq"})
#: Bounds the memory for names that a caller makes up.
MAX_REMEMBERED = 1_000


@lru_cache(maxsize=MAX_REMEMBERED)
def context_window(provider: str, model: str) -> int | None:
    """Return the tokens of a prompt and its answer together that `model` takes, or None where nobody knows."""
    if provider not in KNOWN_PROVIDERS:
        return None
    try:
        _, found = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    return found.context_window
