"""`wss://`: the certificate is checked before a word is said, and no log shows what an address holds (S13)."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.notifier.conftest import TOKEN
from tests.notifier.played_orchestrator import Orchestrator, until
from tests.notifier.played_work import Work
from tests.processes import Process

SECRET = "a-word-in-the-address"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 that vouches for itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "orchestrator")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "orchestrator.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture
async def orchestrator(certificate: Path) -> AsyncIterator[Orchestrator]:
    """An orchestrator that speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    one = Orchestrator(tls=context)
    async with one.listening():
        yield one


@pytest.mark.parametrize(
    ("host", "trusted", "trouble"),
    [
        ("127.0.0.1", True, None),
        ("127.0.0.1", False, "certificate verify failed"),
        ("localhost", True, "certificate is not valid for 'localhost'"),
    ],
)
async def test_a_certificate_has_to_be_the_orchestrators_own(
    orchestrator: Orchestrator,
    work: Work,
    certificate: Path,
    redis_url: str,
    tmp_path: Path,
    host: str,
    trusted: bool,
    trouble: str | None,
) -> None:
    hold = await work.begin()
    env = {
        "AGENT_EXEC_REDIS_URL": redis_url,
        "AGENT_EXEC_ORCHESTRATOR_WS_URL": f"{orchestrator.url.replace('127.0.0.1', host)}?key={SECRET}",
        "AGENT_EXEC_SERVICE_TOKEN": TOKEN,
        "AGENT_EXEC_LOG_LEVEL": "DEBUG",
        **({"SSL_CERT_FILE": str(certificate)} if trusted else {}),
    }
    with Process("notifier", ["-m", "notifier"], env=env, log=tmp_path / "log") as process:
        if trouble is None:
            await until(lambda: orchestrator.has_all(hold.ref.execution_id, 1))
        else:
            await until(lambda: "not connected" in process.output)
            assert trouble in process.output
            assert orchestrator.handshakes == []
    assert SECRET not in process.output
    assert TOKEN not in process.output
