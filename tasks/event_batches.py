"""Celery's task events, published together a few times a second.

Owns when the buffer of Celery's event dispatcher is emptied. What the events say, and the buffer, are Celery's; the others
(worker events: heartbeats, online, offline) are not buffered and leave at once, as ever.

A task has three events. Celery publishes them at the next turn of its main loop, which under load is a message of its own
for nearly each: a fifth of the worker's CPU (docs/performance.md).

    app.steps["consumer"].add(EventBatches)
"""

from typing import Any

from celery import bootsteps
from celery.worker.consumer.events import Events

FLUSH_EVERY_S = 0.25
"""What Flower is behind by at most; and an idle worker wakes no oftener than a blocked read of its queues has it anyway."""

AT_ONCE = 1_000
"""Events after which whoever sends the next one publishes all, which is then some 500 kB. In `FLUSH_EVERY_S` that is more
than a process can run: Celery's own limit of 24 would have the asyncio loop wait for Redis."""


class EventBatches(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
    """A part of Celery's consumer, which starts it with each connection to the broker."""

    requires = (Events,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Join `consumer`; Celery calls this."""
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Take over from the loop's turns. Without a loop (gevent's pools) Celery buffers nothing, and nothing is done."""
        dispatcher = consumer.event_dispatcher
        if consumer.hub is not None:
            dispatcher.on_send_buffered = None
            dispatcher.buffer_limit = AT_ONCE
            self._timer = consumer.timer.call_repeatedly(FLUSH_EVERY_S, dispatcher.flush)

    def stop(self, consumer: Any) -> None:
        """Publish what there is: a new connection gets a new dispatcher, and a buffer that is not empty would be dropped.

        The timer goes on, for tasks that a stopping worker waits for; a new connection has cancelled it.
        """
        if consumer.event_dispatcher is not None:
            consumer.event_dispatcher.flush()

    def shutdown(self, consumer: Any) -> None:
        """Publish the last, after all tasks have ended."""
        if self._timer is not None:
            self._timer.cancel()
        self.stop(consumer)
