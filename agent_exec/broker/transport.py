"""The fair queue under kombu: `redis://`, `rediss://` and `sentinel://` as before, the families served fairly.

Owns the subclasses of kombu's transport and poller, and their registration. Everything that is not a family goes the stock
way: ordinary queues, fanout, pidbox, events. Workers consume the bare family names; producers publish to a tenant's queue,
or to the bare name as an app without this package does. Does not know tasks, what a channel does with a message
(channel.py, with the transport options), and not what scheduling does (fair_queue.py).

How a worker gets a message: each consumed family has a `Lane`, a connection in kombu's poller beside the stock BRPOP. While
the prefetch limit allows, one lane at a time asks for a message; a lane that got none blocks until it is woken. What
arrives is opened and checked (envelope.py), leased (leases.py), and delivered under the family's name.

Celery's settings that go with it: `task_acks_late` and `worker_prefetch_multiplier = 1`, for what is fair is decided at
the pop; `task_reject_on_worker_lost`, for a child that is killed is a fault of the message, counted here;
`broker_channel_error_retry`, for a full or demoted Redis is no reason to exit; and not
`worker_cancel_long_running_tasks_on_connection_loss`, for here tasks keep their messages through one.
"""

# kombu says that it is typed, and mostly is not:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import socket
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, _transport_cache
from kombu.transport import redis as stock

from agent_exec.broker.channel import Channel, SentinelChannel
from agent_exec.broker.lane import Lane
from agent_exec.broker.leases import SETTLE_TIMEOUT_S


class Poller(stock.MultiChannelPoller):
    """Polls the lanes too."""

    #: A loop calls `on_poll_start` in each of its turns, after whatever else it has to do in it.
    in_loop = False

    def on_poll_start(self) -> None:
        """Send what is to be sent before waiting for replies."""
        super().on_poll_start()
        for channel in self._channels:
            channel.poll_lanes()

    def register_lane(self, channel: Channel, lane: Lane) -> None:
        """Connect a lane, and watch its socket."""
        if not self._client_registered(channel, lane.client, lane.type):
            self._register(channel, lane.client, lane.type)
        lane.connected = True

    def on_readable(self, fileno: int) -> Any:
        """Read a reply; a lane's also while the prefetch limit is reached, for a wake-up must be passed on."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if channel is not None and kind in channel.lanes:
            return channel.handlers[kind]()
        return super().on_readable(fileno)


class Transport(stock.Transport):
    """kombu's Redis transport, with families."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Open the transport; kombu calls this."""
        super().__init__(*args, **kwargs)
        self.cycle: Any = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Be served by a loop; Celery calls this, and kombu's `drain_events` is not called then."""
        super().register_with_event_loop(connection, loop)
        self.cycle.in_loop = True

    def _collect(self, connection: Any) -> None:
        """Close a connection that is broken; kombu calls this, and `close_connection` for one that is not."""
        before_s = socket.getdefaulttimeout()
        socket.setdefaulttimeout(SETTLE_TIMEOUT_S)
        try:
            for channel in self.channels:
                channel.lost = True
            self.close_connection(connection)
        finally:
            socket.setdefaulttimeout(before_s)


class SentinelTransport(Transport, stock.SentinelTransport):
    """The same over Redis Sentinel."""

    default_port = stock.SentinelTransport.default_port
    Channel = SentinelChannel


def register() -> None:
    """Make `redis://`, `rediss://` and `sentinel://` URLs mean this transport, in this process.

    The schemes stay kombu's, because Flower, failover lists and Celery itself go by them.
    """
    for scheme, transport in (("redis", Transport), ("rediss", Transport), ("sentinel", SentinelTransport)):
        TRANSPORT_ALIASES[scheme] = f"{transport.__module__}:{transport.__qualname__}"
        _transport_cache.pop(scheme, None)
