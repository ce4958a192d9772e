"""The one way in: whoever asks has a credential, and is a caller by it, whatever kind it is.

Owns which kinds there are, how a credential is carried, and what becomes of those that do not hold. Does not know what a
caller may do: operation.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from agent_exec.api_keys import ApiKeys, Caller, key_id_of
from agent_exec.errors import TooManyAttempts, Unauthorized
from agent_exec.settings import Settings
from api_shim.failed_attempts import FailedAttempts, name_of_address
from api_shim.web_tokens import WebTokens

#: How every API key begins; anything else is taken for a token, where there may be any.
KEY_MARK = "aek_"


class Kind(Protocol):
    """One kind of credential."""

    def verify(self, presented: str) -> Caller:
        """Return whose it is.

        Raises:
            Unauthorized: it does not hold.
        """

    def holds(self, caller: Caller) -> bool:
        """Return whether it still lets in one whom it let in before."""


class Credentials:
    """Who may come in."""

    def __init__(self, settings: Settings) -> None:
        """Open both kinds.

        Raises:
            SettingsInvalid: tokens are configured, and cannot be verified.
        """
        self._api_keys = ApiKeys(settings.api_keys_file)
        self._tokens = None if settings.jwt_keys_file is None else WebTokens(settings, settings.jwt_keys_file)
        self._failed = FailedAttempts(per_minute=settings.api_failed_attempts)

    @property
    def lets_nobody_in(self) -> bool:
        """Whether there is no credential at all."""
        return self._tokens is None and self._api_keys.count() == 0

    def admit(self, authorizations: Sequence[str], *, host: str) -> Caller:
        """Return who asks, by the `Authorization` headers of a request from the address `host`.

        Raises:
            Unauthorized: there is no credential, or it does not hold.
            TooManyAttempts: nor did many others of this address, or for this key.
        """
        scheme, _, presented = (authorizations[0] if len(authorizations) == 1 else "").partition(" ")
        presented = presented.strip()
        if scheme.lower() != "bearer" or not presented:
            raise Unauthorized("Send one API key or token: Authorization: Bearer aek_….")
        kind: Kind = self._api_keys
        if self._tokens is not None and not presented.startswith(KEY_MARK):
            kind = self._tokens
        try:
            return kind.verify(presented)
        except Unauthorized:
            self._count(presented, host)
            raise

    def holds(self, caller: Caller) -> bool:
        """Return whether the credential that let `caller` in still would: asked again while a stream is open."""
        return any(kind.holds(caller) for kind in (self._api_keys, self._tokens) if kind is not None)

    def _count(self, presented: str, host: str) -> None:
        key_id = key_id_of(presented)
        names = [name_of_address(host), *([] if key_id is None else [f"key {key_id}"])]
        if self._failed.count(names, now_s=time.monotonic()):
            raise TooManyAttempts("Too many credentials that do not hold came from this address, or for this key.")
