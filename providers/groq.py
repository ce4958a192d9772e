"""Groq's SDK, on the transport of aiohttp.

Owns the client and the table from the SDK's exceptions to ours. Does not know how a stream is read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import groq
import httpx
from groq import AsyncGroq
from httpx_aiohttp import AiohttpTransport
from pydantic import SecretStr

from agent_exec.errors import ProviderBadRequest, ProviderProtocol, ProviderTimeout, ProviderUnreachable
from providers.chat_provider import IDENTITY, NO_KEY, Ask, ChatEndpoint, keep_refusal_short
from providers.connection import NO_COOKIES, open_session
from providers.failure import TRANSPORT_KINDS, Kinds
from providers.patience import Patience
from providers.price import Tariff
from providers.request_body import Dialect

#: Given to the SDK, which otherwise reads the environment behind the settings' back.
GROQ_URL = "https://api.groq.com"
PATH = "/openai/v1/chat/completions"

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


def groq_endpoint(*, base_url: str | None, patience: Patience) -> ChatEndpoint:
    """Return Groq; `base_url` is its address, if another."""
    base_url, tls = base_url or GROQ_URL, httpx.create_ssl_context()
    http_client = httpx.AsyncClient(
        transport=AiohttpTransport(verify=tls, client=partial(open_session, base_url, tls=tls)),
        event_hooks={"response": [partial(keep_refusal_short, byte_stream=httpx.ByteStream, kinds=KINDS)]},
    )
    http_client.cookies.jar.set_policy(NO_COOKIES)
    client = AsyncGroq(
        api_key=NO_KEY,
        base_url=base_url,
        max_retries=0,
        timeout=httpx.Timeout(None, connect=patience.connect_s, pool=patience.connect_s),
        default_headers={"Accept-Encoding": IDENTITY},
        http_client=http_client,
    )
    return ChatEndpoint(
        "groq",
        ask=_asker(client),
        close=client.close,
        dialect=Dialect(output_limit="max_completion_tokens"),
        kinds=KINDS,
        tariff=Tariff("groq", provider_id="groq"),
        patience=patience,
    )


def _asker(client: AsyncGroq) -> Ask:
    async def ask(body: bytes, key: SecretStr) -> Any:
        # As in openai.py; besides, its own arguments know no `stream_options`.
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"}
        return await client.post(PATH, cast_to=httpx.Response, content=body, options={"headers": headers}, stream=True)

    return ask
