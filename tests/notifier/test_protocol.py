"""What may be said, and what is on its way: by values alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_exec.contract.command import CommandResult
from agent_exec.events import event_id
from notifier import protocol
from notifier.protocol import (
    Ack,
    BadCommand,
    CancelExecution,
    Conversation,
    Ignored,
    Position,
    ReplayFrom,
    ResolveApproval,
    Unsettled,
    hear,
)

EXECUTION = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"
OTHER = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f11"


def said(**message: object) -> str:
    return json.dumps(message)


def test_an_ack_names_an_execution_and_a_sequence() -> None:
    ack = hear(said(ack=event_id(EXECUTION, 17)))
    assert isinstance(ack, Ack)
    assert (ack.execution_id, ack.sequence) == (EXECUTION, 17)


@pytest.mark.parametrize(
    ("message", "heard"),
    [
        (
            said(command="cancel_execution", execution_id=EXECUTION),
            CancelExecution(command="cancel_execution", execution_id=EXECUTION),
        ),
        (
            said(command="cancel_execution", execution_id=EXECUTION, tenant_id="acme"),
            CancelExecution(command="cancel_execution", execution_id=EXECUTION, tenant_id="acme"),
        ),
        (
            said(command="resolve_approval", execution_id=EXECUTION, tool_call_id="c1", approved=False, reason="no"),
            ResolveApproval(
                command="resolve_approval", execution_id=EXECUTION, tool_call_id="c1", approved=False, reason="no"
            ),
        ),
        (
            said(command="replay_from", execution_id=EXECUTION, sequence=3),
            ReplayFrom(command="replay_from", execution_id=EXECUTION, sequence=3),
        ),
    ],
)
def test_each_command_is_heard(message: str, heard: object) -> None:
    assert hear(message) == heard


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x00\xff", "not_text"),
        ("", "not_json"),
        ("{", "not_json"),
        ('{"ack": NaN}', "not_json"),
        ("[" * 100_000, "not_json"),
        (said(ack="yes"), "bad_ack"),
        (said(ack=17), "bad_ack"),
        (said(ack=2**63), "bad_ack"),
        (said(ack=None), "bad_ack"),
        (said(ack=f"{EXECUTION}:0"), "bad_ack"),
        (said(ack=f"{EXECUTION}:-1"), "bad_ack"),
        (said(ack=f"{EXECUTION}:1.5"), "bad_ack"),
        (said(ack=f"{EXECUTION}:{2**63}"), "bad_ack"),
        (said(ack=f"{EXECUTION}:1\n"), "bad_ack"),
        (said(ack=f"{EXECUTION}:1", command="cancel_execution"), "bad_ack"),
        (said(command="drop_tables", execution_id=EXECUTION), "unknown_command"),
        (said(command=None), "unknown_command"),
        (said(command=["cancel_execution"]), "unknown_command"),
        ("[]", "other_shape"),
        ("17", "other_shape"),
        (said(hello="world"), "other_shape"),
    ],
)
def test_anything_else_is_ignored_with_a_reason(message: str | bytes, reason: str) -> None:
    """B37."""
    assert hear(message) == Ignored(reason)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (said(command="cancel_execution"), "execution_id: Field required"),
        (said(command="cancel_execution", execution_id=EXECUTION, tenant_id="A:B"), "tenant_id: String should match"),
        (said(command="cancel_execution", execution_id=EXECUTION, force=True), "force: Extra inputs"),
        (said(command="replay_from", execution_id=EXECUTION, sequence=0), "sequence: Input should be greater"),
        (said(command="replay_from", execution_id=EXECUTION, sequence=2**63), "sequence: Input should be less"),
        (said(command="replay_from", execution_id=EXECUTION, sequence=True), "sequence: Input should be a valid int"),
        (said(command="replay_from", execution_id=EXECUTION, sequence=1.0), "sequence: Input should be a valid int"),
        (said(command="resolve_approval", execution_id=EXECUTION, tool_call_id="c"), "approved: Field required"),
    ],
)
def test_a_command_with_wrong_fields_is_told_so(message: str, complaint: str) -> None:
    bad = hear(message)
    assert isinstance(bad, BadCommand)
    assert complaint in bad.complaint
    assert bad.execution_id in (EXECUTION, None)


def test_a_result_says_what_became_of_a_command() -> None:
    done = CommandResult(command="cancel_execution", execution_id=EXECUTION)
    assert json.loads(done.frame()) == {
        "event": "command_result",
        "service": "agent-execution",
        "command": "cancel_execution",
        "execution_id": EXECUTION,
        "ok": True,
    }
    refused = json.loads(
        CommandResult(command="resolve_approval", execution_id=None, code="c", message="m", tool_call_id="t").frame()
    )
    assert (refused["ok"], refused["code"], refused["message"], refused["tool_call_id"]) == (False, "c", "m", "t")
    assert refused["execution_id"] is None


def conversation(*, window: int = 10, ignored: list[str] | None = None) -> Conversation:
    return Conversation(window=window, ignore=(ignored if ignored is not None else []).append)


def test_a_pong_proves_what_was_sent_before_its_ping_and_no_more() -> None:
    ours = conversation()
    ours.sent(Position("acme", "a", 3), frames=3)
    ours.sent(Position("acme", "b", 1), frames=1)
    ours.sent(Position("acme", "a", 5), frames=2)
    ours.ping()
    ours.sent(Position("acme", "a", 6), frames=1)
    assert (ours.room, ours.is_half_empty, ours.is_settled) == (3, False, True)
    ours.pong()
    assert (ours.room, ours.is_half_empty, ours.is_settled) == (9, True, False)
    assert ours.unsettled() == Unsettled([], [Position("acme", "a", 5), Position("acme", "b", 1)])
    assert ours.unsettled() == Unsettled([], [])
    ours.ping()
    ours.pong()
    assert (ours.room, ours.unsettled()) == (10, Unsettled([], [Position("acme", "a", 6)]))


def test_nothing_from_before_a_replay_proves_what_it_sends_again() -> None:
    ours = conversation()
    ours.sent(Position("acme", EXECUTION, 3), frames=3)
    ours.ping()
    ours.sent(Position("acme", EXECUTION, 4), frames=1)
    ours.heard(said(ack=event_id(EXECUTION, 4)))
    ours.sends_again(EXECUTION)
    ours.pong()
    ours.ping()
    ours.pong()
    assert (ours.room, ours.unsettled()) == (10, Unsettled([], []))


def test_of_an_executions_acks_the_highest_counts() -> None:
    ours = conversation()
    for sequence in (2, 5, 3):
        assert ours.heard(said(ack=event_id(EXECUTION, sequence))) is None
    assert [ack.sequence for ack in ours.unsettled().acks] == [5]
    assert ours.is_settled


def test_acks_that_wait_are_bounded_and_junk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_WAITING_ACKS", 1)
    ignored = list[str]()
    ours = conversation(ignored=ignored)
    for message in (
        said(ack=event_id(EXECUTION, 1)),
        said(ack=event_id(OTHER, 1)),
        said(ack=event_id(EXECUTION, 2)),
        "?",
    ):
        assert ours.heard(message) is None
    assert ignored == ["too_many_acks", "not_json"]
    assert [ack.ack for ack in ours.unsettled().acks] == [event_id(EXECUTION, 2)]


def test_what_is_asked_for_is_handed_on() -> None:
    command = {"command": "replay_from", "execution_id": EXECUTION}
    assert isinstance(conversation().heard(said(**command, sequence=1)), ReplayFrom)
    assert isinstance(conversation().heard(said(**command)), BadCommand)


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(EXECUTION),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ["ack", "command", "execution_id", "sequence", "tenant_id", "tool_call_id", "approved", "reason"]


@given(st.binary(max_size=60) | st.text(st.characters(), max_size=60))
def test_no_text_raises(message: str | bytes) -> None:
    assert isinstance(hear(message), Ignored)


@given(
    st.dictionaries(st.sampled_from(_FIELDS), _ANY, max_size=len(_FIELDS)),
    st.sampled_from([None, "cancel_execution", "resolve_approval", "replay_from"]),
)
def test_nothing_that_is_said_raises(said_: dict[str, object], command: str | None) -> None:
    heard = hear(json.dumps(said_ if command is None else {**said_, "command": command}))
    assert isinstance(heard, Ack | CancelExecution | ResolveApproval | ReplayFrom | BadCommand | Ignored)
    if isinstance(heard, BadCommand):
        assert heard.complaint
