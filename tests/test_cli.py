"""The `agent-exec` command, against a real store and a worker played by the ledger's own calls."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent_exec import keys, submission
from agent_exec.broker import fair_queue
from agent_exec.cli import main
from agent_exec.cli.schemas import texts
from agent_exec.cli.text import columns, one_line, printable
from agent_exec.cli.verbs import VERBS
from agent_exec.contract.approval import word_for
from agent_exec.contract.completion import Usage
from agent_exec.contract.event import CompletedData, EventName, FailedData, Frame
from agent_exec.contract.execution import ErrorDetail, ExecutionRequest, FinalResponse, Output
from agent_exec.contract.tool import ToolCallRecord, ToolError
from agent_exec.ledger import ledger, parent
from agent_exec.ledger.ledger import Claimed, Event, StepRef
from agent_exec.notifier_state import NotifierReport
from agent_exec.store import BlockingStore

Cli = Callable[..., Result]
ASK = ("--tenant", "acme", "--agent", "desk", "--query", "What is 6 * 7?")
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_EXEC_REDIS_URL", redis_url)


@pytest.fixture
def cli(environment: None) -> Cli:
    def call(*arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(main, list(arguments), input=stdin)

    return call


def ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def claim(store: BlockingStore, execution_id: str, *, lease_s: float = 30) -> Claimed:
    claimed = store.run(ledger.claim(StepRef("acme", execution_id, "prompt"), lease_s=lease_s, worker="worker-1"))
    assert isinstance(claimed, Claimed)
    return claimed


def tell(store: BlockingStore, claimed: Claimed, name: EventName, said: dict[str, object]) -> None:
    store.run(ledger.tell(claimed.hold, [Event(name, json.dumps(said))]))


def finish(store: BlockingStore, claimed: Claimed, *, text: str = "42", error: ErrorDetail | None = None) -> None:
    response = FinalResponse(
        execution_id=claimed.hold.ref.execution_id,
        tenant_id="acme",
        agent_id="desk",
        status="completed" if error is None else "failed",
        output=Output(text=text),
        error=error,
        usage=Usage(prompt_tokens=30, completion_tokens=12, total_tokens=42, cost_usd=0.000123),
        tool_calls=[
            ToolCallRecord(id="c1", name="times", arguments={"a": 6, "b": 7}, result=42, duration_s=0.1),
            ToolCallRecord(id="c2", name="no", arguments={}, error=ToolError(code="odd", message="no"), duration_s=0),
        ],
        turns=2,
        provider="openai",
        model="gpt-test",
        created_at=claimed.execution.created_at,
        finished_at=claimed.execution.created_at,
    )
    last = (
        Event(EventName.COMPLETED, CompletedData(response=response).model_dump_json())
        if error is None
        else Event(EventName.FAILED, FailedData(error=error, response=response).model_dump_json())
    )
    store.run(
        ledger.finish(
            claimed.hold,
            result="null",
            status=response.status,
            response=response.model_dump_json(),
            celery_result="{}",
            events=[last],
            retention_s=3_600,
        )
    )


def test_help_comes_without_what_the_verbs_need() -> None:
    heavy = "{'celery', 'kombu', 'rich', 'aiohttp', 'agent_exec.cli.watch'}"
    check = f"import sys; from agent_exec.cli import main; assert not {heavy} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_table_of_verbs_has_each_verbs_own_line() -> None:
    context = main.make_context("agent-exec", ["queues"])
    assert main.list_commands(context) == list(VERBS)
    for name, verb in VERBS.items():
        command = main.get_command(context, name)
        assert command is not None
        assert command.help is not None
        first_words = command.help.split()[:2]
        assert verb.line.split()[:2] == first_words, name
        assert verb.line in ok(CliRunner().invoke(main, ["--help"]))
    assert CliRunner().invoke(main, ["dance"]).exit_code == 2


def test_submitted_work_is_stored(cli: Cli) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    portrait = ok(cli("show", execution_id, "--tenant", "acme"))
    assert "status     pending" in portrait
    assert "agent      desk" in portrait
    assert json.loads(ok(cli("show", execution_id, "--tenant", "acme", "--json")))["status"] == "pending"


def test_the_query_may_come_by_the_standard_input_and_the_context_from_a_file(
    cli: Cli, store: BlockingStore, tmp_path: Path
) -> None:
    context = tmp_path / "context.json"
    context.write_text('{"variables": {"persona": "a pirate"}, "mood": "fair"}')
    asked = ("--tenant", "acme", "--agent", "desk", "--context", str(context), "--priority", "7", "--json")
    execution_id = json.loads(ok(cli("submit", *asked, stdin="Where am I?\n")))["execution_id"]
    message = store.run(ledger.look("acme", execution_id)).message
    assert (message.payload.query, message.priority) == ("Where am I?", 7)
    assert message.payload.context.variables == {"persona": "a pirate"}


def test_a_query_that_is_no_text_is_told(environment: None) -> None:
    result = CliRunner().invoke(main, ["submit", "--tenant", "acme", "--agent", "desk"], input=b"\xff\xfe")
    assert (result.exit_code, "is not text" in result.stderr) == (2, True)


def test_one_idempotency_key_is_one_execution(cli: Cli) -> None:
    first, second = (ok(cli("submit", *ASK, "--idempotency-key", "k")) for _ in range(2))
    assert first == second
    other = cli("submit", "--tenant", "acme", "--agent", "desk", "--query", "?", "--idempotency-key", "k")
    assert (other.exit_code, other.stderr.split(":")[1]) == (1, " idempotency_mismatch")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("submit", "--agent", "desk", "--query", "?"), 2, "AGENT_EXEC_TENANT"),
        (("submit", "--tenant", "acme", "--agent", "desk", "--query", ""), 2, "invalid_message: .*query"),
        (("submit", "--tenant", "../etc", "--agent", "desk", "--query", "?"), 2, "invalid_message: .*tenant_id"),
        (("submit", *ASK, "--priority", "10"), 2, "--priority"),
        (("submit", *ASK, "--context", "pyproject.toml"), 2, "not JSON"),
        (("submit", *ASK, "--context", "no/such/file"), 2, "no/such/file"),
        (("show", NOBODY, "--tenant", "acme"), 1, "not_found: .*check the id"),
        (("watch", NOBODY, "--tenant", "acme"), 1, "not_found"),
        (("why", NOBODY, "--tenant", "acme"), 1, "not_found"),
        (("cancel", NOBODY, "--tenant", "acme"), 1, "not_found"),
        (("keys", "list"), 1, "AGENT_EXEC_API_KEYS_FILE"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(
    cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, said: str
) -> None:
    monkeypatch.chdir(root)
    result = cli(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert re.search(said, result.stderr.replace("\n", " ")), result.stderr


@pytest.mark.parametrize(
    ("url", "said"),
    [("redis://127.0.0.1:1/0", "storage_unavailable: Redis does not answer"), ("localhost", "settings_invalid: ")],
)
def test_a_store_that_is_not_there_is_one_clear_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("AGENT_EXEC_REDIS_URL", url)
    for arguments in (("queues",), ("submit", *ASK)):
        result = cli(*arguments)
        assert result.exit_code == 1
        assert said in result.stderr
        assert "AGENT_EXEC_REDIS_URL" in result.stderr
        assert result.stderr.count("\n") == 1


def test_watching_shows_a_line_an_event_and_the_answer_as_text(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    claimed = claim(store, execution_id)
    tell(store, claimed, EventName.PROGRESS, {"stage": "thinking", "step": "completion.1", "turn": 1, "detail": {}})
    asked = {"tool_call_id": "c1", "name": "times", "arguments": {"a": 6, "b": 7}, "turn": 1}
    tell(store, claimed, EventName.TOOL_CALL_REQUESTED, asked)
    answered = {"tool_call_id": "c1", "name": "times", "result": {"product": 42}, "error": None, "duration_s": 0.25}
    tell(store, claimed, EventName.TOOL_CALL_COMPLETED, answered)
    failed = answered | {"result": None, "error": {"code": "odd", "message": "no \x1b]52;c;x\x07"}}
    tell(store, claimed, EventName.TOOL_CALL_COMPLETED, failed)
    tell(store, claimed, EventName.TOOL_APPROVAL_REQUESTED, {"name": "launch", "tool_call_id": "call_2"})
    tell(store, claimed, EventName.TOKEN, {"token": "It is ", "is_final": False})
    tell(store, claimed, EventName.STEP_RESTARTED, {"step": "completion.1", "attempt": 2})
    tell(store, claimed, EventName.TOKEN, {"token": "It is \x1b[2J", "is_final": False})
    tell(store, claimed, EventName.TOKEN, {"token": "42.", "is_final": True})
    finish(store, claimed)
    shown = ok(cli("watch", execution_id, "--tenant", "acme"))
    assert [line[10:].rstrip() for line in shown.splitlines() if line[:10].strip()[:1].isdigit()] == [
        f"accepted    execution {execution_id}, agent desk",
        "thinking    completion.1",
        'tool call   times {"a":6,"b":7}',
        'tool result times → {"product":42}, in 0.250 s',
        "tool error  times → odd: no ␛]52;c;x␇, in 0.250 s",
        f"approval    launch waits for somebody's approval: agent-exec approve {execution_id} call_2",
        "answer",
        "restarted   completion.1: its text so far is void",
        "answer",
        "completed   2 turns, 30 + 12 tokens, $0.000123, openai gpt-test",
    ]
    assert "\nIt is ␛[2J42.\n" in shown
    assert "\x1b" not in shown


def test_watching_resumes_after_a_sequence_and_gives_json(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    claimed = claim(store, execution_id)
    tell(store, claimed, EventName.TOKEN, {"token": "42", "is_final": True})
    finish(store, claimed)
    watch = ("watch", execution_id, "--tenant", "acme", "--json")
    frames = [Frame.model_validate_json(line) for line in ok(cli(*watch)).splitlines()]
    assert [frame.sequence for frame in frames] == [1, 2, 3]
    assert [json.loads(line)["sequence"] for line in ok(cli(*watch, "--after", "2")).splitlines()] == [3]
    assert ok(cli(*watch, "--after", "3")) == ""


def test_the_exit_code_says_how_it_ended(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    finish(store, claim(store, execution_id), error=ErrorDetail(code="model_not_found", message="No such\nmodel."))
    result = cli("watch", execution_id, "--tenant", "acme")
    assert (result.exit_code, "failed      model_not_found: No such⏎ model." in result.stdout) == (1, True)
    portrait = ok(cli("show", execution_id, "--tenant", "acme"))
    assert "error      model_not_found" in portrait
    assert 'tool call  times {"a":6,"b":7} → 42' in portrait
    assert 'tool call  no {} → {"code":"odd","message":"no"}' in portrait
    assert portrait.endswith("\n\n42\n")


def test_running_submits_and_watches_to_the_end(redis_url: str, environment: None, store: BlockingStore) -> None:
    with agent_exec("run", *ASK) as running:
        assert running.stdout is not None
        execution_id = running.stdout.readline().decode().split("execution ")[1].split(",")[0]
        finish(store, claim(store, execution_id))
        assert "completed" in running.stdout.read().decode()
    assert running.returncode == 0


def test_interrupting_a_run_lets_it_go_on_and_says_how_to_watch_it(environment: None, store: BlockingStore) -> None:
    with agent_exec("run", *ASK) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        execution_id = running.stdout.readline().decode().split("execution ")[1].split(",")[0]
        running.send_signal(signal.SIGINT)
        assert f"agent-exec watch {execution_id} --tenant acme" in running.stderr.read().decode()
    assert running.returncode == 130
    assert not store.run(ledger.look("acme", execution_id)).cancel_requested


def test_on_a_terminal_it_is_coloured_and_an_interrupt_offers_to_cancel(
    environment: None, store: BlockingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with on_terminal("run", *ASK) as (running, terminal):
        shown = until(terminal, "agent desk")
        assert "\x1b[" in shown
        execution_id = shown.split("execution ")[1].split(",")[0]
        os.write(terminal, b"\x03")
        until(terminal, "Cancel the execution?")
        os.write(terminal, b"y\n")
        until(terminal, "asked for")
        assert running.wait(timeout=20) == 130
    assert store.run(ledger.look("acme", execution_id)).cancel_requested


def test_on_a_terminal_a_missing_query_is_not_waited_for(environment: None) -> None:
    with on_terminal("submit", "--tenant", "acme", "--agent", "desk") as (running, terminal):
        until(terminal, "--query TEXT")
        assert running.wait(timeout=20) == 2


def test_cancelling_is_durable_and_late_is_no_error(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    assert "its end is asked for" in ok(cli("cancel", execution_id, "--tenant", "acme"))
    assert "pending, its end is asked for" in ok(cli("show", execution_id, "--tenant", "acme"))
    completed = ok(cli("submit", *ASK)).strip()
    finish(store, claim(store, completed))
    assert "had ended before, as completed" in ok(cli("cancel", completed, "--tenant", "acme"))


def test_of_many_that_are_cancelled_one_that_is_missing_is_told(cli: Cli, store: BlockingStore) -> None:
    first, second, completed = (ok(cli("submit", *ASK)).strip() for _ in range(3))
    finish(store, claim(store, completed))
    result = cli("cancel", first, NOBODY, completed, second, "--tenant", "acme", "--json")
    assert result.exit_code == 1
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"execution_id": first, "status": "cancel_requested"},
        {"execution_id": completed, "status": "completed"},
        {"execution_id": second, "status": "cancel_requested"},
    ]
    assert f"agent-exec: not_found: Execution '{NOBODY}'" in result.stderr
    for execution_id in (first, second):
        assert store.run(ledger.look("acme", execution_id)).cancel_requested
    assert cli("cancel", "--tenant", "acme").exit_code == 2


def test_an_execution_is_made_more_or_less_urgent(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    prioritise = ("prioritise", execution_id, "--tenant", "acme", "--priority", "2")
    assert "its priority is 2 now" in ok(cli(*prioritise))
    assert json.loads(ok(cli(*prioritise, "--json"))) == {
        "execution_id": execution_id,
        "already_over": None,
        "priority": 2,
    }
    finish(store, claim(store, execution_id))
    assert "had ended before, as completed" in ok(cli(*prioritise))


def why(cli: Cli, execution_id: str) -> str:
    whole = ok(cli("why", execution_id, "--tenant", "acme"))
    told = json.loads(ok(cli("why", execution_id, "--tenant", "acme", "--json")))
    assert set(told) == {"execution", "steps", "last_events", "advice"}
    return whole


def test_why_explains_what_is_queued(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    assert "its tenant has 1 waiting and 0 in flight" in why(cli, execution_id)
    store.run(fair_queue.set_share("acme", cap=0))
    try:
        popped = store.run(fair_queue.pop("agent_execution"))
        assert isinstance(popped, fair_queue.Nothing)
        assert "is at its cap of 0 in flight" in why(cli, execution_id)
        assert "at its cap" in ok(cli("queues"))
    finally:
        store.run(fair_queue.set_share("acme"))


def test_why_explains_what_runs_and_what_was_left(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    claimed = claim(store, execution_id, lease_s=60)
    assert "attempt 1, held by worker-1, lease ends in" in why(cli, execution_id)
    assert "nothing to do but wait" in why(cli, execution_id)
    store.run(ledger.renew([claimed.hold], lease_s=0))
    assert "was left by worker-1" in why(cli, execution_id)


def test_why_explains_what_waits_for_its_next_attempt(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    claimed = claim(store, execution_id)
    waiting = {"stage": "waiting", "step": "prompt", "turn": 0, "detail": {"code": "neighbour_unavailable"}}
    store.run(ledger.wait(claimed.hold, due_in_s=300, events=[Event(EventName.PROGRESS, json.dumps(waiting))]))
    said = why(cli, execution_id)
    assert "failed once and is tried again in 299." in said or "failed once and is tried again in 300." in said
    assert "neighbour_unavailable" in said
    ok(cli("cancel", execution_id, "--tenant", "acme"))
    said = why(cli, execution_id)
    assert "Its end is asked for" in said
    assert "celery -A tasks worker" in said
    assert "tried again" not in said, "it is not"


def test_an_approval_is_awaited_given_and_taken_back_by_nobody(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    ids = (execution_id, "call_1", "--tenant", "acme")
    early = cli("approve", *ids)
    assert (early.exit_code, "not_awaiting_approval" in early.stderr) == (1, True)
    asked = ledger.wait(claim(store, execution_id).hold, due_in_s=300, events=[], awaits=word_for("call_1"))
    store.run(asked)
    assert f"agent-exec approve {' '.join(ids)}, or reject" in why(cli, execution_id)
    assert "waits for  approval of the tool call call_1" in ok(cli("show", execution_id, "--tenant", "acme"))
    assert "call_1': rejected" in ok(cli("reject", *ids, "--reason", "Not today."))
    assert "waits for" not in ok(cli("show", execution_id, "--tenant", "acme"))
    again = json.loads(ok(cli("reject", *ids, "--json")))
    assert (again["approved"], again["reason"]) == (False, "Not today.")
    otherwise = cli("approve", *ids)
    assert (otherwise.exit_code, "already_resolved" in otherwise.stderr) == (1, True)
    assert "not_found" in cli("approve", *ids[:2], "--tenant", "globex").stderr
    assert cli("reject", *ids, "--reason", "no" * 2_000).exit_code == 2


def test_why_explains_a_deferral_and_a_wait_for_something_else(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    hold = claim(store, execution_id).hold
    store.run(ledger.wait(hold, due_in_s=300, events=[], counted=False))
    assert "is put off, and goes on in" in why(cli, execution_id)
    other = ok(cli("submit", *ASK)).strip()
    store.run(ledger.wait(claim(store, other).hold, due_in_s=300, events=[], awaits="child"))
    assert "waits for 'child', which comes from outside" in why(cli, other)


def test_who_waits_for_another_agent_says_for_which_and_that_one_who_asked(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    child = parent.child_id(execution_id, "tool_call.1.0")
    word = parent.word_for(child)
    store.run(ledger.wait(claim(store, execution_id).hold, due_in_s=60, events=[], counted=False, awaits=word))
    request = ExecutionRequest(agent_id="clerk", query="?")
    message = submission.message_of(request, tenant_id="acme", execution_id=child)
    above = ledger.Parent(execution_id, word, ("desk",))
    store.run(submission.store_child(message, parent=above, priority=5, open_retention_s=3_600))
    asked = {"tool_call_id": "c1", "name": "ask_porter", "arguments": {}, "turn": 1, "child_execution_id": NOBODY}
    held = claim(store, child)
    tell(store, held, EventName.TOOL_CALL_REQUESTED, asked)
    shown = ok(cli("show", execution_id, "--tenant", "acme"))
    assert f"another agent, execution {child}" in shown
    assert f"execution {execution_id}" in ok(cli("show", child, "--tenant", "acme")).partition("asked for by")[2]
    assert f"See: agent-exec why {child} --tenant acme, or watch." in why(cli, execution_id)
    assert f"Asked for by execution '{execution_id}'; the agents above it: desk" in why(cli, child)
    finish(store, held)
    watched = ok(cli("watch", child, "--tenant", "acme"))
    assert f"agent clerk, for execution {execution_id}" in watched
    assert f"ask_porter {{}}, execution {NOBODY}" in watched


def test_why_leaves_what_a_newer_release_has_written_to_that_release(cli: Cli, store: BlockingStore) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    store.redis.hset(keys.execution("acme", execution_id), "v", 99)
    assert "only a worker of that release runs it" in why(cli, execution_id)


def test_why_explains_what_has_ended(cli: Cli, store: BlockingStore) -> None:
    completed, failed, may_retry, cancelled = (ok(cli("submit", *ASK)).strip() for _ in range(4))
    finish(store, claim(store, completed), text="")
    assert ok(cli("show", completed, "--tenant", "acme")).splitlines()[-1].startswith("tool call")
    finish(store, claim(store, failed), error=ErrorDetail(code="model_not_found", message="None."))
    finish(store, claim(store, may_retry), error=ErrorDetail(code="storage_full", message="Full.", retryable=True))
    assert f"agent-exec show {completed}" in why(cli, completed)
    assert "'model_not_found': None." in why(cli, failed)
    assert "would fail again" in why(cli, failed)
    finish(store, claim(store, cancelled), error=ErrorDetail(code="cancelled", message="On request."))
    assert "begins it anew" in why(cli, cancelled)
    assert "may help" in why(cli, may_retry)


def test_why_tells_a_deadline_that_has_passed(cli: Cli, store: BlockingStore, tmp_path: Path) -> None:
    execution_id = ok(cli("submit", *ASK)).strip()
    claimed = claim(store, execution_id)
    step = {"next_steps": ["completion.1"], "parent_id": "p", "priority": 5}
    store.run(ledger.record(claimed.hold, result="{}", events=[], deadline_s=0.001, **step))
    said = why(cli, execution_id)
    assert "Its deadline has passed" in said
    assert "past every queue and cap" in said


def test_the_notifier_is_shown_and_checked(cli: Cli, store: BlockingStore) -> None:
    nobody = cli("notifier", "--check")
    assert nobody.exit_code == 1
    assert "no notifier; start one: python -m notifier" in nobody.output
    report = NotifierReport(
        holder="host.1.ab",
        active_since_ms=1_700_000_000_000,
        connections=3,
        sent=17,
        trouble="the orchestrator answered 503",
        ignored={"bad_ack": 2},
    )
    for said in (report, report.model_copy(update={"connected_since_ms": 1_700_000_001_000, "trouble": None})):
        store.redis.set(keys.notifier_lease(), "host.1.ab", px=60_000)
        store.redis.set(keys.notifier_report(), said.model_dump_json(), px=60_000)
        shown = ok(cli("notifier", "--check"))
        assert re.search(r"ACTIVE +host\.1\.ab since 2023-11-1", shown)
        assert re.search(r"SENT +17 frames over 3 connections", shown)
        assert re.search(r"IGNORED +bad_ack: 2", shown)
        assert re.search(r"UNSENT +0 executions, lag 0\.0 s", shown)
        is_connected = said.trouble is None
        assert ("since 2023" in shown.splitlines()[1], "no: the orchestrator answered 503" in shown) == (
            is_connected,
            not is_connected,
        )
        told = json.loads(ok(cli("notifier", "--json")))
        assert (told["is_active"], told["is_connected"], told["report"]["sent"]) == (True, is_connected, 17)
    store.redis.delete(keys.notifier_report())
    assert "just now" in ok(cli("notifier"))


def test_queues_show_families_and_tenants(cli: Cli, store: BlockingStore) -> None:
    for _ in range(2):
        ok(cli("submit", *ASK))
    popped = store.run(fair_queue.pop("agent_execution"))
    assert isinstance(popped, fair_queue.Delivery)
    rows = [json.loads(line) for line in ok(cli("queues", "--json")).splitlines()]
    assert {(row["family"], row["tenant"]): (row["waiting"], row["in_flight"]) for row in rows} == {
        ("agent_execution", None): (1, 1),
        ("agent_execution", "acme"): (1, 1),
        ("agent_tools", None): (0, 0),
    }
    assert re.search(r"agent_execution +acme +1 +1", ok(cli("queues")))
    store.redis.lpush("agent_execution", json.dumps({"body": "from elsewhere"}))
    assert "1 of them from apps without this package" in ok(cli("queues"))


def test_dead_letters_say_why_and_are_whole_in_json(cli: Cli, store: BlockingStore) -> None:
    assert ok(cli("dead-letters")) == "No dead letters.\n"
    ok(cli("submit", *ASK))
    popped = store.run(fair_queue.pop("agent_execution"))
    assert isinstance(popped, fair_queue.Delivery)
    store.run(fair_queue.dead_letter(popped.delivery, reason="made of\nnonsense"))
    assert re.search(r"agent_execution:acme .* made of⏎ nonsense", ok(cli("dead-letters")))
    letter = json.loads(ok(cli("dead-letters", "--json", "--limit", "1")))
    assert (letter["reason"], letter["queue"]) == ("made of\nnonsense", "agent_execution:acme")


def test_a_key_is_shown_once_listed_and_revoked(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_EXEC_API_KEYS_FILE", str(tmp_path / "keys.json"))
    key = ok(cli("keys", "create", "--tenant", "acme", "--role", "operator")).strip()
    _, key_id, secret = key.split("_", 2)
    assert secret not in (tmp_path / "keys.json").read_text()
    listed = ok(cli("keys", "list"))
    assert re.search(rf"{key_id} +acme +operator", listed)
    assert secret not in listed
    assert "revoked since" in ok(cli("keys", "revoke", key_id))
    (record,) = [json.loads(line) for line in ok(cli("keys", "list", "--json")).splitlines()]
    assert (record["key_id"], record["revoked_at"] is None, "secret_sha256" in record) == (key_id, False, False)
    assert cli("keys", "revoke", "nosuchkey").exit_code == 1
    assert cli("keys", "create", "--tenant", "No Such").exit_code == 1


def test_the_schemas_in_the_docs_are_current(cli: Cli, root: Path, tmp_path: Path) -> None:
    assert f"{len(texts())} schemas" in ok(cli("schemas", str(tmp_path / "schemas")))
    written = {path.name: path.read_text() for path in (tmp_path / "schemas").iterdir()}
    documented = {path.name: path.read_text() for path in (root / "docs" / "schemas").iterdir()}
    assert documented == written, "run: agent-exec schemas docs/schemas"


def test_nothing_that_is_printed_commands_the_terminal() -> None:
    assert printable("a\tb\nc\x1b[31m\x07\x00\x7f\x9b2J") == "a\tb\nc␛[31m␇␀␡\ufffd2J"
    assert one_line("x" * 400) == "x" * 300 + "…"
    assert columns([("a", 1), ("bbb", "\x1b")]) == "a    1\nbbb  ␛"


COMMAND = [sys.executable, "-c", "from agent_exec.cli import main; main()"]


def agent_exec(*arguments: str) -> subprocess.Popen[bytes]:
    """Start the command as a process of its own, its output not a terminal."""
    return subprocess.Popen(
        [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@contextmanager
def on_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start the command on a terminal; yield its process and our end of the terminal."""
    ours, theirs = os.openpty()
    running = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield running, ours
    finally:
        running.kill()
        running.wait()
        os.close(ours)


