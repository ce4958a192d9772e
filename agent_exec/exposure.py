"""What of the settings would lay the store or a secret open, and whether a process may start with it all the same.

Owns the rules. Does not know what any setting is for beyond that, nor what a server says of itself (server.py).

A secret may cross the machine itself in clear text, and with a warning the network that the deployment has for itself; it
never leaves that. Names are not resolved: what a name means changes, and a start must not wait for it.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, assert_never
from urllib.parse import SplitResult, parse_qs, urlsplit

from agent_exec.errors import SettingsInvalid
from agent_exec.settings import Settings, variable

log = logging.getLogger(__name__)

#: Names that no public resolver knows: of Kubernetes, Docker and mDNS, and the one that ICANN keeps for the purpose.
OWN_SUFFIXES = (".svc", ".local", ".internal", ".home.arpa")
#: Secrets that stand in this repository, and how those begin that it asks to replace.
PUBLISHED = frozenset({"sandbox-service-token", "sk-sandbox-openai", "sk-sandbox-groq"})
PLACEHOLDER = "change-me"
_TLS = frozenset({"rediss", "https", "wss"})

#: This machine; the deployment's own network; anywhere else.
Reach = Literal["here", "near", "far"]


@dataclass(frozen=True, slots=True)
class Exposure:
    """Something that lies open: what, and what to do. One that is not `refused` is for the operator to weigh."""

    text: str
    refused: bool = True


@dataclass(frozen=True, slots=True)
class _Way:
    """Where a secret goes; an empty `secret` is none that we know, where there may be one all the same."""

    variable: str
    url: SplitResult
    what: str
    secret: str


def check(settings: Settings) -> None:
    """Refuse to start with what lies open, but in the sandbox.

    Raises:
        SettingsInvalid: names each setting, and what to do.
    """
    refused = [exposure.text for exposure in exposures(settings) if exposure.refused]
    if refused and settings.environment != "sandbox":
        raise SettingsInvalid(
            f"This is not safe to start. {' '.join(refused)} (AGENT_EXEC_ENVIRONMENT=sandbox starts all the same: on a "
            "network with nothing to lose.)"
        )


def warn(settings: Settings) -> None:
    """Tell the log of what lies open and was not refused."""
    for exposure in exposures(settings):
        log.warning("%s", exposure.text)


def exposures(settings: Settings) -> Iterator[Exposure]:
    """Return what lies open."""
    for url in _servers(settings.redis_url or ""):
        yield from _of_redis(url)
    for way in _ways(settings):
        yield from _of_way(way)
    yield from _of_files(settings)
    if settings.callback_allow_http:
        yield Exposure("AGENT_EXEC_CALLBACK_ALLOW_HTTP: final responses may travel in clear text.", refused=False)


def reach(host: str | None) -> Reach:
    """Return how far away a host is, by its name or address alone."""
    name = (host or "").rstrip(".").lower()
    try:
        address = ip_address(name)
    except ValueError:
        if name in ("", "localhost") or name.endswith(".localhost"):
            return "here"
        return "near" if "." not in name or name.endswith(OWN_SUFFIXES) else "far"
    if address.is_loopback or address.is_unspecified:
        return "here"
    return "far" if address.is_global else "near"


def is_elsewhere(redis_url: str) -> bool:
    """Say whether a Redis is on another machine, or its sentinels are."""
    return any(reach(url.hostname) != "here" for url in _servers(redis_url))


def _servers(redis_url: str) -> list[SplitResult]:
    """Return the address of each server, with the user and password that all of them share."""
    parts = [urlsplit(part) for part in redis_url.split(";") if part]
    login = next((part.netloc.rpartition("@")[0] for part in parts if part.password), "")
    return [
        part if part.password or not login else part._replace(netloc=f"{login}@{part.netloc.rpartition('@')[2]}")
        for part in parts
        if part.scheme != "unix"
    ]


def _of_redis(url: SplitResult) -> Iterator[Exposure]:
    away = reach(url.hostname)
    if away == "here":
        return
    if not url.password:
        yield Exposure(
            f"AGENT_EXEC_REDIS_URL has no password, and {url.hostname} is another machine: whoever reaches it reads and "
            "changes every tenant's work. Give it users (docs/redis-users.acl), and write redis://user:password@host."
        )
    elif url.password.startswith(PLACEHOLDER):
        yield Exposure(
            "AGENT_EXEC_REDIS_URL has the password of an example. Put another one there, and in the users file."
        )
    if parse_qs(url.query).get("ssl_cert_reqs", ["required"])[0] != "required":
        yield Exposure(
            "AGENT_EXEC_REDIS_URL turns the check of the server's certificate off. Take ssl_cert_reqs out; "
            "ssl_ca_certs=FILE names an authority of your own."
        )
    if url.password:
        yield from _in_clear(url, "AGENT_EXEC_REDIS_URL", "the password of Redis", mend="rediss://")


def _ways(settings: Settings) -> Iterator[_Way]:
    """Return where secrets go by HTTP and WebSocket."""
    token = settings.service_token.get_secret_value()
    if token or settings.service_token_file is not None:
        for field in ("orchestrator_ws_url", "orchestrator_url", "tool_registry_url", "agent_management_url"):
            yield _Way(variable(field), urlsplit(getattr(settings, field)), "the service token", token)
    for name, url, key in (
        ("openai_base_url", settings.openai_base_url, settings.openai_api_key),
        ("groq_base_url", settings.groq_base_url, settings.groq_api_key),
    ):
        if url is not None and key is not None:
            yield _Way(variable(name), urlsplit(url), "the provider's key", key.get_secret_value())
    for name, provider in settings.providers.items():
        key_text = provider.api_key.get_secret_value()
        if key_text != "none":
            yield _Way(f"AGENT_EXEC_PROVIDERS, '{name}',", urlsplit(provider.base_url), "the provider's key", key_text)
    for name, server in settings.mcp_servers.items():
        if server.token.get_secret_value():
            text = server.token.get_secret_value()
            yield _Way(f"AGENT_EXEC_MCP_SERVERS, '{name}',", urlsplit(server.url), "the server's token", text)


def _of_way(way: _Way) -> Iterator[Exposure]:
    if reach(way.url.hostname) == "here":
        return
    if way.secret in PUBLISHED or way.secret.startswith(PLACEHOLDER):
        yield Exposure(
            f"{way.variable} is another machine, and {way.what} for it is the example's. Set one of your own."
        )
    mend = "wss://" if way.url.scheme in ("ws", "wss") else "https://"
    yield from _in_clear(way.url, way.variable, way.what, mend=mend)


def _in_clear(url: SplitResult, name: str, what: str, *, mend: str) -> Iterator[Exposure]:
    if url.scheme in _TLS:
        return
    away = reach(url.hostname)
    match away:
        case "here":
            pass
        case "near":
            text = f"{name}: {what} goes to {url.hostname} in clear text; {mend} keeps it from others on that network."
            yield Exposure(text, refused=False)
        case "far":
            yield Exposure(
                f"{name}: {what} would go to {url.hostname} in clear text, past your own network. Use {mend}."
            )
        case _:
            assert_never(away)


def _of_files(settings: Settings) -> Iterator[Exposure]:
    """Find what anybody on this machine may write, and so let themselves in by."""
    for field in ("api_keys_file", "jwt_keys_file", "service_token_file", "provider_keys_dir"):
        path: Path | None = getattr(settings, field)
        if path is None:
            continue
        try:
            mode = path.stat().st_mode
        except OSError:  # told by whoever reads it
            continue
        if mode & stat.S_IWOTH:
            yield Exposure(f"{variable(field)} can be written by every user of this machine: chmod o-w {path}.")
