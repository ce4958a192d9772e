"""JSON Web Tokens: who their issuer says that somebody is.

Owns which keys verify them, and what a token must be and say. Does not know HTTP. The algorithm stands beside the keys and
never comes from a token; nor does a key, or where to get one.

Sources: RFC 7519, "JSON Web Token"; RFC 7517, "JSON Web Key"; RFC 8725, "JSON Web Token Best Current Practices".
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from agent_exec.api_keys import Caller, Role
from agent_exec.contract.model import ID_PATTERN
from agent_exec.errors import SettingsInvalid, Unauthorized
from agent_exec.settings import JwtAlgorithm, Settings
from agent_exec.watched_file import WatchedFile

log = structlog.get_logger(__name__)

#: Headers by which a token brings its own key, or demands what we do not know.
FORBIDDEN_HEADERS = frozenset({"jku", "jwk", "x5u", "x5c", "crit"})
#: As NIST SP 800-131A and RFC 7518, section 3.2, demand.
MIN_RSA_BITS = 2_048
MIN_SECRET_BYTES = 32

_TENANT_ID = re.compile(ID_PATTERN)
_KEY_TYPES: dict[JwtAlgorithm, str] = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP", "HS256": "oct"}

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Key:
    """One key that verifies tokens. `thumbprint` is another where the key is."""

    key: PublicKey | bytes
    thumbprint: str


#: By `kid`; or a single key, whatever a token's `kid` says, where the file holds one that has none.
KeyTable = Mapping[str, Key] | Key


class WebTokens:
    """The tokens of one issuer for this service."""

    def __init__(self, settings: Settings, keys_file: Path) -> None:
        """Read the keys.

        Raises:
            SettingsInvalid: the file is of no use; or the issuer or the audience is missing.
        """
        if not settings.jwt_issuer or not settings.jwt_audience:
            raise SettingsInvalid(
                "AGENT_EXEC_JWT_KEYS_FILE is set, so AGENT_EXEC_JWT_ISSUER and AGENT_EXEC_JWT_AUDIENCE have to be: a token "
                "must say who made it, and for whom."
            )
        read = partial(read_keys, algorithm=settings.jwt_algorithm)
        read(keys_file)
        self._settings = settings
        self._keys: WatchedFile[KeyTable] = WatchedFile(keys_file, name="JWT keys file", read=read, without={})
        self._keys.content()

    def verify(self, presented: str) -> Caller:
        """Return whom the token `presented` names.

        Raises:
            Unauthorized: it is no token, not for us, or does not hold now.
        """
        settings = self._settings
        try:
            header = jwt.get_unverified_header(presented)
            if brought := FORBIDDEN_HEADERS & header.keys():
                raise jwt.InvalidTokenError(f"it has the header {', '.join(sorted(brought))}")
            key = self._key_for(header.get("kid"))
            claims = jwt.decode(
                presented,
                key.key,
                algorithms=[settings.jwt_algorithm],
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
                leeway=settings.jwt_leeway_s,
                options={"require": ["exp", "iss", "aud", settings.jwt_tenant_claim]},
            )
            return self._caller(claims, key)
        except jwt.ExpiredSignatureError:
            raise Unauthorized("The token has expired. Get another one from its issuer.") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            # Whose it would have been is not to be believed, so nothing of it is logged but what is wrong with it.
            log.info("token refused", reason=type(error).__name__)
            raise Unauthorized(
                "The token does not hold here. See its issuer, audience, algorithm and claims."
            ) from None

    def holds(self, caller: Caller) -> bool:
        """Return whether the token that let `caller` in still would: its time is not over, and its key not withdrawn."""
        if caller.expires_at_s is None or time.time() >= caller.expires_at_s:
            return False
        table = self._keys.content()
        return caller.key_id in {key.thumbprint for key in ([table] if isinstance(table, Key) else table.values())}

    def _key_for(self, kid: Any) -> Key:
        table = self._keys.content()
        if isinstance(table, Key):
            return table
        found = table.get(kid) if isinstance(kid, str) else None
        if found is None:
            raise jwt.InvalidKeyError("its key is none of ours")
        return found

    def _caller(self, claims: Mapping[str, Any], key: Key) -> Caller:
        settings = self._settings
        tenant_id, role = claims[settings.jwt_tenant_claim], claims.get(settings.jwt_role_claim, "caller")
        expires_at_s = float(claims["exp"])
        if not isinstance(tenant_id, str) or not _TENANT_ID.fullmatch(tenant_id):
            raise jwt.InvalidTokenError("its tenant is none")
        if role not in get_args(Role):
            raise jwt.InvalidTokenError("its role is none of ours")
        if not math.isfinite(expires_at_s) or expires_at_s > time.time() + settings.jwt_max_lifetime_s:
            raise jwt.InvalidTokenError("it holds for too long")
        return Caller(tenant_id, role, key.thumbprint, expires_at_s=expires_at_s + settings.jwt_leeway_s)


def read_keys(path: Path, *, algorithm: JwtAlgorithm) -> KeyTable:
    """Return the keys in a file.

    Raises:
        SettingsInvalid: it holds none that this algorithm can be verified with.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise _useless(f"{path} cannot be read: {error}") from None
    if "PRIVATE KEY-----" in text:
        raise _useless(f"{path} holds a private key. The shim needs the public one alone")
    if text.lstrip().startswith("{"):
        return _key_set(path, text, algorithm)
    if "-----BEGIN" in text:
        return _pem(path, text, algorithm)
    if algorithm != "HS256":
        raise _useless(f"{path} is neither a JWK set nor a public key in PEM")
    return _key(path, text.strip().encode(), algorithm)


