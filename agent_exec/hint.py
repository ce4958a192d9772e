"""A hint: the Celery message that says "this step may be due". It holds ids and nothing else.

Owns the message's exact form (Celery's protocol 2, as kombu would write it) and its identity: the same step, claimed as
often, always makes the same hint, so sending one twice queues one. Does not know the ledger, nor how a queue works.

Source: Celery, "Message Protocol", version 2; compared with what Celery itself publishes by tests/test_hint.py.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from agent_exec import routing
from agent_exec.broker import fair_queue
from agent_exec.script import Call

#: The version of a hint's arguments. A worker leaves a newer one for a newer worker.
HINT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """One step that may be due. `label` tells its hints apart: how often it was claimed before."""

    tenant_id: str
    agent_id: str
    execution_id: str
    step: str
    priority: int
    label: str = "0"
    parent_id: str = ""

    @property
    def task_id(self) -> str:
        """The Celery task's id, and the message's tag in the broker."""
        return f"{self.execution_id}.{self.step}.{self.label}"

    @property
    def queue(self) -> str:
        """The tenant's queue for it."""
        return routing.queue(self.tenant_id, self.agent_id, self.step)

    def arguments(self) -> dict[str, Any]:
        """Return the task's keyword arguments: ids and a version."""
        return {
            "tenant_id": self.tenant_id,
            "execution_id": self.execution_id,
            "step": self.step,
            "version": HINT_VERSION,
        }

    def message(self) -> str:
        """Return the wire message, JSON."""
        arguments = self.arguments()
        body = json.dumps([[], arguments, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
        return json.dumps(
            {
                "body": base64.b64encode(body.encode()).decode(),
                "content-encoding": "utf-8",
                "content-type": "application/json",
                "headers": {
                    "lang": "py",
                    "task": routing.task_name(self.step),
                    "id": self.task_id,
                    "shadow": None,
                    "eta": None,
                    "expires": None,
                    "group": None,
                    "group_index": None,
                    "retries": 0,
                    "timelimit": [None, None],
                    "root_id": self.execution_id,
                    "parent_id": self.parent_id or self.execution_id,
                    "argsrepr": "()",
                    "kwargsrepr": repr(arguments),
                    "origin": "agent-exec",
                    "ignore_result": True,
                    "replaced_task_nesting": 0,
                    "stamped_headers": None,
                    "stamps": {},
                },
                "properties": {
                    "correlation_id": self.task_id,
                    "reply_to": "",
                    "delivery_mode": 2,
                    "delivery_info": {"exchange": "", "routing_key": self.queue},
                    "priority": self.priority,
                    "body_encoding": "base64",
                    "delivery_tag": self.task_id,
                },
            }
        )

    def reprioritise(self) -> Call[bool]:
        """Return the call that gives this priority to the hint that is queued; it answers False where none is."""
        return fair_queue.reprioritise(self.task_id, priority=self.priority)

    def push(self) -> Call[bool]:
        """Return the call that queues it; it answers False where it is queued or held by a worker already."""
        return fair_queue.push(self.queue, tag=self.task_id, priority=self.priority, message=self.message())
