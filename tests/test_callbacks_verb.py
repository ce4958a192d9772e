"""`agent-exec callbacks`, and `--callback-url`: what a person types and reads."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from agent_exec.callbacks import callbacks
from agent_exec.callbacks.callbacks import CallbackRef
from agent_exec.cli import main
from agent_exec.ledger import ledger
from agent_exec.store import BlockingStore
from tests.callbacks.played_end import URL, ended

ASK = ("submit", "--tenant", "acme", "--agent", "desk", "--query", "?")
Cli = Callable[..., Result]


@pytest.fixture
def cli(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("AGENT_EXEC_REDIS_URL", redis_url)
    monkeypatch.setenv("AGENT_EXEC_TENANT", "acme")

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments))

    return call


def ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def dead(store: BlockingStore) -> CallbackRef:
    ref = ended(store)
    [sending] = store.run(callbacks.take(room=1, of_a_tenant=1, lease_s=40)).callbacks
    store.run(callbacks.bury(sending, fault="answered", status=500))
    return ref


def test_a_callback_is_asked_for_with_a_submission(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli(*ASK, "--callback-url", URL)).strip()
    assert store.run(ledger.look("acme", execution_id)).message.metadata.callback_url == URL


@pytest.mark.parametrize("url", ["https://127.0.0.1/x", "http://hooks.example/", "nonsense"])
def test_a_url_that_is_refused_is_a_mistake_of_who_typed_it(cli: Cli, store: BlockingStore, url: str) -> None:
    result = cli(*ASK, "--callback-url", url)
    assert result.exit_code == 2
    assert "invalid_callback_url" in result.stderr
    assert not store.redis.keys()


def test_dead_letters_are_listed_and_sent_again(cli: Cli, dead: CallbackRef) -> None:
    listed = ok(cli("callbacks", "list"))
    assert dead.callback_id in listed
    assert "answered 500" in listed
    [line] = ok(cli("callbacks", "list", "--json")).splitlines()
    assert json.loads(line)["state"] == "dead"
    assert "sent now" in ok(cli("callbacks", "redeliver", dead.callback_id))
    assert json.loads(ok(cli("callbacks", "redeliver", dead.callback_id, "--json")))["state"] == "waiting"
    assert ok(cli("callbacks", "list")) == "No callbacks: dead.\n"
    assert dead.callback_id in ok(cli("callbacks", "list", "--state", "waiting"))


def test_one_is_shown_as_it_stands(cli: Cli, dead: CallbackRef, store: BlockingStore) -> None:
    shown = ok(cli("callbacks", "show", dead.callback_id))
    assert URL in shown
    assert "dead" in shown
    assert json.loads(ok(cli("callbacks", "show", dead.callback_id, "--json")))["attempts"] == 1
    store.run(callbacks.redeliver(dead))
    [sending] = store.run(callbacks.take(room=1, of_a_tenant=1, lease_s=40)).callbacks
    assert "on its way" in ok(cli("callbacks", "redeliver", dead.callback_id))
    store.run(callbacks.put_off(sending, fault="timed_out", status=None, due_in_s=60))
    assert "timed_out" in ok(cli("callbacks", "show", dead.callback_id))


def test_what_is_not_there_is_told(cli: Cli, dead: CallbackRef) -> None:
    for verb in ("show", "redeliver"):
        result = cli("callbacks", verb, dead.callback_id, "--tenant", "globex")
        assert result.exit_code == 1
        assert "not_found" in result.stderr
