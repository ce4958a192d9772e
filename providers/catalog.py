"""Every provider that the settings configure, by name.

Owns which there are and where their keys come from. Does not know how any of them is asked.
"""

from __future__ import annotations

import asyncio

from pydantic import SecretStr

from agent_exec.contract.agent import ProviderName
from agent_exec.errors import ProviderNotConfigured, SettingsInvalid
from agent_exec.settings import Settings
from providers.chat_provider import Patience
from providers.provider import Provider

#: The setting that each provider with an SDK of its own waits for.
_KEY_SETTINGS = {"openai": "OPENAI_API_KEY", "groq": "GROQ_API_KEY"}


class Providers:
    """The providers of one process, one client each. Made inside the running loop, and closed in it."""

    def __init__(self, settings: Settings) -> None:
        """Make a client for each provider that has a key or an address; none is connected before its first call.

        Raises:
            SettingsInvalid: a key could not be sent.
        """
        patience = Patience.of(settings)
        self._providers: dict[str, Provider] = {}
        # The SDKs take up to a second each to import. So that costs the start of the process, of the processes which
        # need it: amid the first call it would hold up every other stream.
        if settings.openai_api_key is not None or settings.providers:
            from providers.openai import compatible_provider, openai_provider

            if settings.openai_api_key is not None:
                self._providers["openai"] = openai_provider(
                    api_key=_key(settings.openai_api_key, setting="OPENAI_API_KEY"),
                    base_url=settings.openai_base_url,
                    patience=patience,
                )
            for name, endpoint in settings.providers.items():
                key = _key(endpoint.api_key, setting=f"AGENT_EXEC_PROVIDERS, entry '{name}',")
                self._providers[name] = compatible_provider(
                    name, api_key=key, base_url=endpoint.base_url, patience=patience
                )
        if settings.groq_api_key is not None:
            from providers.groq import groq_provider

            self._providers["groq"] = groq_provider(
                api_key=_key(settings.groq_api_key, setting="GROQ_API_KEY"),
                base_url=settings.groq_base_url,
                patience=patience,
            )

    def named(self, name: ProviderName) -> Provider:
        """Return the provider of this name.

        Raises:
            ProviderNotConfigured: there is none; the message names the setting that is missing.
        """
        try:
            return self._providers[name]
        except KeyError:
            missing = _KEY_SETTINGS.get(name, f"AGENT_EXEC_PROVIDERS with an entry '{name}'")
            message = f"Provider '{name}' is not configured. Set {missing}, and start the workers anew."
            raise ProviderNotConfigured(message, provider=name) from None

    async def aclose(self) -> None:
        """Close every connection of every provider."""
        await asyncio.gather(*(provider.aclose() for provider in self._providers.values()))


def _key(secret: SecretStr, *, setting: str) -> str:
    key = secret.get_secret_value().strip()  # a key from a file ends with a line
    if not key or not key.isascii() or not key.isprintable():
        raise SettingsInvalid(
            f"{setting} holds no key: it is empty, or has characters that no header takes. Set it anew."
        )
    return key
