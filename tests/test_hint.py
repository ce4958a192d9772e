"""A hint is the message that Celery itself would publish."""

from __future__ import annotations

import base64
import json
from typing import Any

from celery import Celery

from agent_exec import routing
from agent_exec.hint import Hint

HINT = Hint(
    tenant_id="acme",
    agent_id="desk",
    execution_id="6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10",
    step="completion.2",
    priority=7,
    label="1",
    parent_id="6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10.prompt.0",
)


def published_by_celery(hint: Hint) -> dict[str, Any]:
    """What `send_task` writes, caught on kombu's in-memory transport."""
    app = Celery(broker="memory://", set_as_current=False)
    app.conf.task_ignore_result = True
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        app.send_task(
            routing.task_name(hint.step),
            kwargs=hint.arguments(),
            task_id=hint.task_id,
            root_id=hint.execution_id,
            parent_id=hint.parent_id,
            queue="caught",
            priority=hint.priority,
            ignore_result=True,
            connection=connection,
        )
        message: dict[str, Any] = channel._get("caught")
    return message


def test_a_hint_is_what_celery_would_publish() -> None:
    ours, theirs = json.loads(HINT.message()), published_by_celery(HINT)
    assert json.loads(base64.b64decode(ours["body"])) == json.loads(base64.b64decode(theirs["body"]))
    assert ours["content-type"] == theirs["content-type"]
    assert ours["content-encoding"] == theirs["content-encoding"]
    of_the_sender = {"origin"}
    assert {k: v for k, v in ours["headers"].items() if k not in of_the_sender} == {
        k: v for k, v in theirs["headers"].items() if k not in of_the_sender
    }
    of_the_sender = {"reply_to", "delivery_tag", "delivery_info"}
    assert {k: v for k, v in ours["properties"].items() if k not in of_the_sender} == {
        k: v for k, v in theirs["properties"].items() if k not in of_the_sender
    }


def test_a_hint_holds_ids_and_nothing_else() -> None:
    """S21."""
    assert HINT.arguments() == {
        "tenant_id": "acme",
        "execution_id": HINT.execution_id,
        "step": "completion.2",
        "version": 1,
    }


def test_the_same_step_claimed_as_often_makes_the_same_hint() -> None:
    again = Hint(**{name: getattr(HINT, name) for name in HINT.__slots__})
    assert again.task_id == HINT.task_id
    labels = {
        Hint(tenant_id="a", agent_id="b", execution_id="c", step="prompt", priority=1, label=label).task_id
        for label in ("0", "1", "2")
    }
    assert len(labels) == 3


def test_tool_calls_go_to_the_agents_own_queue() -> None:
    tool = Hint(tenant_id="acme", agent_id="desk", execution_id="x", step="tool_call.1.0", priority=5)
    assert tool.queue == "agent_tools:acme:desk"
    assert HINT.queue == "agent_execution:acme"
