"""The peer's worker: stock Celery on threads, each task one stream by the openai SDK's synchronous loop, told to nobody.

`celery -A benchmarks.sync_stream worker -P threads`.
"""

from __future__ import annotations

from functools import cache

import openai

from benchmarks.hint_app import stock

app = stock
TASK = "sync_stream"


@app.task(name=TASK, shared=False)  # type: ignore[untyped-decorator]  # celery has no types
def stream(address: str, model: str) -> None:
    """Ask for one answer, and join its tokens."""
    chunks = _client(address).chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "weather in Lima?"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    text = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(text), "a stream without a token"


@cache
def _client(address: str) -> openai.OpenAI:
    return openai.OpenAI(api_key="x", base_url=f"{address}/v1", max_retries=0)
