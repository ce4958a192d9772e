"""OpenAI's SDK: OpenAI itself, and every endpoint that speaks its wire at another address.

Owns the client and the table from the SDK's exceptions to ours. Does not know how a stream is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, assert_never

import httpx2
import openai
from httpx_aiohttp.httpx2 import AiohttpTransport
from openai import AsyncOpenAI
from pydantic import SecretStr

from agent_exec.errors import (
    ContentFiltered,
    ProviderBadRequest,
    ProviderProtocol,
    ProviderTimeout,
    ProviderUnreachable,
)
from agent_exec.settings import CompatibleProvider, KeyHeader
from providers.chat_provider import IDENTITY, NO_KEY, Ask, ChatEndpoint, keep_refusal_short
from providers.connection import NO_COOKIES, open_session
from providers.failure import TRANSPORT_KINDS, Kinds
from providers.patience import Patience
from providers.price import Tariff
from providers.request_body import Dialect

#: Given to the SDK, which otherwise reads the environment behind the settings' back.
OPENAI_URL = "https://api.openai.com/v1"
PATH = "/chat/completions"

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


def openai_endpoint(*, base_url: str | None, patience: Patience) -> ChatEndpoint:
    """Return OpenAI itself; `base_url` is its address, if another."""
    client = _client(base_url=base_url or OPENAI_URL, patience=patience)
    return ChatEndpoint(
        "openai",
        ask=_asker(client, key_header="authorization"),
        close=client.close,
        dialect=Dialect(output_limit="max_completion_tokens", strict_schemas=True),
        kinds=KINDS,
        tariff=Tariff("openai", provider_id="openai"),
        patience=patience,
    )


def compatible_endpoint(name: str, *, settings: CompatibleProvider, patience: Patience) -> ChatEndpoint:
    """Return an endpoint that speaks OpenAI's wire; it is priced only if genai-prices knows its address."""
    client = _client(base_url=settings.base_url, patience=patience, query=settings.query)
    # The SDK takes both from the environment: they are for OpenAI, and nobody else's business.
    client.organization = None
    client.project = None
    return ChatEndpoint(
        name,
        ask=_asker(client, key_header=settings.key_header),
        close=client.close,
        dialect=Dialect(output_limit=settings.output_limit),
        kinds=KINDS,
        tariff=Tariff(name, base_url=settings.base_url),
        patience=patience,
    )


def _client(*, base_url: str, patience: Patience, query: Mapping[str, str] | None = None) -> AsyncOpenAI:
    tls = httpx2.create_ssl_context()
    http_client = httpx2.AsyncClient(
        transport=AiohttpTransport(verify=tls, client=partial(open_session, base_url, tls=tls)),
        event_hooks={"response": [partial(keep_refusal_short, byte_stream=httpx2.ByteStream, kinds=KINDS)]},
    )
    http_client.cookies.jar.set_policy(NO_COOKIES)
    return AsyncOpenAI(
        api_key=NO_KEY,
        base_url=base_url,
        max_retries=0,
        timeout=httpx2.Timeout(None, connect=patience.connect_s, pool=patience.connect_s),
        default_headers={"Accept-Encoding": IDENTITY},
        default_query=query,
        http_client=http_client,
    )


def _asker(client: AsyncOpenAI, *, key_header: KeyHeader) -> Ask:
    async def ask(body: bytes, key: SecretStr) -> Any:
        headers: dict[str, Any]
        match key_header:
            case "authorization":
                headers = {"Authorization": f"Bearer {key.get_secret_value()}"}
            case "api-key":
                headers = {"api-key": key.get_secret_value(), "Authorization": openai.omit}
            case other:
                assert_never(other)
        # The SDK's way to an endpoint whose arguments it does not know: it sends the body as it is, and gives the response
        # unread. As arguments of its own it would walk each message in search of names to translate, at more CPU than all
        # the rest of the request.
        return await client.post(PATH, cast_to=httpx2.Response, content=body, options={"headers": headers}, stream=True)

    return ask
