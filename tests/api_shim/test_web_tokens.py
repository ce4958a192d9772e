"""Tokens: whom they let in, and the table of those that let nobody in (faults B21)."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from agent_exec.api_keys import Caller, Role
from agent_exec.errors import SettingsInvalid, Unauthorized
from agent_exec.settings import JwtAlgorithm, Settings, read_settings
from api_shim.web_tokens import WebTokens
from tests.api_shim.issuer import AUDIENCE, ISSUER, SECRET, Issuer, unsigned


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "jwks.json"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by which files are looked at."""
    now_s = [100.0]
    monkeypatch.setattr("agent_exec.watched_file.time.monotonic", lambda: now_s[0])
    return now_s


def settings(**others: Any) -> Settings:
    return read_settings(**{"jwt_algorithm": "EdDSA", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, **others})


def tokens_of(issuer: Issuer, keys_file: Path, **others: Any) -> WebTokens:
    issuer.write(keys_file)
    return WebTokens(settings(**{"jwt_algorithm": issuer.algorithm, **others}), keys_file)


@pytest.mark.parametrize("algorithm", get_args(JwtAlgorithm))
def test_a_token_says_who_its_caller_is_and_until_when(algorithm: str, keys_file: Path) -> None:
    issuer = Issuer(algorithm)
    tokens = tokens_of(issuer, keys_file)
    until_s = int(time.time()) + 60
    caller = tokens.verify(issuer.token(exp=until_s, role="operator"))
    assert (caller.tenant_id, caller.role, caller.expires_at_s) == ("acme", "operator", until_s + 10)
    assert tokens.holds(caller)
    assert tokens.verify(issuer.token(aud=["another", AUDIENCE], nbf=until_s - 60)).role == "caller", (
        "unless it says so"
    )


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_single_public_key_will_do(algorithm: str, keys_file: Path) -> None:
    issuer = Issuer(algorithm)
    keys_file.write_text(issuer.pem())
    assert WebTokens(settings(jwt_algorithm=algorithm), keys_file).verify(issuer.token()).tenant_id == "acme"


def test_a_secret_by_itself_will_do(keys_file: Path) -> None:
    keys_file.write_bytes(SECRET + b"\n")
    assert WebTokens(settings(jwt_algorithm="HS256"), keys_file).verify(Issuer("HS256").token()).tenant_id == "acme"


def test_claims_may_have_other_names(keys_file: Path) -> None:
    issuer = Issuer()
    tokens = tokens_of(issuer, keys_file, jwt_tenant_claim="https://x/tenant", jwt_role_claim="https://x/role")
    caller = tokens.verify(issuer.token(**{"https://x/tenant": "globex", "https://x/role": "service"}))
    assert (caller.tenant_id, caller.role) == ("globex", "service")


NOW_S = int(time.time())
#: What a token says amiss, all else being right.
AMISS: dict[str, dict[str, Any]] = {
    "no aud": {"without": "aud"},
    "no iss": {"without": "iss"},
    "no exp": {"without": "exp"},
    "no tenant": {"without": "tenant_id"},
    "expired": {"exp": NOW_S - 3_600},
    "not yet": {"nbf": NOW_S + 3_600},
    "made in the future": {"iat": NOW_S + 3_600},
    "holds for a year": {"exp": NOW_S + 365 * 86_400},
    "holds for ever": {"exp": 10**300},
    "exp is no number": {"exp": "soon"},
    "exp is a list": {"exp": [NOW_S + 60]},
    "another audience": {"aud": "another"},
    "a list of audiences without us": {"aud": ["another", "yet-another"]},
    "an empty audience": {"aud": ""},
    "another issuer": {"iss": "https://evil.example"},
    "an issuer with ours in it": {"iss": f"{ISSUER}.evil.example"},
    "a tenant that is none": {"tenant_id": "Acme:*"},
    "a tenant with a line end": {"tenant_id": "acme\n"},
    "a list of tenants": {"tenant_id": ["acme", "globex"]},
    "no tenant but null": {"tenant_id": None},
    "a role that is none": {"role": "admin"},
    "a list of roles": {"role": ["operator"]},
    "a kid that is a path": {"headers": {"kid": "../../x"}},
    "a kid of nobody": {"headers": {"kid": "second"}},
    "brings its key": {"headers": {"jwk": {"kty": "oct", "k": "c2VjcmV0"}}},
    "says where its key is": {"headers": {"jku": "https://evil.example/jwks.json"}},
    "says where its certificate is": {"headers": {"x5u": "https://evil.example/cert.pem"}},
    "brings a certificate": {"headers": {"x5c": ["MIIB"]}},
    "demands what nobody knows": {"headers": {"crit": ["exp"]}},
}


