"""The text that a stream keeps; how it is told is in test_step.py."""

from __future__ import annotations

import pytest

from agent_exec.ledger.ledger import Hold, StepRef
from agent_exec.store import Store
from tasks.token_stream import TokenStream


@pytest.mark.parametrize(
    "tokens",
    [["Hello", " ", "Lima"], ["¿Qué", " tal", "? 晴れ"], ["\ud83d", "\ude00"], ["half a pair: \ud83d"], []],
    ids=ascii,
)
async def test_the_text_is_the_tokens_joined(tokens: list[str]) -> None:
    store = Store("redis://127.0.0.1:1")  # which is not asked: the stream is stopped before it tells
    stream = TokenStream(store, Hold(StepRef("acme", "none", "completion.1"), 1), flush_ms=60_000)
    for token in tokens:
        await stream.put(token)
    assert stream.text == "".join(tokens)
    assert await stream.rest() == stream.text
    await store.aclose()
