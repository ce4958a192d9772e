"""Where a callback may go: the form of its URL, and which addresses may be connected to. Pure.

Owns these rules; they are asked when a callback is accepted, and again whenever one is sent. Does not resolve names: whoever
connects asks `Rules.admit` about every address that a name has. A message of an error never repeats the URL, which may hold
its receiver's own secret.

Sources: RFC 3986; RFC 6890 and the IANA registries of special-purpose addresses; WHATWG URL, "ends in a number".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from agent_exec.errors import CallbackUrlInvalid
from agent_exec.settings import Settings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_CHARS = 2_048
#: A receiver on another port is somebody's SSH or database, unless the operator says that it is not.
PORTS = frozenset({443, 8443})
HTTP_PORT = 80

#: Written out, and not left to `is_global` alone, whose answer has changed between releases of Python.
DENIED: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4"),
        *(
            "::/96",
            "64:ff9b::/96",
            "64:ff9b:1::/48",
            "100::/64",
            "2001::/32",
            "2001:db8::/32",
            "2002::/16",
            "5f00::/16",
        ),
        *("fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
)

#: Plain ASCII and one reading only: no user name, no backslash, no fragment, no escape but `%` and two digits.
_URL = re.compile(
    r"(?P<scheme>https?)://(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,253}))(?::(?P<port>[0-9]{1,5}))?"
    r"(?:[/?](?:[A-Za-z0-9._~:/?@!$&'()*+,;=\[\]-]|%[0-9A-Fa-f]{2})*)?"
)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
#: Such a last label makes the host a number to many resolvers: 2130706433, 0x7f.1, 127.1.
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL that passed: what is connected to. `address` where the host is no name."""

    url: str
    host: str
    port: int
    address: Address | None


@dataclass(frozen=True, slots=True)
class Rules:
    """What an operator allows beyond https to the public Internet."""

    allow_http: bool = False
    allowed_networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """Return the rules that the settings make."""
        return cls(settings.callback_allow_http, settings.callback_allowed_networks)

    def destination(self, url: str) -> Destination:
        """Return where a callback to `url` goes.

        Raises:
            CallbackUrlInvalid: it may not go there.
        """
        read = _URL.fullmatch(url) if len(url) <= MAX_URL_CHARS else None
        if read is None:
            raise CallbackUrlInvalid(
                f"A callback URL reads https://host/path: at most {MAX_URL_CHARS} characters of plain ASCII, without a "
                "user name and without a fragment."
            )
        if read["scheme"] == "http" and not self.allow_http:
            raise CallbackUrlInvalid("A callback goes by https alone here (AGENT_EXEC_CALLBACK_ALLOW_HTTP).")
        host = read["v6"] or read["name"]
        port = int(read["port"] or (HTTP_PORT if read["scheme"] == "http" else 443))
        address = _address(read)
        if address is not None:
            self.admit([address], port=port)
        elif not self.allowed_networks:
            if "." not in host:
                raise CallbackUrlInvalid("The callback's host has no dot in it: it is no name of the public Internet.")
            if not self._is_usual(port):
                raise CallbackUrlInvalid(f"A callback may not go to the port {port}; it may to {self._usual_ports()}.")
        return Destination(url, host, port, address)

    def admit(self, addresses: Iterable[Address], *, port: int) -> None:
        """Let pass what may be connected to; one that may not among many is enough to refuse them all.

        Raises:
            CallbackUrlInvalid: it may not.
        """
        for address in map(_unwrapped, addresses):
            if any(address in network for network in self.allowed_networks):
                continue
            if not self._is_usual(port):
                raise CallbackUrlInvalid(f"A callback may not go to the port {port}; it may to {self._usual_ports()}.")
            if not address.is_global or any(address in network for network in DENIED):
                raise CallbackUrlInvalid(
                    "A callback may not go to this address: it is none of the public Internet "
                    "(AGENT_EXEC_CALLBACK_ALLOWED_NETWORKS)."
                )

    def _is_usual(self, port: int) -> bool:
        return port in PORTS or (self.allow_http and port == HTTP_PORT)

    def _usual_ports(self) -> str:
        return ", ".join(map(str, sorted(PORTS | {HTTP_PORT} if self.allow_http else PORTS)))


def _address(read: re.Match[str]) -> Address | None:
    """Return the address that the host spells in the one way that everybody reads alike; None if it is a name."""
    try:
        if read["v6"] is not None:
            return IPv6Address(read["v6"])
        labels = read["name"].split(".")
        if _NUMBER.fullmatch(labels[-1]):
            return IPv4Address(read["name"])
    except ValueError:
        raise CallbackUrlInvalid("The callback's host is a number, and no address as it is usually written.") from None
    if not all(map(_LABEL.fullmatch, labels)):
        raise CallbackUrlInvalid("The callback's host is no name: between its dots are letters, digits and hyphens.")
    return None


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one is another spelling of."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped
