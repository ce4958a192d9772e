"""What a tenant's callbacks are signed with: its own secrets, else the service's.

Owns the sources, and what a secret may look like. Does not know how one signs. Where there is none, nothing is sent.
Several at a place sign each by itself, so that a receiver may go from one to the next: add the new one, have the
receiver use it, take the old one away.

Source: Standard Webhooks, "Signature scheme": `whsec_` and base64 of 24 to 64 bytes.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

from agent_exec.contract.model import TenantId
from agent_exec.errors import CallbacksNotConfigured, SettingsInvalid
from agent_exec.settings import Settings

PREFIX = "whsec_"
SECRET_BYTES = range(24, 65)
#: More at a time is no rotation; the header of each request holds a signature by each.
MAX_SECRETS = 5
#: It is a bound on what is read of a file that holds something else.
MAX_FILE_BYTES = 4_096


class CallbackSecrets:
    """The secrets of every tenant. Files are read whenever one is asked for: a change counts at once."""

    def __init__(self, settings: Settings) -> None:
        """Check the service's own, and that the directory of the tenants' is there.

        Raises:
            SettingsInvalid: a secret is none, or the directory cannot be read.
        """
        held = settings.callback_secret
        try:
            self._service = _parsed(held.get_secret_value()) if held is not None else ()
        except ValueError as error:
            raise SettingsInvalid(f"AGENT_EXEC_CALLBACK_SECRET: {error}.") from None
        self._directory = settings.callback_secrets_dir
        if self._directory is not None:
            _look_into(self._directory)

    def of(self, tenant_id: TenantId) -> tuple[str, ...]:
        """Return the secrets that sign what is sent for a tenant, each as `whsec_…`.

        Raises:
            CallbacksNotConfigured: there is none, or the tenant's own cannot be used: another's would not be verified.
        """
        try:
            secrets = self._own(tenant_id) or self._service
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise CallbacksNotConfigured(f"Tenant '{tenant_id}': its callback secret cannot be used: {why}.") from None
        if not secrets:
            raise CallbacksNotConfigured(
                f"Tenant '{tenant_id}' has no secret that its callbacks could be signed with, and none goes unsigned. "
                "Operators: set AGENT_EXEC_CALLBACK_SECRET, or a file of its own in AGENT_EXEC_CALLBACK_SECRETS_DIR."
            )
        return secrets

    def _own(self, tenant_id: TenantId) -> tuple[str, ...]:
        if self._directory is None:
            return ()
        # A tenant's id is of the contract's pattern: it has no dot and no slash in it.
        try:
            with (self._directory / tenant_id).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            if not self._directory.is_dir():
                raise  # a mount that is gone says nothing about whether this tenant has a secret
            return ()
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"its file has more than {MAX_FILE_BYTES} bytes")
        secrets = _parsed(content.decode("utf-8", "replace"))
        if not secrets:
            raise ValueError("its file is empty")
        return secrets


def _look_into(directory: Path) -> None:
    try:
        next(directory.iterdir(), None)
    except OSError as error:
        raise SettingsInvalid(
            f"AGENT_EXEC_CALLBACK_SECRETS_DIR is '{directory}', which cannot be read ({error.strerror}). Mount it there."
        ) from None


def _parsed(text: str) -> tuple[str, ...]:
    """Read secrets between spaces, commas or line ends. No error repeats any of them."""
    secrets = tuple(re.split(r"[\s,]+", text.strip())) if text.strip() else ()
    if len(secrets) > MAX_SECRETS:
        raise ValueError(f"there are {len(secrets)} secrets; at most {MAX_SECRETS} sign at a time")
    for secret in secrets:
        if not secret.startswith(PREFIX):
            raise ValueError(f"a secret does not begin with {PREFIX}")
        encoded = secret.removeprefix(PREFIX)
        try:
            length = len(base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True))
        except ValueError:
            raise ValueError(f"a secret is not base64 behind {PREFIX}") from None
        if length not in SECRET_BYTES:
            raise ValueError(f"a secret has {length} bytes; it has {SECRET_BYTES[0]} to {SECRET_BYTES[-1]}")
    return secrets