def _key_set(path: Path, text: str, algorithm: JwtAlgorithm) -> KeyTable:
    try:
        entries = json.loads(text)["keys"]
    except (ValueError, KeyError, RecursionError) as error:
        raise _useless(f"{path} is no JWK set: {type(error).__name__}") from None
    table: dict[str, Key] = {}
    for entry in entries if isinstance(entries, list) else []:
        if not _is_wanted(entry, algorithm):
            continue
        if algorithm != "HS256" and "d" in entry:
            raise _useless(f"{path} holds a private key ('d'). The shim needs the public one alone")
        if entry["kid"] in table:
            raise _useless(f"{path} holds two keys with the same kid")
        try:
            key = jwt.PyJWK(entry, algorithm=algorithm).key
        except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
            raise _useless(f"{path} holds a key that is none: {type(error).__name__}") from None
        table[entry["kid"]] = _key(path, key, algorithm)
    if not table:
        raise _useless(f"{path} holds no key with a kid for {algorithm}")
    return table


def _is_wanted(entry: Any, algorithm: JwtAlgorithm) -> bool:
    """Say whether an entry of a key set is for this algorithm: issuers keep keys for others beside them."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("kid"), str)
        and entry.get("kty") == _KEY_TYPES[algorithm]
        and entry.get("use", "sig") == "sig"
        and entry.get("alg", algorithm) == algorithm
    )


def _pem(path: Path, text: str, algorithm: JwtAlgorithm) -> Key:
    try:
        key = load_pem_public_key(text.encode())
    except ValueError:
        raise _useless(f"{path} holds no public key in PEM") from None
    return _key(path, key, algorithm)


def _key(path: Path, key: Any, algorithm: JwtAlgorithm) -> Key:
    """Return a key of the kind that the algorithm takes, and strong enough."""
    match algorithm, key:
        case "RS256", RSAPublicKey() if key.key_size >= MIN_RSA_BITS:
            pass
        case "RS256", RSAPublicKey():
            raise _useless(f"{path} holds an RSA key of {key.key_size} bits, and {MIN_RSA_BITS} are the fewest")
        case "ES256", EllipticCurvePublicKey() if isinstance(key.curve, SECP256R1):
            pass
        case "EdDSA", Ed25519PublicKey():
            pass
        case "HS256", bytes() if len(key) >= MIN_SECRET_BYTES:
            pass
        case "HS256", bytes():
            raise _useless(f"{path} holds a secret of {len(key)} bytes, and {MIN_SECRET_BYTES} are the fewest")
        case _:
            raise _useless(f"{path} holds a key of another kind than AGENT_EXEC_JWT_ALGORITHM={algorithm} takes")
    return Key(key, f"jwt:{hashlib.sha256(_bytes(key)).hexdigest()[:32]}")


def _bytes(key: PublicKey | bytes) -> bytes:
    if isinstance(key, bytes):
        return key
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _useless(why: str) -> SettingsInvalid:
    return SettingsInvalid(f"AGENT_EXEC_JWT_KEYS_FILE: {why}.")