@pytest.mark.parametrize("amiss", AMISS.values(), ids=AMISS)
def test_a_token_with_something_amiss_lets_nobody_in(amiss: dict[str, Any], keys_file: Path) -> None:
    """S09."""
    issuer = Issuer()
    tokens = tokens_of(issuer, keys_file)
    with pytest.raises(Unauthorized):
        tokens.verify(issuer.token(**amiss))
    tokens.verify(issuer.token())


CLAIMS = {"iss": ISSUER, "aud": AUDIENCE, "exp": NOW_S + 3_600, "tenant_id": "acme"}


def forged(issuer: Issuer, pem: str) -> dict[str, str]:
    """Return tokens that somebody made without the key."""
    good = issuer.token()
    head, body, signature = good.split(".")
    confused = unsigned({"alg": "HS256", "kid": "first"}, CLAIMS)
    by_public_key = hmac.new(pem.encode(), confused.rstrip(".").encode(), hashlib.sha256).digest()
    other = Issuer(issuer.algorithm).token()
    return {
        "alg none": unsigned({"alg": "none", "kid": "first"}, CLAIMS),
        "alg None": unsigned({"alg": "NONE", "kid": "first"}, CLAIMS, b"x"),
        "signed with the public key": unsigned({"alg": "HS256", "kid": "first"}, CLAIMS, by_public_key),
        "another algorithm in the head": unsigned({"alg": "RS512", "kid": "first"}, CLAIMS, b"x" * 256),
        "no kid": unsigned({"alg": issuer.algorithm}, CLAIMS, b"x" * 64),
        "a kid that is no text": unsigned({"alg": issuer.algorithm, "kid": {"first": 1}}, CLAIMS, b"x" * 64),
        "another's key, under our kid": other,
        "no signature": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "four parts": f"{good}.x",
        "another body": f"{head}.{unsigned({}, CLAIMS).split('.')[1]}.{signature}",
        "a body that is no JSON": unsigned({"alg": issuer.algorithm, "kid": "first"}, "{", b"x" * 64),
        "a body that is a list": unsigned({"alg": issuer.algorithm, "kid": "first"}, "[]", b"x" * 64),
        "a head that is deep": unsigned({"alg": issuer.algorithm}, "[" * 5_000, b"x"),
        "five parts, encrypted": "eyJhbGciOiJSU0EtT0FFUCJ9.a.b.c.d",
        "nothing": "",
        "dots": "..",
        "no letters": "\x00\xff.\x00.\x00",
        "100 kB": good + "A" * 100_000,
    }


FORGERIES = list(forged(Issuer("RS256"), ""))


@pytest.fixture(scope="module")
def rsa_issuer() -> Issuer:
    return Issuer("RS256")


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_token_that_its_issuer_did_not_sign_lets_nobody_in(kind: str, rsa_issuer: Issuer, keys_file: Path) -> None:
    forgery = forged(rsa_issuer, rsa_issuer.pem())[kind]
    tokens = tokens_of(rsa_issuer, keys_file)
    with pytest.raises(Unauthorized):
        tokens.verify(forgery)
    keys_file.write_text(rsa_issuer.pem())
    with pytest.raises(Unauthorized):
        WebTokens(settings(jwt_algorithm="RS256"), keys_file).verify(forgery)


