"""One POST to a stranger: to a checked address, within its time, whatever is answered (F51, B11, B12, S14–S16)."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from agent_exec.callbacks.destination import Rules
from notifier import egress as module
from notifier.egress import Answered, Egress, Failed, Lookup, is_ours, system_lookup
from tests.callbacks.test_destination import REFUSED
from tests.notifier.played_receiver import OK, Receiver, answer

LOOPBACK = ip_network("127.0.0.0/8")
LOCAL = Rules(allow_http=True, allowed_networks=(LOOPBACK,))


def named(**addresses: Sequence[str]) -> Lookup:
    """A resolver of a test's own: a name's first label → its addresses, one list a lookup, the last for all that follow."""
    left = {name: list(found) for name, found in addresses.items()}

    def lookup(host: str) -> Sequence[str]:
        answers = left[host.partition(".")[0]]
        return (answers.pop(0) if len(answers) > 1 else answers[0]).split()

    return lookup


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver().listening() as one:
        yield one


@asynccontextmanager
async def sending(
    rules: Rules = LOCAL, *, lookup: Lookup = system_lookup, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Egress]:
    async with Egress(rules, lookup=lookup, tls=tls) as egress:
        yield egress


async def post(url: str, rules: Rules = LOCAL, *, lookup: Lookup = system_lookup) -> Answered | Failed:
    async with sending(rules, lookup=lookup) as egress:
        return await egress.post(url, body=b'{"a":1}', headers={"webhook-id": "x"})


def fault(outcome: Answered | Failed) -> str:
    assert isinstance(outcome, Failed), outcome
    return outcome.fault


async def test_what_is_sent_is_the_body_and_the_headers_and_nothing_of_ours(receiver: Receiver) -> None:
    assert await post(receiver.url) == Answered(200)
    [arrival] = receiver.arrivals
    assert arrival.line == "POST /hook?token=s3cret HTTP/1.1"
    assert arrival.body == b'{"a":1}'
    assert set(arrival.headers) == {
        *(
            "host",
            "webhook-id",
            "accept",
            "accept-encoding",
            "user-agent",
            "content-length",
            "content-type",
            "connection",
        )
    }
    assert arrival.headers["host"] == f"127.0.0.1:{receiver.port}"


async def test_a_path_is_sent_as_it_was_written(receiver: Receiver) -> None:
    await post(f"http://127.0.0.1:{receiver.port}/a%2Fb/../c;d?e=%20&f=+#".rstrip("#"))
    assert receiver.arrivals[0].line == "POST /a%2Fb/../c;d?e=%20&f=+ HTTP/1.1"


@pytest.mark.parametrize("status", [200, 204, 301, 302, 307, 400, 410, 429, 500, 503])
async def test_the_status_is_all_that_counts_of_an_answer(receiver: Receiver, status: int) -> None:
    receiver.answers = lambda _: answer(
        status, f"Location: http://127.0.0.1:{receiver.port}/elsewhere", "Set-Cookie: a=b"
    )
    assert await post(receiver.url) == Answered(status)
    assert len(receiver.arrivals) == 1, "no redirect is followed"


async def test_a_cookie_is_not_kept(receiver: Receiver) -> None:
    receiver.answers = lambda _: answer(200, "Set-Cookie: session=1")
    async with sending() as egress:
        for _ in range(2):
            await egress.post(receiver.url, body=b"", headers={})
    assert not any("cookie" in arrival.headers for arrival in receiver.arrivals)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("99999999999999", 9_999_999_999),
        ("-1", None),
        ("soon", None),
        ("1.5", None),
        ("", None),
    ],
)
async def test_the_pause_that_is_asked_for_is_read(receiver: Receiver, header: str, seconds: float | None) -> None:
    receiver.answers = lambda _: answer(429, f"Retry-After: {header}")
    assert await post(receiver.url) == Answered(429, seconds)


async def test_a_pause_until_a_date_is_read(receiver: Receiver) -> None:
    until = datetime.now(UTC) + timedelta(seconds=90)
    receiver.answers = lambda _: answer(503, f"Retry-After: {format_datetime(until, usegmt=True)}")
    outcome = await post(receiver.url)
    assert isinstance(outcome, Answered)
    assert outcome.retry_after_s is not None
    assert 80 < outcome.retry_after_s <= 90
    receiver.answers = lambda _: answer(503, "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT")
    assert await post(receiver.url) == Answered(503, 0)
    receiver.answers = lambda _: answer(503, "Retry-After: Wed, 21 Oct 2015 07:28:00 -0000")
    assert await post(receiver.url) == Answered(503)


async def test_an_answer_of_100_megabytes_is_not_read(receiver: Receiver) -> None:
    receiver.answers = lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 20_000_000
    began_s = time.monotonic()
    assert await post(receiver.url) == Answered(200)
    assert time.monotonic() - began_s < 5


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with less patience; a test has less time than a receiver."""
    monkeypatch.setattr(module, "TOTAL_TIMEOUT_S", 0.5)
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.3)


