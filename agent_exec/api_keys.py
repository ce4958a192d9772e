"""API keys: the file that holds their hashes, written by the CLI, read by the shim.

Owns the text of a key, the file's form, and what it takes to change it or to be let in by it. Does not know HTTP. A key
is shown once, when it is made; the file never holds one.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from agent_exec.contract.execution import Timestamp
from agent_exec.contract.model import ContractModel, TenantId
from agent_exec.errors import NotFound, SettingsInvalid, Unauthorized
from agent_exec.watched_file import WatchedFile

Role = Literal["caller", "operator", "service"]

KEY_ID_CHARS = 12
SECRET_BYTES = 32
#: One in use and its successor: what a change of keys without a gap takes.
MAX_LIVE_KEYS = 2

#: 32 bytes of URL-safe text are 43 characters.
_KEY = re.compile(r"aek_(?P<key_id>[a-z0-9]{8,32})_(?P<secret>[A-Za-z0-9_-]{43,200})")
_TENANT: TypeAdapter[str] = TypeAdapter(TenantId)


class KeyRecord(ContractModel):
    """One key as the file holds it."""

    key_id: Annotated[str, Field(pattern=r"^[a-z0-9]{8,32}$")]
    tenant_id: TenantId
    role: Role
    secret_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created_at: Timestamp
    revoked_at: Timestamp | None = None


class KeyFile(ContractModel):
    """The whole file."""

    keys: list[KeyRecord] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as their credential says."""

    tenant_id: str
    role: Role
    #: The API key's id, or the thumbprint of the key that signed the token.
    key_id: str
    #: When the credential ends by itself, in seconds since 1970; None: never.
    expires_at_s: float | None = None


def create(path: Path, *, tenant_id: str, role: Role = "caller") -> str:
    """Make a key, add its hash to the file, and return the key: the only time that it is seen.

    Raises:
        SettingsInvalid: the file or the tenant's id is not one, or the tenant has two live keys of this role already.
    """
    try:
        _TENANT.validate_python(tenant_id)
    except ValidationError:
        raise SettingsInvalid("A tenant id is 1–63 characters of a-z, 0-9, '_' and '-'. No key was made.") from None
    secret = secrets.token_urlsafe(SECRET_BYTES)
    record = KeyRecord(
        key_id="".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(KEY_ID_CHARS)),
        tenant_id=tenant_id,
        role=role,
        secret_sha256=_digest(secret),
        created_at=datetime.now(UTC),
    )
    with _locked(path):
        held = _read(path).keys if path.exists() else []
        live = [key for key in held if (key.tenant_id, key.role, key.revoked_at) == (tenant_id, role, None)]
        if len(live) >= MAX_LIVE_KEYS:
            ids = ", ".join(key.key_id for key in live)
            raise SettingsInvalid(
                f"Tenant '{tenant_id}' has {len(live)} live {role} keys ({ids}), as many as there may be. "
                "Revoke one first: agent-exec keys revoke KEY_ID."
            )
        _write(path, KeyFile(keys=[*held, record]))
    return f"aek_{record.key_id}_{secret}"


def revoke(path: Path, key_id: str) -> KeyRecord:
    """Revoke a key and return its record; revoking twice changes nothing.

    Raises:
        NotFound: the file has no such key.
        SettingsInvalid: there is no file, or it is not one of keys.
    """
    with _locked(path):
        held = _read(path).keys
        record = next((key for key in held if key.key_id == key_id), None)
        if record is None:
            raise NotFound(f"Key '{key_id}': not in {path}. See: agent-exec keys list.")
        if record.revoked_at is None:
            revoked = record.model_copy(update={"revoked_at": datetime.now(UTC)})
            _write(path, KeyFile(keys=[revoked if key is record else key for key in held]))
            record = revoked
    return record


def list_keys(path: Path) -> list[KeyRecord]:
    """Return every key of the file, oldest first, revoked ones too.

    Raises:
        SettingsInvalid: there is no file, or it is not one of keys.
    """
    return _read(path).keys


class ApiKeys:
    """The keys of a file, looked at again while it is used. Without a file, nobody is let in."""

    def __init__(self, path: Path | None) -> None:
        """Take the file's path; it is read at the first question."""
        self._live: WatchedFile[dict[str, KeyRecord]] = WatchedFile(path, name="API keys file", read=_live, without={})

    def verify(self, presented: str) -> Caller:
        """Return who `presented` is the key of. Unknown id, wrong secret and revoked key take the same path.

        Raises:
            Unauthorized: it is the key of nobody.
        """
        parts = _KEY.fullmatch(presented)
        record = self._live.content().get(parts["key_id"]) if parts else None
        expected = record.secret_sha256 if record else _digest("")
        matches = hmac.compare_digest(_digest(parts["secret"] if parts else presented), expected)
        if record is None or not matches:
            raise Unauthorized("The API key is unknown or revoked. Get one from whoever runs this service.")
        return Caller(tenant_id=record.tenant_id, role=record.role, key_id=record.key_id)

    def holds(self, caller: Caller) -> bool:
        """Return whether the key that let `caller` in still would: asked again while a stream is open."""
        record = self._live.content().get(caller.key_id)
        return record is not None and (record.tenant_id, record.role) == (caller.tenant_id, caller.role)

    def count(self) -> int:
        """Return how many keys let somebody in."""
        return len(self._live.content())


def key_id_of(presented: str) -> str | None:
    """Return the id in the text of a key, None where it is not the text of one."""
    parts = _KEY.fullmatch(presented)
    return parts["key_id"] if parts else None


def _digest(secret: str) -> str:
    """A fast hash will do: the secret is random and long, so there is nothing to guess."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _live(path: Path) -> dict[str, KeyRecord]:
    return {key.key_id: key for key in _read(path).keys if key.revoked_at is None}


def _read(path: Path) -> KeyFile:
    try:
        return KeyFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SettingsInvalid(
            f"There is no API keys file at {path}. Make one: agent-exec keys create --tenant T."
        ) from None
    except OSError as error:
        raise SettingsInvalid(f"The API keys file cannot be read: {error}.") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SettingsInvalid(f"{path} is not a file of API keys: {where}: {first['msg']}.") from None


def _write(path: Path, keys: KeyFile) -> None:
    """Replace the file whole, readable by its owner alone: a reader sees the old keys or the new."""
    draft = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(keys.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other writers out. The lock is on the folder, since the file is replaced under it."""
    folder = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise SettingsInvalid(f"The API keys file cannot be written: {error}. Nothing was changed.") from error
    finally:
        if folder != -1:
            os.close(folder)