def test_a_token_of_another_algorithm_of_the_same_key_lets_nobody_in(rsa_issuer: Issuer, keys_file: Path) -> None:
    """S09."""
    tokens = tokens_of(rsa_issuer, keys_file)
    stronger = Issuer("RS256")
    stronger.keys, stronger.algorithm = rsa_issuer.keys, "RS512"
    with pytest.raises(Unauthorized):
        tokens.verify(stronger.token())


def test_an_expired_token_is_told_to_be(keys_file: Path) -> None:
    issuer = Issuer()
    tokens = tokens_of(issuer, keys_file)
    with pytest.raises(Unauthorized, match="expired"):
        tokens.verify(issuer.token(exp=int(time.time()) - 20))
    assert tokens.verify(issuer.token(exp=int(time.time()) - 2)).tenant_id == "acme", "clocks may be apart"


def test_a_caller_is_held_until_the_token_ends_and_no_longer(keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = Issuer()
    tokens = tokens_of(issuer, keys_file, jwt_leeway_s=0)
    caller = tokens.verify(issuer.token())
    now_s = time.time()
    monkeypatch.setattr("api_shim.web_tokens.time.time", lambda: now_s + 61)
    assert not tokens.holds(caller)
    monkeypatch.undo()
    assert not tokens.holds(Caller("acme", "caller", "anapikey1"))


def test_keys_are_changed_without_a_restart(keys_file: Path, clock: list[float]) -> None:
    issuer = Issuer()
    tokens = tokens_of(issuer, keys_file)
    old = issuer.token()
    caller = tokens.verify(old)
    issuer.add_key("second")
    issuer.write(keys_file)
    clock[0] += 5
    assert tokens.verify(issuer.token()).key_id != tokens.verify(old).key_id
    issuer.write(keys_file, "second")
    clock[0] += 5
    with pytest.raises(Unauthorized):
        tokens.verify(old)
    assert not tokens.holds(caller), "what it let in before, it does not any more"
    assert tokens.verify(issuer.token()).tenant_id == "acme"


def test_a_key_put_in_anothers_place_is_another(keys_file: Path, clock: list[float]) -> None:
    issuer = Issuer()
    tokens = tokens_of(issuer, keys_file)
    caller = tokens.verify(issuer.token())
    issuer.add_key("first")
    issuer.write(keys_file)
    clock[0] += 5
    assert not tokens.holds(caller)


def test_a_file_that_is_spoilt_changes_nothing_and_one_that_is_gone_lets_nobody_in(
    keys_file: Path, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    issuer = Issuer()
    tokens = tokens_of(issuer, keys_file)
    keys_file.write_text('{"keys": [')
    clock[0] += 5
    assert tokens.verify(issuer.token()).tenant_id == "acme"
    assert "AGENT_EXEC_JWT_KEYS_FILE" in caplog.text
    keys_file.unlink()
    clock[0] += 5
    with pytest.raises(Unauthorized):
        tokens.verify(issuer.token())
    assert "JWT keys file cannot be read" in caplog.text


def test_keys_for_others_in_the_set_are_passed_over(keys_file: Path) -> None:
    issuer = Issuer()
    entry = issuer.public("first")
    others = [
        Issuer("RS256").public("first"),
        {**entry, "use": "enc"},
        {**entry, "alg": "ES256"},
        {name: part for name, part in entry.items() if name != "kid"},
        "no key",
    ]
    keys_file.write_text(json.dumps({"keys": [*others, entry]}))
    assert WebTokens(settings(), keys_file).verify(issuer.token()).tenant_id == "acme"


def small_rsa() -> str:
    issuer = Issuer("RS256")
    issuer.add_key("small", rsa.generate_private_key(public_exponent=65_537, key_size=1_024))  # noqa: S505 weak on purpose
    return issuer.pem()


def other_curve() -> str:
    issuer = Issuer("ES256")
    issuer.add_key("other", ec.generate_private_key(ec.SECP384R1()))
    return issuer.pem()


def private_jwk() -> str:
    issuer = Issuer()
    return json.dumps({"keys": [{**issuer.public("first"), "d": "c2VjcmV0"}]})


def twice() -> str:
    entry = Issuer().public("first")
    return json.dumps({"keys": [entry, entry]})


@pytest.mark.parametrize(
    ("algorithm", "text", "words"),
    [
        ("RS256", small_rsa, "RSA key of 1024 bits"),
        ("ES256", other_curve, "another kind"),
        ("RS256", Issuer("EdDSA").pem, "another kind"),
        ("HS256", Issuer("RS256").pem, "another kind"),
        ("HS256", lambda: "short", "secret of 5 bytes"),
        ("EdDSA", lambda: Issuer("EdDSA").pem(private=True), "private key"),
        ("EdDSA", private_jwk, "private key"),
        ("EdDSA", twice, "same kid"),
        ("EdDSA", lambda: "", "neither a JWK set nor a public key"),
        ("EdDSA", lambda: "{}", "no JWK set"),
        ("EdDSA", lambda: "{nonsense", "no JWK set"),
        ("EdDSA", lambda: '{"keys": {}}', "holds no key with a kid"),
        ("EdDSA", lambda: '{"keys": [{"kid": "a", "kty": "OKP", "crv": "Ed25519", "x": "AA"}]}', "a key that is none"),
        ("EdDSA", lambda: "-----BEGIN PUBLIC KEY-----\nAA\n-----END PUBLIC KEY-----", "no public key in PEM"),
    ],
)
def test_a_file_that_is_no_use_is_refused_at_the_start(
    algorithm: str, text: Callable[[], str], words: str, keys_file: Path
) -> None:
    keys_file.write_text(text())
    with pytest.raises(SettingsInvalid, match=f"^AGENT_EXEC_JWT_KEYS_FILE: .*{words}") as refusal:
        WebTokens(settings(jwt_algorithm=algorithm), keys_file)
    assert "c2VjcmV0" not in str(refusal.value)


def test_no_file_no_issuer_and_no_audience_are_refused_at_the_start(keys_file: Path) -> None:
    """S09."""
    with pytest.raises(SettingsInvalid, match="cannot be read"):
        WebTokens(settings(), keys_file)
    Issuer().write(keys_file)
    for name in ("jwt_issuer", "jwt_audience"):
        with pytest.raises(SettingsInvalid, match=f"AGENT_EXEC_{name.upper()}"):
            WebTokens(settings(**{name: None}), keys_file)
    with pytest.raises(SettingsInvalid, match="AGENT_EXEC_JWT_LEEWAY_S"):
        settings(jwt_leeway_s=61)


@pytest.fixture(scope="module")
def any_tokens(tmp_path_factory: pytest.TempPathFactory) -> WebTokens:
    return tokens_of(Issuer(), tmp_path_factory.mktemp("keys") / "jwks.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda of: st.lists(of) | st.dictionaries(st.text(), of),
)


@given(
    text=st.text()
    | st.builds(
        unsigned, st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64"]), JSON), st.text(), st.binary()
    )
)
def test_nothing_that_anybody_writes_does_more_than_be_refused(text: str, any_tokens: WebTokens) -> None:
    with pytest.raises(Unauthorized):
        any_tokens.verify(text)


def test_every_role_may_be_said(keys_file: Path) -> None:
    issuer = Issuer()
    tokens = tokens_of(issuer, keys_file)
    assert [tokens.verify(issuer.token(role=role)).role for role in get_args(Role)] == list(get_args(Role))
