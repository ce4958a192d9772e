"""Where a callback may go: the form of its URL, and the addresses (B11, S14, S15)."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_exec.callbacks.destination import DENIED, MAX_URL_CHARS, Rules
from agent_exec.errors import CallbackUrlInvalid
from agent_exec.settings import read_settings

STRICT = Rules()
#: All that an operator can allow but networks: what is refused under it is refused for its address or its form.
BY_HTTP = Rules(allow_http=True)
LOCAL = Rules(allow_http=True, allowed_networks=(ip_network("127.0.0.0/8"), ip_network("fd00::/8")))

REFUSED = [
    "http://127.0.0.1",
    "http://[::1]",
    "http://2130706433",
    "http://0x7f.1",
    "http://127.1",
    "http://①②⑦.0.0.1",
    "http://169.254.169.254/",
    "http://[64:ff9b::a9fe:a9fe]",
    "http://[2002:7f00:1::]",
    "http://[::ffff:10.0.0.1]",
    "http://[::ffff:a00:1]",
    "http://100.64.0.1",
    "http://0177.0.0.1/",
    "http://0x7f000001/",
    "http://127.0.0.1./",
    "http://localhost/",
    "http://metadata/",
    "http://[fe80::1%25eth0]/",
    "http://[::1]:443:80/",
    "http://0.0.0.0/",
    "http://255.255.255.255/",
    "http://8.8.8.8:22/",
    "file:///etc/passwd",
    "gopher://hooks.example/",
    "ftp://hooks.example/",
    "//hooks.example/",
    "hooks.example",
    "https:hooks.example",
    "https:/hooks.example",
    "https:///path",
    "https://",
    "https://u:p@host.example",
    "https://u@host.example",
    "https://host.example:22",
    "https://host.example:0",
    "https://host.example:65536",
    "https://host.example:",
    "https://host.example:443a/",
    "https://host.example\\@evil.example",
    "https://host.example/\\evil",
    "https://host.example#f",
    "https://host.example/a#f",
    "https://host.example/a b",
    "https://host.example/a\nb",
    "https://host.example/a\n",
    " https://host.example/",
    "https://host.example/\x00",
    "https://host.example/%zz",
    "https://host.example/%",
    "https://-host.example/",
    "https://host..example/",
    "https://.host.example/",
    "https://host.example./",
    "https://höst.example/",
    "https://host.ex%61mple/",
    f"https://{'a' * 64}.example/",
    f"https://host.example/{'a' * 5_000}",
    "",
]


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_that_leads_astray_is_refused_and_not_repeated(url: str) -> None:
    for rules in (STRICT, BY_HTTP):
        with pytest.raises(CallbackUrlInvalid) as refused:
            rules.destination(url)
        assert len(url) < 12 or url not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://hooks.example", "hooks.example", 443),
        ("https://hooks.example/", "hooks.example", 443),
        ("https://hooks.example?a=1", "hooks.example", 443),
        ("https://Hooks.Example:8443/a/b;c?d=%2F&e=[1]", "Hooks.Example", 8443),
        ("https://xn--hkst-5qa.example/~a", "xn--hkst-5qa.example", 443),
        ("https://_dmarc.a-b.example/", "_dmarc.a-b.example", 443),
        ("https://8.8.8.8/", "8.8.8.8", 443),
        ("https://[2606:4700:4700::1111]:8443/", "2606:4700:4700::1111", 8443),
        ("https://1.example/", "1.example", 443),
    ],
)
def test_a_url_of_the_public_internet_passes(url: str, host: str, port: int) -> None:
    found = STRICT.destination(url)
    assert (found.url, found.host, found.port) == (url, host, port)


def test_the_longest_url_passes_and_no_longer_one() -> None:
    start = "https://hooks.example/"
    STRICT.destination(start + "a" * (MAX_URL_CHARS - len(start)))
    with pytest.raises(CallbackUrlInvalid):
        STRICT.destination(start + "a" * (MAX_URL_CHARS - len(start) + 1))


def test_http_passes_where_the_operator_says_so() -> None:
    with pytest.raises(CallbackUrlInvalid, match="AGENT_EXEC_CALLBACK_ALLOW_HTTP"):
        STRICT.destination("http://hooks.example/")
    with pytest.raises(CallbackUrlInvalid, match="port 80"):
        STRICT.destination("https://hooks.example:80/")
    assert BY_HTTP.destination("http://hooks.example/").port == 80


def test_an_allowed_network_is_reached_at_any_port_and_nothing_else_is() -> None:
    assert LOCAL.destination("http://127.0.0.1:9999/").address == ip_address("127.0.0.1")
    LOCAL.destination("http://receiver:8080/")  # what the name means is found when it is sent
    LOCAL.admit([ip_address("127.0.0.1"), ip_address("::ffff:127.9.9.9"), ip_address("fd00::1")], port=8080)
    for address, port in (("10.0.0.1", 443), ("8.8.8.8", 8080), ("169.254.169.254", 80)):
        with pytest.raises(CallbackUrlInvalid):
            LOCAL.admit([ip_address(address)], port=port)


def test_one_address_that_is_denied_among_many_denies_them_all() -> None:
    public = ip_address("8.8.8.8")
    STRICT.admit([public], port=443)
    for denied in ("127.0.0.1", "::1", "10.1.1.1", "::ffff:10.1.1.1"):
        with pytest.raises(CallbackUrlInvalid):
            STRICT.admit([public, ip_address(denied), public], port=443)


@pytest.mark.parametrize("network", DENIED, ids=str)
def test_a_denied_network_is_denied_from_its_first_address_to_its_last(network: object) -> None:
    assert hasattr(network, "network_address")
    for address in (network.network_address, network.broadcast_address):  # type: ignore[attr-defined]
        with pytest.raises(CallbackUrlInvalid):
            STRICT.admit([address], port=443)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_and_its_spelling_in_ipv6_come_to_the_same(address: object) -> None:
    def passes(one: str) -> bool:
        try:
            STRICT.admit([ip_address(one)], port=443)
        except CallbackUrlInvalid:
            return False
        return True

    assert passes(str(address)) == passes(f"::ffff:{address}")


@given(st.text(max_size=60))
def test_whatever_stands_behind_https_it_is_refused_or_goes_to_a_plain_host(text: str) -> None:
    try:
        found = STRICT.destination(f"https://{text}")
    except CallbackUrlInvalid:
        return
    assert found.port in (443, 8443)
    assert found.host.isascii()
    assert not set(found.host) & set("@\\/?#% ")


def test_the_rules_come_from_the_settings() -> None:
    settings = read_settings(callback_allow_http="true", callback_allowed_networks="10.1.0.0/16, fd00::/8")
    rules = Rules.of(settings)
    assert rules == Rules(True, (ip_network("10.1.0.0/16"), ip_network("fd00::/8")))
    assert Rules.of(read_settings()) == STRICT
