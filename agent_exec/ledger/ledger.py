"""The ledger's calls, under one name: `ledger.accept`, `ledger.claim` and the rest.

Owns nothing: `acceptance.py` has the calls of the doors, `hold.py` those of a worker for its step, `pending.py` those about
what is due, `request.py` those of a caller.
"""

from agent_exec.ledger.acceptance import LOST_HINT_AFTER_MS, Acceptance, accept, digest, note_tenant, refuse
from agent_exec.ledger.hold import (
    REFUSALS,
    Claimed,
    Hold,
    NotClaimed,
    claim,
    finish,
    join,
    mark,
    record,
    release,
    renew,
    tell,
    wait,
)
from agent_exec.ledger.life import SCHEMA_VERSION
from agent_exec.ledger.pending import DUE_AT_ONCE, LOOK_AGAIN_AFTER_MS, NEWER_AGAIN_AFTER_MS, Due, due, put_off
from agent_exec.ledger.request import (
    AlreadyOver,
    CancelRequested,
    Listed,
    NotWaiting,
    Prioritised,
    Sent,
    cancel,
    list_executions,
    look,
    not_found,
    prioritise,
    send_word,
)
from agent_exec.ledger.step_ref import Event, StepRef

__all__ = [
    "DUE_AT_ONCE",
    "LOOK_AGAIN_AFTER_MS",
    "LOST_HINT_AFTER_MS",
    "NEWER_AGAIN_AFTER_MS",
    "REFUSALS",
    "SCHEMA_VERSION",
    "Acceptance",
    "AlreadyOver",
    "CancelRequested",
    "Claimed",
    "Due",
    "Event",
    "Hold",
    "Listed",
    "NotClaimed",
    "NotWaiting",
    "Prioritised",
    "Sent",
    "StepRef",
    "accept",
    "cancel",
    "claim",
    "digest",
    "due",
    "finish",
    "join",
    "list_executions",
    "look",
    "mark",
    "not_found",
    "note_tenant",
    "prioritise",
    "put_off",
    "record",
    "refuse",
    "release",
    "renew",
    "send_word",
    "tell",
    "wait",
]
