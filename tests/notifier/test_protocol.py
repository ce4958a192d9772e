"""What may be said, and what is on its way: by values alone."""

from __future__ import annotations

import json
import random

import pytest

from agent_exec.contract.command import CommandResult
from agent_exec.events import event_id
from notifier.protocol import (
    Ack,
    BadCommand,
    CancelExecution,
    Ignored,
    Position,
    Probe,
    ReplayFrom,
    ResolveApproval,
    Window,
    hear,
)

EXECUTION = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"


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


def test_a_probe_proves_what_was_sent_before_it_and_no_more() -> None:
    window = Window(10)
    window.sent(Position("acme", "a", 3), frames=3)
    window.sent(Position("acme", "b", 1), frames=1)
    window.sent(Position("acme", "a", 5), frames=2)
    probe = window.probe()
    window.sent(Position("acme", "a", 6), frames=1)
    assert probe == Probe(6, [Position("acme", "a", 5), Position("acme", "b", 1)])
    assert window.room == 3
    window.arrived(probe)
    assert window.room == 9
    assert window.probe() == Probe(1, [Position("acme", "a", 6)])


@pytest.mark.parametrize("seed", range(20))
def test_two_ends_in_memory_agree_however_the_wire_delays(seed: int) -> None:
    """A sender with a window, a wire that holds frames and pings back, a receiver: nothing is proven before it is there."""
    dice = random.Random(seed)
    window, wire, pongs = Window(7), list[Position | Probe](), list[Probe]()
    sent, there, proven = dict.fromkeys("abc", 0), dict.fromkeys("abc", 0), dict.fromkeys("abc", 0)
    while min(proven.values()) < 30:
        match dice.choice(["send", "ping", "carry", "pong"]):
            case "send" if window.room:
                execution = dice.choice("abc")
                frames = dice.randint(1, window.room)
                for _ in range(frames):
                    sent[execution] += 1
                    wire.append(Position("acme", execution, sent[execution]))
                window.sent(Position("acme", execution, sent[execution]), frames=frames)
            case "ping":
                wire.append(window.probe())
            case "carry" if wire:
                match wire.pop(0):
                    case Position(_, execution, sequence):
                        assert sequence == there[execution] + 1
                        there[execution] = sequence
                    case Probe() as probe:
                        pongs.append(probe)
            case "pong" if pongs:
                probe = pongs.pop(0)
                window.arrived(probe)
                proven |= {one.execution_id: one.sequence for one in probe.positions}
            case _:
                pass
        assert all(proven[execution] <= there[execution] <= sent[execution] for execution in "abc")
        assert 0 <= window.room <= window.size
