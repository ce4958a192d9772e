"""An issuer of tokens, played: keys of every kind, and tokens signed with them.

Owns keys and signing. Does not know who verifies.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import get_default_algorithms

ISSUER = "https://id.example"
AUDIENCE = "agent-execution"
SECRET = b"a secret of the issuer, long enough for HS256"


class Issuer:
    """One who signs with one algorithm; `add_key` begins another key, which signs from then on."""

    def __init__(self, algorithm: str = "EdDSA") -> None:
        self.algorithm = algorithm
        self.keys: dict[str, Any] = {}
        self.kid = ""
        self.add_key("first")

    def add_key(self, kid: str, key: Any = None) -> None:
        """Sign with a new key from now on."""
        self.kid = kid
        self.keys[kid] = key if key is not None else new_key(self.algorithm)

    def write(self, path: Path, *kids: str) -> None:
        """Publish the keys named, or all, as a JWK set."""
        entries = [self.public(kid) for kid in kids or self.keys]
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps({"keys": entries}))
        draft.rename(path)

    def public(self, kid: str) -> dict[str, Any]:
        """Return a key as it is published."""
        key = self.keys[kid]
        of = get_default_algorithms()[self.algorithm]
        made = of.to_jwk(key if isinstance(key, bytes) else key.public_key(), as_dict=True)  # type: ignore[call-overload]
        return {**made, "kid": kid, "use": "sig", "alg": self.algorithm}

    def pem(self, *, private: bool = False) -> str:
        """Return the key that signs now, as a file holds it."""
        key = self.keys[self.kid]
        if private:
            return str(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())
        return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())

    def token(self, *, headers: Mapping[str, Any] | None = None, without: str = "", **claims: Any) -> str:
        """Return a token that holds for a minute, but for what is said otherwise."""
        now_s = int(time.time())
        whole = {"iss": ISSUER, "aud": AUDIENCE, "exp": now_s + 60, "iat": now_s, "tenant_id": "acme", **claims}
        whole.pop(without, None)
        return jwt.encode(
            whole, self.keys[self.kid], algorithm=self.algorithm, headers={"kid": self.kid, **(headers or {})}
        )


def new_key(algorithm: str) -> Any:
    """Return a fresh private key, or the secret of HS256."""
    match algorithm:
        case "RS256":
            return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return SECRET


def unsigned(header: Mapping[str, Any], claims: Mapping[str, Any] | str, signature: bytes = b"") -> str:
    """Return the text of a token as anybody can write it."""
    texts = [json.dumps(header), claims if isinstance(claims, str) else json.dumps(claims)]
    return ".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*map(str.encode, texts), signature)
    )
