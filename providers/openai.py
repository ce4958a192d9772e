"""OpenAI's SDK: OpenAI itself, and every endpoint that speaks its wire at another address.

Owns the client and the table from the SDK's exceptions to ours. Does not know how a stream is read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI, DefaultAioHttpClient

from agent_exec.errors import (
    ContentFiltered,
    ProviderBadRequest,
    ProviderProtocol,
    ProviderTimeout,
    ProviderUnreachable,
)
from providers.chat_provider import (
    KEEP_ALIVE_S,
    MAX_CONNECTIONS,
    Ask,
    ChatProvider,
    Patience,
    keep_refusal_short,
)
from providers.failure import TRANSPORT_KINDS, Failures, Kinds
from providers.price import Tariff
from providers.request_body import Dialect

#: Given to the SDK, which otherwise reads the environment behind the settings' back.
OPENAI_URL = "https://api.openai.com/v1"

KINDS: Kinds = {
    **TRANSPORT_KINDS,
    openai.APIStatusError: None,
    openai.APITimeoutError: ProviderTimeout,
    openai.APIConnectionError: ProviderUnreachable,
    openai.APIResponseValidationError: ProviderProtocol,
    openai.LengthFinishReasonError: ProviderProtocol,
    openai.ContentFilterFinishReasonError: ContentFiltered,
    openai.OpenAIError: ProviderProtocol,
    httpx2.TimeoutException: ProviderTimeout,
    httpx2.UnsupportedProtocol: ProviderBadRequest,
    httpx2.InvalidURL: ProviderBadRequest,
    httpx2.DecodingError: ProviderProtocol,
    httpx2.HTTPError: ProviderUnreachable,
}


def openai_provider(*, api_key: str, base_url: str | None, patience: Patience) -> ChatProvider:
    """Return OpenAI itself; `base_url` is its address, if another."""
    client = _client(api_key=api_key, base_url=base_url or OPENAI_URL, patience=patience)
    return ChatProvider(
        "openai",
        ask=_asker(client),
        close=client.close,
        dialect=Dialect(output_limit="max_completion_tokens", strict_schemas=True),
        failures=Failures("openai", kinds=KINDS, secret=api_key),
        tariff=Tariff("openai", provider_id="openai"),
        patience=patience,
    )


def compatible_provider(name: str, *, api_key: str, base_url: str, patience: Patience) -> ChatProvider:
    """Return an endpoint that speaks OpenAI's wire; it is priced only if genai-prices knows its address."""
    client = _client(api_key=api_key, base_url=base_url, patience=patience)
    # The SDK takes both from the environment: they are for OpenAI, and nobody else's business.
    client.organization = None
    client.project = None
    return ChatProvider(
        name,
        ask=_asker(client),
        close=client.close,
        dialect=Dialect(output_limit="max_tokens"),
        failures=Failures(name, kinds=KINDS, secret=api_key),
        tariff=Tariff(name, base_url=base_url),
        patience=patience,
    )


def _client(*, api_key: str, base_url: str, patience: Patience) -> AsyncOpenAI:
    http_client = DefaultAioHttpClient(
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=KEEP_ALIVE_S),
        follow_redirects=False,
        event_hooks={"response": [partial(keep_refusal_short, byte_stream=httpx2.ByteStream, kinds=KINDS)]},
    )
    return AsyncOpenAI(
        api_key=api_key,
        base_url=base_url,
        max_retries=0,
        timeout=httpx2.Timeout(None, connect=patience.connect_s, pool=patience.connect_s),
        # A compressed stream comes in lumps, and grows when it is unpacked.
        default_headers={"Accept-Encoding": "identity"},
        http_client=http_client,
    )


def _asker(client: AsyncOpenAI) -> Ask:
    completions = client.chat.completions.with_streaming_response

    def ask(body: dict[str, Any]) -> Any:
        # As `extra_body` the SDK sends it as it is; as arguments it would walk each message of the conversation in search
        # of names to translate, at more CPU than the rest of the request.
        return completions.create(model=body["model"], messages=[], stream=True, extra_body=body)

    return ask
