"""The ledger's calls, under one name: `ledger.accept`, `ledger.claim` and the rest.

Owns nothing: `acceptance.py` has the calls of the doors, `hold.py` those of a worker for its step, `pending.py` those about
what is due, `links.py` the one about links that were not sent, `request.py` those of a caller.
"""

from agent_exec.ledger.acceptance import LOST_HINT_AFTER_MS, Acceptance, Orphan, accept, digest, note_tenant, refuse
from agent_exec.ledger.hold import (
    REFUSALS,
    Claimed,
    Finished,
    Hold,
    NotClaimed,
    Piece,
    claim,
    finish,
    join,
    mark,
    record,
    release,
    renew,
    tell,
    tell_pieces,
    wait,
)
from agent_exec.ledger.life import SCHEMA_VERSION
from agent_exec.ledger.links import LINKS_AGAIN_AFTER_MS, LOST_LINKS_AFTER_MS, due_links
from agent_exec.ledger.parent import Parent
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
    "LINKS_AGAIN_AFTER_MS",
    "LOOK_AGAIN_AFTER_MS",
    "LOST_HINT_AFTER_MS",
    "LOST_LINKS_AFTER_MS",
    "NEWER_AGAIN_AFTER_MS",
    "REFUSALS",
    "SCHEMA_VERSION",
    "Acceptance",
    "AlreadyOver",
    "CancelRequested",
    "Claimed",
    "Due",
    "Event",
    "Finished",
    "Hold",
    "Listed",
    "NotClaimed",
    "NotWaiting",
    "Orphan",
    "Parent",
    "Piece",
    "Prioritised",
    "Sent",
    "StepRef",
    "accept",
    "cancel",
    "claim",
    "digest",
    "due",
    "due_links",
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
    "tell_pieces",
    "wait",
]
