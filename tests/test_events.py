"""Events read back: in order, page by page, in the frame of the contract."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_exec import events, submission
from agent_exec.contract.event import TERMINAL_EVENTS, EventName, Frame
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.message import Message, Metadata
from agent_exec.errors import NotFound
from agent_exec.events import LoggedEvent, Page
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, Event, Piece, StepRef
from agent_exec.store import BlockingStore

ID = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"
OPAQUE = st.from_regex(r"[\x21-\x7e]{1,200}", fullmatch=True)
JSON = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=3,
)


@settings(deadline=None)  # a regex is slow to draw from
@given(st.sampled_from(list(EventName)), OPAQUE, st.none() | OPAQUE, st.integers(1, 2**53), st.integers(0, 2**42), JSON)
def test_a_frame_is_what_the_contract_says(
    name: EventName, task_id: str, global_task_id: str | None, sequence: int, at_ms: int, data: dict[str, Any]
) -> None:
    page = Page("acme", ID, task_id, global_task_id, False, sequence, [])
    text = page.frame(LoggedEvent(sequence, name, at_ms, json.dumps(data)))
    frame = Frame.model_validate_json(text)
    assert "\n" not in text, "one line, as SSE wants it"
    assert frame.timestamp.timestamp() == at_ms / 1000
    assert frame.model_dump(exclude={"timestamp"}) == {
        "event": name,
        "service": "agent-execution",
        "task_id": task_id,
        "global_task_id": global_task_id,
        "tenant_id": "acme",
        "execution_id": ID,
        "event_id": f"{ID}:{sequence}",
        "sequence": sequence,
        "data": data,
    }
    assert list(json.loads(text)) == list(Frame.model_fields), "in the contract's order, and no field more"


def accepted(store: BlockingStore, **metadata: Any) -> Message:
    request = ExecutionRequest(agent_id="desk", query="6 * 7?", metadata=Metadata(**metadata))
    message = submission.message_of(request, tenant_id="acme")
    message = message.model_copy(update={"task_id": 'odd"task\\{id}\x7e'})
    store.run(submission.store(message, open_retention_s=3_600, max_queued=10))
    return message


def test_ids_and_text_come_through_the_store_unharmed(store: BlockingStore) -> None:
    message = accepted(store, global_task_id='g"\\:{1}')
    claim = store.run(ledger.claim(StepRef("acme", message.execution_id, "prompt"), lease_s=9, worker="w"))
    assert isinstance(claim, Claimed)
    said = 'ünïcode "quoted" \\ \n\x00\u2028 🙂'
    store.run(ledger.tell_pieces([Piece(claim.hold, 1, json.dumps({"token": said}))]))
    page = store.run(events.read("acme", message.execution_id))
    first, second = [Frame.model_validate_json(page.frame(event)) for event in page.events]
    assert (first.event, first.task_id, first.global_task_id) == (EventName.STARTED, message.task_id, 'g"\\:{1}')
    assert (second.sequence, second.data) == (2, {"token": said})
    assert not page.is_over


def test_pages_follow_one_another_without_a_gap(store: BlockingStore) -> None:
    message = accepted(store)
    claim = store.run(ledger.claim(StepRef("acme", message.execution_id, "prompt"), lease_s=9, worker="w"))
    assert isinstance(claim, Claimed)
    store.run(ledger.tell(claim.hold, [Event(EventName.PROGRESS, "{}")] * 24))
    seen: list[int] = []
    while (page := store.run(events.read("acme", message.execution_id, after=len(seen), limit=10))).events:
        assert page.last_sequence == 25
        seen += [event.sequence for event in page.events]
    assert seen == list(range(1, 26))
    assert store.run(events.read("acme", message.execution_id, after=2**40)).events == []


@pytest.mark.parametrize("tenant_id", ["globex", "acme"])
def test_what_is_not_there_is_not_found(store: BlockingStore, tenant_id: str) -> None:
    message = accepted(store)
    with pytest.raises(NotFound):
        store.run(events.read(tenant_id, message.execution_id if tenant_id == "globex" else ID))


def test_the_terminal_events_are_two() -> None:
    assert {name for name in EventName if LoggedEvent(1, name, 0, "{}").is_terminal} == TERMINAL_EVENTS
    assert len(TERMINAL_EVENTS) == 2
