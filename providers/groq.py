"""Groq's SDK, on the transport of aiohttp.

Owns the client and the table from the SDK's exceptions to ours. Does not know how a stream is read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import groq
import httpx
from groq import AsyncGroq, DefaultAioHttpClient

from agent_exec.errors import ProviderBadRequest, ProviderProtocol, ProviderTimeout, ProviderUnreachable
from providers.chat_provider import KEEP_ALIVE_S, MAX_CONNECTIONS, Ask, ChatProvider, Patience, keep_refusal_short
from providers.failure import TRANSPORT_KINDS, Failures, Kinds
from providers.price import Tariff
from providers.request_body import Dialect

#: Given to the SDK, which otherwise reads the environment behind the settings' back. It adds `/openai/v1` itself.
GROQ_URL = "https://api.groq.com"

KINDS: Kinds = {
    **TRANSPORT_KINDS,
    groq.APIStatusError: None,
    groq.APITimeoutError: ProviderTimeout,
    groq.APIConnectionError: ProviderUnreachable,
    groq.APIResponseValidationError: ProviderProtocol,
    groq.GroqError: ProviderProtocol,
    httpx.TimeoutException: ProviderTimeout,
    httpx.UnsupportedProtocol: ProviderBadRequest,
    httpx.InvalidURL: ProviderBadRequest,
    httpx.DecodingError: ProviderProtocol,
    httpx.HTTPError: ProviderUnreachable,
}


def groq_provider(*, api_key: str, base_url: str | None, patience: Patience) -> ChatProvider:
    """Return Groq; `base_url` is its address, if another."""
    http_client = DefaultAioHttpClient(
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=KEEP_ALIVE_S),
        follow_redirects=False,
        event_hooks={"response": [partial(keep_refusal_short, byte_stream=httpx.ByteStream, kinds=KINDS)]},
    )
    client = AsyncGroq(
        api_key=api_key,
        base_url=base_url or GROQ_URL,
        max_retries=0,
        timeout=httpx.Timeout(None, connect=patience.connect_s, pool=patience.connect_s),
        # A compressed stream comes in lumps, and grows when it is unpacked.
        default_headers={"Accept-Encoding": "identity"},
        http_client=http_client,
    )
    return ChatProvider(
        "groq",
        ask=_asker(client),
        close=client.close,
        dialect=Dialect(output_limit="max_completion_tokens"),
        failures=Failures("groq", kinds=KINDS, secret=api_key),
        tariff=Tariff("groq", provider_id="groq"),
        patience=patience,
    )


def _asker(client: AsyncGroq) -> Ask:
    completions = client.chat.completions.with_streaming_response

    def ask(body: dict[str, Any]) -> Any:
        # As `extra_body` the SDK sends it as it is: its own arguments know no `stream_options`, and it would walk each
        # message of the conversation in search of names to translate, at more CPU than the rest of the request.
        return completions.create(model=body["model"], messages=[], stream=True, extra_body=body)

    return ask
