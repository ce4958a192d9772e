"""How these tests look at a running execution: whether it streams, who holds it, and whether its events are whole.

Owns looking. Changes nothing.
"""

from __future__ import annotations

import json
from collections import Counter

from pytest_celery import CeleryTestSetup

from agent_exec import AgentExecClient, EventName, Frame
from agent_exec.ledger import ledger
from agent_exec.store import BlockingStore
from tests.containers.nodes import Worker

#: Long enough to be interrupted in the middle of the answer.
QUESTION = "Tell me at some length what you can do for me."


def streaming(client: AgentExecClient, execution_id: str) -> bool:
    """Say whether a token has come."""
    last = client.get("acme", execution_id).last_sequence
    for frame in client.events("acme", execution_id):
        if frame.event == EventName.TOKEN:
            return True
        if frame.sequence >= last:
            return False
    return False


def held_by(setup: CeleryTestSetup, execution_id: str) -> tuple[Worker, Worker]:
    """Return the worker that runs a step of the execution, and the other one."""
    [holder] = workers_of(setup, execution_id, state="running")
    one, other = setup.worker_cluster
    return (one, other) if one.short_id == holder else (other, one)


def workers_of(setup: CeleryTestSetup, execution_id: str, *, state: str | None = None) -> set[str]:
    """Return the short ids of the containers that claimed a step, or a step that is in this state, last."""
    store = BlockingStore(setup.broker.container.host_url)
    try:
        steps = [json.loads(packed) for packed in store.run(ledger.look("acme", execution_id)).steps.values()]
    finally:
        store.close()
    return {step["worker"].split(":")[0] for step in steps if state in (None, step["state"])}


def whole(client: AgentExecClient, execution_id: str) -> list[Frame]:
    """Return the frames of an execution that completed, having checked: no gap, one end, the tokens are the text."""
    frames = list(client.events("acme", execution_id))
    assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
    names = Counter(frame.event for frame in frames)
    assert (names[EventName.COMPLETED], names[EventName.FAILED]) == (1, 0)
    assert frames[-1].event == EventName.COMPLETED
    restarted = max((frame.sequence for frame in frames if frame.event == EventName.STEP_RESTARTED), default=0)
    said = [
        str(frame.data["token"]) for frame in frames if frame.event == EventName.TOKEN and frame.sequence > restarted
    ]
    response = client.get("acme", execution_id).response
    assert response is not None
    assert "".join(said) == response.output.text
    return frames


def restarts(frames: list[Frame]) -> int:
    """Return how often a step began anew after tokens of it had been seen."""
    return sum(frame.event == EventName.STEP_RESTARTED for frame in frames)
