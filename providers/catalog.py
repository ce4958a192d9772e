"""Every provider that the settings configure, by name, with the key of whoever asks.

Owns which endpoints there are. Does not know where keys come from, nor how an endpoint is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agent_exec.contract.agent import ProviderName
from agent_exec.contract.model import TenantId
from agent_exec.errors import ProviderNotConfigured
from agent_exec.settings import Settings
from providers.chat_provider import ChatEndpoint
from providers.patience import Patience
from providers.provider import Provider
from providers.secrets import KeySource, key_sources

#: The setting that each provider with an SDK of its own waits for.
_KEY_SETTINGS = {"openai": "OPENAI_API_KEY", "groq": "GROQ_API_KEY"}


class Providers:
    """The endpoints of one process, with one client each. Made inside the running loop, and closed in it."""

    def __init__(self, settings: Settings, *, keys: Sequence[KeySource] | None = None) -> None:
        """Make a client for each endpoint that may come to have a key; none is connected before its first call.

        `keys` are asked in turn, the first that has one wins; they are what the settings name, if not given.

        Raises:
            SettingsInvalid: a key could not be sent, or the directory of keys cannot be read.
        """
        self._keys = key_sources(settings) if keys is None else keys
        patience = Patience.of(settings)
        tenants_have_keys = settings.provider_keys_dir is not None or keys is not None
        self._endpoints: dict[ProviderName, ChatEndpoint] = {}
        # The SDKs take up to a second each to import. So that costs the start of the process, of the processes which
        # need it: amid the first call it would hold up every other stream.
        has_openai = settings.openai_api_key is not None or tenants_have_keys
        if has_openai or settings.providers:
            from providers.openai import compatible_endpoint, openai_endpoint

            if has_openai:
                self._endpoints["openai"] = openai_endpoint(base_url=settings.openai_base_url, patience=patience)
            for name, compatible in settings.providers.items():
                self._endpoints[name] = compatible_endpoint(name, settings=compatible, patience=patience)
        if settings.groq_api_key is not None or tenants_have_keys:
            from providers.groq import groq_endpoint

            self._endpoints["groq"] = groq_endpoint(base_url=settings.groq_base_url, patience=patience)

    async def named(self, name: ProviderName, *, tenant_id: TenantId) -> Provider:
        """Return the provider of this name with the tenant's key, or the service's if the tenant has none.

        Raises:
            ProviderNotConfigured: there is no such provider, or no key; the message names the setting that is missing.
            ProviderKeyUnusable: the tenant has a key that cannot be used.
        """
        if endpoint := self._endpoints.get(name):
            for source in self._keys:
                if key := await source.key(name, tenant_id=tenant_id):
                    return endpoint.with_key(key)
        missing = _KEY_SETTINGS.get(name, f"AGENT_EXEC_PROVIDERS with an entry '{name}'")
        message = f"Provider '{name}' is not configured. Set {missing}, and start the workers anew."
        raise ProviderNotConfigured(message, provider=name)

    async def aclose(self) -> None:
        """Close every connection of every provider; streams still open break with `ProviderUnreachable`."""
        await asyncio.gather(*(endpoint.aclose() for endpoint in self._endpoints.values()))