@pytest.mark.usefixtures("hasty")
async def test_an_answer_that_never_comes_is_waited_for_so_long(receiver: Receiver) -> None:
    receiver.may_answer.clear()
    assert fault(await post(receiver.url)) == "timed_out"


@pytest.mark.usefixtures("hasty")
async def test_a_head_that_drips_is_cut_off(receiver: Receiver) -> None:
    receiver.drip_s = 0.05
    assert fault(await post(receiver.url)) == "timed_out"


@pytest.mark.usefixtures("hasty")
async def test_a_connection_that_is_not_taken_is_given_up_soon() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        assert fault(await post(f"http://127.0.0.1:{port}/")) == "timed_out"
        for one in waiting:
            one.close()


@pytest.mark.usefixtures("hasty")
async def test_a_name_server_that_hangs_holds_up_no_other_name(receiver: Receiver) -> None:
    hanging = threading.Event()

    def lookup(host: str) -> Sequence[str]:
        if host.startswith("slow"):
            hanging.wait(5)
        return ["127.0.0.1"]

    async with sending(lookup=lookup) as egress:
        slow = [asyncio.create_task(egress.post("http://slow.example/", body=b"", headers={})) for _ in range(40)]
        await asyncio.sleep(0)
        quick = await egress.post(f"http://quick.example:{receiver.port}/", body=b"", headers={})
        assert quick == Answered(200)
        assert {fault(await one) for one in slow} == {"timed_out"}
    hanging.set()


async def test_nobody_there_is_unreachable() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert fault(await post(f"http://127.0.0.1:{port}/")) == "unreachable"

    def nowhere(host: str) -> Sequence[str]:
        raise socket.gaierror("no such name")

    assert fault(await post("https://hooks.example/", lookup=nowhere)) == "unreachable"
    assert fault(await post("https://hooks.example/", lookup=lambda _: [])) == "unreachable"


