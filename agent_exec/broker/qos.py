"""Which deliveries a channel holds, and how many more it may.

Owns the subclass of kombu's QoS: a family's deliveries are settled through the channel's leases, all others the stock way.
Does not know how a message was popped, for the pop has recorded it already.
"""

# kombu says that it is typed, and mostly is not:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual

from agent_exec.broker.fair_queue import is_delivery
from agent_exec.broker.leases import outliving


class QoS(stock.QoS):
    """What was delivered and is not settled."""

    def can_consume(self) -> bool:
        """Say whether there is room. A task that outlived its connection fills its place in the pool as before."""
        limit = self.prefetch_count
        return not limit or len(self._delivered) - len(self._dirty) + outliving() < limit

    def append(self, message: Any, delivery_tag: str) -> None:
        """Count a delivery against the prefetch limit. The message itself is Celery's to keep: see Leases.watch."""
        if is_delivery(delivery_tag):
            self.channel.leases.watch(delivery_tag, message)
            virtual.QoS.append(self, None, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge; also after the channel has closed, for a task that outlived its connection."""
        if is_delivery(delivery_tag):
            self.channel.acknowledge(delivery_tag)
            self._settled(delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put back, or keep among the dead letters."""
        if not is_delivery(delivery_tag):
            super().reject(delivery_tag, requeue=requeue)
            return
        if requeue:
            self.channel.leases.requeue(delivery_tag)
        else:
            self.channel.leases.dead_letter(
                delivery_tag, reason="the worker rejected it: it knows no such task, or the task refused it"
            )
        self._settled(delivery_tag)

    def _settled(self, delivery_tag: str) -> None:
        virtual.QoS.ack(self, delivery_tag)
        self.channel.on_credit()

    def restore_unacked(self, client: Any = None) -> None:
        """Put everything un-acked back."""
        for tag in [tag for tag in self._delivered if is_delivery(tag)]:
            if tag not in self._dirty:
                self.channel.leases.release(tag)
            del self._delivered[tag]
        super().restore_unacked(client)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Put everything un-acked back when the channel closes, but not when its connection was lost.

        Then the tasks go on running, and giving their messages to another worker would run them twice: they keep their
        leases, and those that Celery has dropped go back one by one.
        """
        for tag in [tag for tag in self._delivered if is_delivery(tag)]:
            del self._delivered[tag]
        self.channel.leases.close(give_back=not self.channel.lost)
        super().restore_unacked_once(stderr)
