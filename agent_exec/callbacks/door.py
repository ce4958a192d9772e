"""Whether a callback is accepted: it may go where it is to go, and there is something to sign it with.

Owns that both are asked. Does not know which door it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from agent_exec.callbacks.destination import Rules
from agent_exec.callbacks.secrets import CallbackSecrets
from agent_exec.contract.model import TenantId
from agent_exec.settings import Settings


@dataclass(frozen=True, slots=True)
class Door:
    """What callbacks are judged by where they are accepted.

    Without `secrets`, as in an orchestrator's own process, it is whoever sends that finds there are none, and sends nothing.
    """

    rules: Rules = field(default_factory=Rules)
    secrets: CallbackSecrets | None = None

    @classmethod
    def of_service(cls, settings: Settings) -> Self:
        """Return the door of a process of the service.

        Raises:
            SettingsInvalid: a secret is none, or the tenants' directory cannot be read.
        """
        return cls(Rules.of(settings), CallbackSecrets(settings))

    @classmethod
    def of_client(cls, settings: Settings) -> Self:
        """Return the door of a process that is a client."""
        return cls(Rules.of(settings))

    def admit(self, url: str, *, tenant_id: TenantId) -> None:
        """Let a tenant's callback to `url` pass.

        Raises:
            CallbackUrlInvalid: it may not go there.
            CallbacksNotConfigured: nothing could sign it.
        """
        self.rules.destination(url)
        if self.secrets is not None:
            self.secrets.of(tenant_id)