@pytest.mark.parametrize("said", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nA" + b"a" * 100_000])
async def test_an_answer_that_is_no_http_is_unreachable(receiver: Receiver, said: bytes) -> None:
    receiver.answers = lambda _: said
    assert fault(await post(receiver.url)) == "unreachable"


@pytest.mark.parametrize("url", REFUSED)
async def test_what_is_refused_when_it_is_accepted_is_refused_when_it_is_sent(url: str) -> None:
    """S19: our own rule holds at the connection, whatever the operator's network allows beside it."""
    assert fault(await post(url, Rules(allow_http=True))) == "forbidden"


@pytest.mark.parametrize(
    "addresses",
    ["127.0.0.1", "::1", "8.8.8.8 127.0.0.1", "127.0.0.1 8.8.8.8", "::ffff:127.0.0.1", "fe80::1%1", "10.0.0.7"],
)
async def test_a_name_with_one_address_that_is_denied_is_not_connected_to(addresses: str) -> None:
    strict = Rules(allow_http=True)
    assert fault(await post("https://hooks.example/", strict, lookup=named(hooks=[addresses]))) == "forbidden"


async def test_a_name_that_means_this_machine_is_refused_by_the_systems_resolver_too() -> None:
    assert set(system_lookup("localhost")) <= {"127.0.0.1", "::1"}
    assert fault(await post("https://some.host/", Rules(), lookup=lambda _: system_lookup("localhost"))) == "forbidden"


async def test_a_name_that_is_rebound_is_asked_for_anew_and_refused(receiver: Receiver) -> None:
    rules = Rules(allow_http=True, allowed_networks=(ip_network("127.0.0.1/32"),))
    async with sending(rules, lookup=named(hooks=["127.0.0.1", "127.0.0.2"])) as egress:
        url = f"http://hooks.example:{receiver.port}/"
        assert await egress.post(url, body=b"", headers={}) == Answered(200)
        assert fault(await egress.post(url, body=b"", headers={})) == "forbidden"
    assert len(receiver.arrivals) == 1


async def test_the_connection_goes_to_the_address_that_was_checked_and_asks_for_the_name_once(
    receiver: Receiver,
) -> None:
    asked: list[str] = []

    def lookup(host: str) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    assert await post(f"http://hooks.example:{receiver.port}/", lookup=lookup) == Answered(200)
    assert asked == ["hooks.example"]
    assert receiver.arrivals[0].headers["host"] == f"hooks.example:{receiver.port}"


async def test_a_port_that_is_not_usual_is_for_allowed_networks_alone() -> None:
    outcome = await post("https://hooks.example:5432/", LOCAL, lookup=named(hooks=["8.8.8.8"]))
    assert fault(outcome) == "forbidden"


async def test_no_proxy_of_the_environment_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await post(receiver.url) == Answered(200)


def test_an_address_of_this_machine_is_known_for_one() -> None:
    assert is_ours(ip_address("127.0.0.1"))
    assert not is_ours(ip_address("8.8.8.8"))
    assert not is_ours(ip_address("2606:4700:4700::1111"))


async def test_a_public_address_of_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_ours", lambda address: str(address) == "8.8.8.8")
    assert fault(await post("https://8.8.8.8/", Rules())) == "forbidden"
    assert fault(await post("https://hooks.example/", Rules(), lookup=named(hooks=["8.8.8.8"]))) == "forbidden"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A certificate of hooks.example that signs itself, and its key, in one file."""
    directory = tmp_path_factory.mktemp("tls")
    file = directory / "both.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=hooks.example", "-addext", "subjectAltName=DNS:hooks.example"]
    subprocess.run([*made, *names, "-keyout", "key", "-out", "cert"], cwd=directory, check=True, capture_output=True)
    file.write_bytes((directory / "key").read_bytes() + (directory / "cert").read_bytes())
    return file


async def test_tls_is_of_the_name_and_verified(certificate: Path) -> None:
    at_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    at_server.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate.with_name("cert"))
    lookup = named(hooks=["127.0.0.1"], other=["127.0.0.1"])
    async with Receiver().listening(at_server) as receiver:
        url = f"https://hooks.example:{receiver.port}/"
        async with sending(lookup=lookup, tls=trusting) as egress:
            assert await egress.post(url, body=b"", headers={}) == Answered(200)
            assert receiver.names == ["hooks.example"]
            other = f"https://other.example:{receiver.port}/"
            assert fault(await egress.post(other, body=b"", headers={})) == "untrusted"
        async with sending(lookup=lookup) as egress:
            assert fault(await egress.post(url, body=b"", headers={})) == "untrusted"
    assert len(receiver.arrivals) == 1


async def test_a_server_that_speaks_no_tls_is_not_trusted() -> None:
    def blurt(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        writer.close()

    async with await asyncio.start_server(blurt, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert fault(await post(f"https://127.0.0.1:{port}/")) == "untrusted"
