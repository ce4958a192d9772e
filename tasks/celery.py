"""The Celery application, in the module where `celery -A tasks` looks for it.

Owns its making and its log. Does not know any task: celeryconfig.py names the module that has them.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.signals import setup_logging

from agent_exec.logs import configure
from agent_exec.settings import read_settings
from tasks.connection import AMQP
from tasks.event_batches import EventBatches

app = Celery("agent_exec", amqp=AMQP, task_cls="tasks.task:Task", config_source="celeryconfig")
app.steps["consumer"].add(EventBatches)


@setup_logging.connect  # type: ignore[untyped-decorator]  # celery has no types
def _log_as_every_process_does(**_: Any) -> None:
    configure(read_settings(), "worker")
