"""Where a provider's key comes from: the tenant's own, else the service's.

Owns the sources, their order, and what a key may look like. Does not know what a key opens. A vault is one more `KeySource`.
A key is asked for at every call and goes into the request alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import SecretStr

from agent_exec.contract.agent import ProviderName
from agent_exec.contract.model import TenantId
from agent_exec.errors import ProviderKeyUnusable, SettingsInvalid
from agent_exec.settings import Settings

#: A key that was changed, added or taken away counts this much later at the latest.
FRESH_S = 2.0
#: Answers of files to remember; two or three hundred bytes each.
MAX_REMEMBERED = 10_000
#: The longest are signed tokens of some kilobytes. It is a bound on what is read of a file that holds something else.
MAX_KEY_BYTES = 8_192
#: Enough that no two keys of a fleet share one, and nothing to go back to a key from.
FINGERPRINT_CHARS = 16

log = structlog.get_logger(__name__)


class KeySource(Protocol):
    """One place that may have a key."""

    async def key(self, provider: ProviderName, *, tenant_id: TenantId) -> SecretStr | None:
        """Return the key of `tenant_id` for `provider`; None if this source has none, and the next is asked.

        Raises:
            ProviderKeyUnusable: there is one, and it cannot be had: the next source's would be billed to another.
        """
        ...


class ServiceKeys:
    """The service's own keys, from the settings: the same for every tenant."""

    def __init__(self, settings: Settings) -> None:
        """Check all.

        Raises:
            SettingsInvalid: one could not be sent.
        """
        held = {
            "OPENAI_API_KEY": ("openai", settings.openai_api_key),
            "GROQ_API_KEY": ("groq", settings.groq_api_key),
            **{
                f"AGENT_EXEC_PROVIDERS, entry '{name}',": (name, endpoint.api_key)
                for name, endpoint in settings.providers.items()
            },
        }
        self._keys: dict[ProviderName, SecretStr] = {}
        for setting, (provider, secret) in held.items():
            if secret is not None:
                try:
                    self._keys[provider] = _checked(secret.get_secret_value())
                except ValueError as error:
                    raise SettingsInvalid(f"{setting} holds no key: {error}. Set it anew.") from None

    async def key(self, provider: ProviderName, *, tenant_id: TenantId) -> SecretStr | None:
        """See `KeySource.key`."""
        return self._keys.get(provider)


class KeyFiles:
    """Tenants' keys as files `<directory>/<tenant>/<provider>`, the way orchestrators of containers mount secrets."""

    def __init__(self, directory: Path, *, now_s: Callable[[], float] = time.monotonic) -> None:
        """Take the directory, which has to be there.

        Raises:
            SettingsInvalid: it is not, or may not be entered.
        """
        try:
            directory.stat()
            next(directory.iterdir(), None)
        except OSError as error:
            raise SettingsInvalid(
                f"AGENT_EXEC_PROVIDER_KEYS_DIR is '{directory}', which cannot be read ({error.strerror}). Mount it there."
            ) from None
        self._directory = directory
        self._now_s = now_s
        self._remembered: OrderedDict[tuple[TenantId, ProviderName], tuple[float, SecretStr | None]] = OrderedDict()

    async def key(self, provider: ProviderName, *, tenant_id: TenantId) -> SecretStr | None:
        """See `KeySource.key`."""
        at = tenant_id, provider
        remembered = self._remembered.get(at)
        if remembered is not None and self._now_s() - remembered[0] < FRESH_S:
            return remembered[1]
        read_at_s = self._now_s()
        try:
            key = await asyncio.to_thread(self._read, tenant_id, provider)
        except (OSError, ValueError) as error:
            self._remembered.pop(at, None)
            why = error.strerror if isinstance(error, OSError) else str(error)
            # The path is the operator's business; the message goes to the tenant too.
            log.warning("a tenant's key cannot be used", provider=provider, tenant_id=tenant_id, why=why)
            message = f"The key of tenant '{tenant_id}' for provider '{provider}' cannot be used: {why}. Set it anew."
            raise ProviderKeyUnusable(message, provider=provider) from None
        self._remembered[at] = read_at_s, key
        self._remembered.move_to_end(at)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return key

    def _read(self, tenant_id: TenantId, provider: ProviderName) -> SecretStr | None:
        # Both names are of the contract's patterns: neither has a dot or a slash in it.
        try:
            with (self._directory / tenant_id / provider).open("rb") as file:
                content = file.read(MAX_KEY_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            if not self._directory.is_dir():
                raise  # a mount that is gone says nothing about whether this tenant has a key
            return None
        if len(content) > MAX_KEY_BYTES:
            raise ValueError(f"it is longer than {MAX_KEY_BYTES} bytes")
        return _checked(content.decode("utf-8", "replace"))


def key_sources(settings: Settings) -> Sequence[KeySource]:
    """Return the sources that the settings name, in the order in which they are asked.

    Raises:
        SettingsInvalid: see `ServiceKeys` and `KeyFiles`.
    """
    service = ServiceKeys(settings)
    if settings.provider_keys_dir is None:
        return (service,)
    return (KeyFiles(settings.provider_keys_dir), service)


def fingerprint(key: SecretStr) -> str:
    """Return a name for `key` that may be shown and stored."""
    return hashlib.sha256(key.get_secret_value().encode()).hexdigest()[:FINGERPRINT_CHARS]


def _checked(text: str) -> SecretStr:
    key = text.strip()  # a key from a file ends with a line
    if not key:
        raise ValueError("it is empty")
    if not key.isascii() or not key.isprintable():
        raise ValueError("it has characters that no header takes")
    return SecretStr(key)
