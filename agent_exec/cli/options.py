"""Options that several verbs have, and the connection that they open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

import click

from agent_exec.client import AgentExecClient
from agent_exec.embedded import redis_url
from agent_exec.errors import SettingsInvalid
from agent_exec.settings import Settings, read_settings
from agent_exec.store import BlockingStore

T = TypeVar("T")

#: What a shell gives a command that Ctrl-C ended.
INTERRUPTED = 130

tenant_option = click.option(
    "--tenant",
    "tenant_id",
    required=True,
    envvar="AGENT_EXEC_TENANT",
    show_envvar=True,
    metavar="T",
    help="Whose it is.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON, one object a line.")


@contextmanager
def connected_client() -> Iterator[AgentExecClient]:
    """Open the client on the service's Redis."""
    settings = read_settings()
    with _opened(settings, lambda url: AgentExecClient(url, settings=settings)) as client:
        yield client


@contextmanager
def connected_store() -> Iterator[BlockingStore]:
    """Open the service's Redis, for what operators ask of it beyond the client's verbs."""
    with closing(_opened(read_settings(), BlockingStore)) as store:
        yield store


def _opened(settings: Settings, connect: Callable[[str], T]) -> T:
    url = redis_url(settings)
    try:
        return connect(url)
    except ValueError as error:
        raise SettingsInvalid(f"AGENT_EXEC_REDIS_URL is no address of a Redis: {error}.") from None