def until(terminal: int, text: str) -> str:
    """Read a terminal until it shows `text`; return all that was read."""
    shown = b""
    give_up_at = time.monotonic() + 20
    while text.encode() not in shown:
        assert time.monotonic() < give_up_at, shown
        shown += os.read(terminal, 65_536)
    return shown.decode()


EVERY_DAY = (
    "--tenant",
    "acme",
    "--cron",
    "0 7 * * *",
    "--timezone",
    "Europe/Berlin",
    "--agent",
    "desk",
    "--query",
    "?",
)


def test_a_schedule_is_made_shown_paused_and_deleted(cli: Cli) -> None:
    assert "No schedules" in ok(cli("schedules", "list", "--tenant", "acme"))
    made = ok(cli("schedules", "create", *EVERY_DAY, "--no-overlap")).strip()
    named = (made, "--tenant", "acme")
    assert "0 7 * * * (Europe/Berlin)" in ok(cli("schedules", "show", *named))
    shown = json.loads(ok(cli("schedules", "show", *named, "--json")))
    assert (shown["overlap"], shown["paused"], shown["request"]["agent_id"]) == (False, False, "desk")
    assert "begins nothing more" in ok(cli("schedules", "pause", *named))
    assert "paused" in ok(cli("schedules", "list", "--tenant", "acme"))
    assert "next due" in ok(cli("schedules", "resume", *named))
    assert json.loads(ok(cli("schedules", "list", "--tenant", "acme", "--json")))["schedule_id"] == made
    assert "deleted" in ok(cli("schedules", "delete", *named))
    assert cli("schedules", "show", *named).exit_code == 1


@pytest.mark.parametrize(
    ("changed", "said"), [(("--cron", "61 * * * *"), "cron line"), (("--timezone", "Mars/Olympus"), "time zone")]
)
def test_a_schedule_that_is_none_is_told(cli: Cli, changed: tuple[str, ...], said: str) -> None:
    result = cli("schedules", "create", *EVERY_DAY, *changed)
    assert (result.exit_code, said in result.stderr) == (2, True)


def test_a_batch_is_handed_in_once_for_each_file(cli: Cli) -> None:
    asked = ("batch", "-", "--tenant", "acme", "--agent", "desk", "--detach")
    first, again = [ok(cli(*asked, stdin='{"query": "6 * 7?"}\n')) for _ in range(2)]
    assert first == again
    assert json.loads(ok(cli(*asked, "--json", stdin='{"query": "7 * 7?"}\n')))["batch_id"] != first.strip()
