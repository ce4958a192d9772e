"""A channel of the fair transport: what is published and consumed over it, families and ordinary queues alike.

Owns the subclass of kombu's channel: which queue is a family's and which goes the stock way, when a lane may ask, and what
becomes of what arrives. Does not know the loop that polls the lanes, nor how a URL comes to mean this: transport.py.

Transport options, beside kombu's:

- `fair_families`: their names.
- `fair_lease_s`: how long a killed worker's messages stay away.
- `fair_aging_s`: what a level of priority is worth in waiting.
- `fair_default_cap`: messages in flight of a tenant in one family, where it has no cap of its own. None: unlimited.
- `fair_max_faults`: how often a message may come back.
- `fair_max_hint_bytes`, `fair_max_plain_bytes`: sizes; the latter for plain messages and `fair_intake_tasks`.
- `fair_intake_tasks`: tasks whose messages hold requests and not ids.
"""

# kombu says that it is typed, and mostly is not:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from queue import Empty
from typing import Any, assert_never

import redis
from kombu.log import get_logger
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.json import dumps
from redis.exceptions import BusyLoadingError

from agent_exec.broker import fair_queue
from agent_exec.broker.envelope import Malformed, open_envelope
from agent_exec.broker.fair_queue import Delivery, Nothing, Popped, Unfinished, family_of, is_delivery
from agent_exec.broker.lane import LOST, Lane, UnderWay
from agent_exec.broker.leases import SETTLE_TIMEOUT_S, Leases, run
from agent_exec.broker.qos import QoS
from agent_exec.routing import EXECUTE_TASK, FAMILIES
from agent_exec.script import Call

logger = get_logger(__name__)


class Channel(stock.Channel):
    """kombu's Redis channel, with families."""

    QoS = QoS

    fair_families: tuple[str, ...] = FAMILIES
    fair_lease_s = fair_queue.LEASE_S
    fair_aging_s = fair_queue.AGING_S
    fair_default_cap: int | None = None
    fair_max_faults = fair_queue.MAX_FAULTS
    fair_max_hint_bytes = fair_queue.MAX_HINT_BYTES
    fair_max_plain_bytes = fair_queue.MAX_PLAIN_BYTES
    fair_intake_tasks: tuple[str, ...] = (EXECUTE_TASK,)

    from_transport_options = (  # type: ignore[assignment]  # mypy takes kombu's tuple for one of a fixed length
        *stock.Channel.from_transport_options,
        "fair_families",
        "fair_lease_s",
        "fair_aging_s",
        "fair_default_cap",
        "fair_max_faults",
        "fair_max_hint_bytes",
        "fair_max_plain_bytes",
        "fair_intake_tasks",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Open the channel; kombu calls this."""
        #: By what the poller knows them. Their order is the order in which they ask.
        self.lanes: dict[str, Lane] = {}
        #: The connection is broken: nothing more is to be had from it, and nothing is over because of that.
        self.lost = False
        self._no_ack: set[str] = set()
        self._plain_first = False
        self._raw: redis.Redis | None = None
        self._leases: Leases | None = None
        super().__init__(*args, **kwargs)

    # -- names and connections

    def is_fair(self, queue: str | None) -> bool:
        """Say whether a queue's name is that of a family, or of a queue in one."""
        return queue is not None and family_of(queue) in self.fair_families

    def run(self, call: Call[Any]) -> Any:
        """Run a call on one of the channel's connections."""
        if self._raw is None or self._raw.connection_pool is not self.pool:
            # Not kombu's client: that one would put the global prefix before keys that have it.
            self._raw = redis.Redis(connection_pool=self.pool)
        return run(self._raw, call)

    @property
    def leases(self) -> Leases:
        """The deliveries that came by this channel."""
        if self._leases is None:
            self._leases = Leases(
                self._connect_leases,
                prefix=self.global_keyprefix,
                lease_s=self.fair_lease_s,
                max_faults=self.fair_max_faults,
                on_abandoned=lambda delivery: virtual.QoS.ack(self.qos, delivery),
            )
        return self._leases

    def _connect_leases(self) -> redis.Redis:
        # A pool of their own: the channel's are closed with it, and tasks may outlive it.
        pool = self._get_pool()
        for name in ("socket_timeout", "socket_connect_timeout"):
            pool.connection_kwargs[name] = pool.connection_kwargs.get(name) or SETTLE_TIMEOUT_S
        return redis.Redis(connection_pool=pool)

    # -- publishing

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if not self.is_fair(queue):
            super()._put(queue, message, **kwargs)
            return
        batch = kwargs.get("_publish_batch")
        if queue in self.fair_families:
            # To the plain list whatever the priority: it is the one that workers block on.
            if batch is None:
                self._create_client().lpush(queue, dumps(message))
            else:
                batch.add("lpush", queue, dumps(message))
        elif batch is None:
            self.run(self._push(queue, message, prefix=self.global_keyprefix))
        else:
            # kombu's batch puts the global prefix before the first key itself.
            call = self._push(queue, message, prefix="")
            batch.add("evalsha", call.script.sha, len(call.keys), *call.keys, *call.args)

    def _push(self, queue: str, message: dict[str, Any], *, prefix: str) -> Call[bool]:
        properties, task = message["properties"], message["headers"].get("task")
        properties["delivery_info"].update(exchange="", routing_key=queue)
        return fair_queue.push(
            queue,
            tag=properties["delivery_tag"],
            priority=self._get_message_priority(message),
            message=dumps(message),
            aging_s=self.fair_aging_s,
            max_bytes=self.fair_max_plain_bytes if task in self.fair_intake_tasks else self.fair_max_hint_bytes,
            prefix=prefix,
        )

    def create_publish_batch(self, max_size: int) -> Any:
        """Begin a batch; a script in a pipeline cannot be loaded half-way, so it is loaded now."""
        self._create_client().script_load(fair_queue.PUSH.source)
        return super().create_publish_batch(max_size)

    # A family's queues need no declaration: nothing is stored until a message is, and any name in a family is a route.

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        if not self.is_fair(queue):
            super()._queue_bind(exchange, routing_key, pattern, queue)

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> Any:
        if self.is_fair(routing_key) and exchange in ("", None, routing_key, family_of(routing_key)):
            return [routing_key]
        return super()._lookup(exchange, routing_key, default)

    # -- what operators ask

    def _size(self, queue: str) -> int:
        if not self.is_fair(queue):
            return int(super()._size(queue))
        return int(self.run(fair_queue.size(queue, prefix=self.global_keyprefix)))

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self.is_fair(queue) or bool(super()._has_queue(queue, **kwargs))

    def _purge(self, queue: str) -> int:
        if not self.is_fair(queue):
            return int(super()._purge(queue))
        purged, call = 0, fair_queue.purge(queue, prefix=self.global_keyprefix)
        while removed := self.run(call):
            purged += removed
        return purged

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any) -> None:
        """Delete a queue; of a family's, its waiting messages are all there is."""
        if not self.is_fair(queue):
            super().queue_delete(queue, if_unused=if_unused, if_empty=if_empty, **kwargs)
        elif not (if_empty and self._size(queue)):
            self._purge(queue)
            self.state.queue_bindings_delete(queue)

    # -- consuming

    @property
    def active_queues(self) -> list[str]:
        """Queues that stock BRPOP waits for."""
        return [queue for queue in super().active_queues if not self.is_fair(queue)]

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume a queue.

        Raises:
            ValueError: it is a tenant's queue.
        """
        if self.is_fair(queue):
            self._must_be_family(queue)
            self.leases.start()
            lane = Lane(
                queue,
                prefix=self.global_keyprefix,
                client=redis.Redis(connection_pool=self.async_pool),
                take=self._take,
                unsaid=self.leases.give_back_done,
            )
            lane.client.connection = None
            self.lanes[lane.type] = lane
            self.handlers[lane.type] = lane.read
            if no_ack:
                self._no_ack.add(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _must_be_family(self, queue: str) -> None:
        if queue not in self.fair_families:
            raise ValueError(f"Queue '{queue}': consume its family, '{family_of(queue)}'; that is what makes it fair.")

    def _basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag)
        lane = self.lanes.pop(f"FAIR {queue}", None)
        if lane is not None:
            del self.handlers[lane.type]
            self._no_ack.discard(lane.family)
            self._close_lane(lane)
        return super()._basic_cancel(consumer_tag)

    def _close_lane(self, lane: Lane) -> None:
        match lane.close():
            case Delivery(delivery=delivery):
                self.leases.release(delivery)
            case Nothing() | Unfinished() | None:
                pass
            case unreachable:
                assert_never(unreachable)
        self.leases.say_done()

    def poll_lanes(self) -> None:
        """Let each lane that has nothing under way ask for a message or for a wake-up, as the prefetch limit allows."""
        for lane in list(self.lanes.values()):
            lane.drop_if_overdue(stock._socket_readable)
            if lane.idle:
                self.connection.cycle.register_lane(self, lane)
                self._ask(lane)

        if self.lanes and not self._asking:
            self.leases.say_done()

    @property
    def _asking(self) -> bool:
        return any(lane.under_way is UnderWay.POP for lane in self.lanes.values())

    def acknowledge(self, delivery: str) -> None:
        """Acknowledge a delivery: in a loop with the pop that this same turn of it sends, else at once."""
        if self.lanes and self.connection.cycle.in_loop:
            self.leases.ack_soon(delivery)
        else:
            self.leases.ack(delivery)

    def on_credit(self) -> None:
        """Ask anew after a settlement, if the loop is the blocking one: it would sleep out its timeout before.

        The loop's greenlet may be in the middle of connecting: only lanes that are connected ask.
        """
        if self.connection is not None and self.connection.cycle._in_protected_read:
            for lane in list(self.lanes.values()):
                if lane.idle and lane.connected:
                    self._ask(lane)

    def _ask(self, lane: Lane) -> None:
        if not self.qos.can_consume():
            if lane.woken:
                lane.pass_on(fair_queue.wake(lane.family, prefix=self.global_keyprefix))
        elif not lane.ready:
            lane.wait()
        elif not self._asking:
            # One question at a time: two answers might be one more than the limit.
            done = self.leases.take_done()
            lane.pop(self._pop(lane.family, done=done), done=done)

    def _pop(self, family: str, *, done: Sequence[str] = ()) -> Call[Popped]:
        return fair_queue.pop(
            family,
            lease_s=self.fair_lease_s,
            default_cap=self.fair_default_cap,
            plain_first=self._plain_first,
            max_plain_bytes=self.fair_max_plain_bytes,
            max_faults=self.fair_max_faults,
            done=done,
            prefix=self.global_keyprefix,
        )

    def _take(self, lane: Lane, popped: Popped) -> None:
        match popped:
            case Nothing():
                lane.ready = False
                raise Empty
            case Unfinished():
                raise Empty
            case Delivery():
                # The family that was served asks last, and what was not served goes first: neither starves the other.
                self.lanes[lane.type] = self.lanes.pop(lane.type)
                self._plain_first = popped.queue != lane.family
                lane.ready = popped.more
                message = self._open(popped)
                if message is None:
                    raise Empty
                if lane.family in self._no_ack:
                    self.leases.ack(popped.delivery)
                self.connection._deliver(message, lane.family)
            case _:
                assert_never(popped)

    def _open(self, popped: Delivery) -> dict[str, Any] | None:
        self.leases.hold(popped.delivery)
        opened = open_envelope(
            popped,
            max_hint_bytes=self.fair_max_hint_bytes,
            max_plain_bytes=self.fair_max_plain_bytes,
            intake_tasks=self.fair_intake_tasks,
        )
        if not isinstance(opened, Malformed):
            return opened
        logger.error("Message %s from %s is a dead letter: %s", popped.delivery, popped.queue, opened.reason)
        self.leases.dead_letter(popped.delivery, reason=opened.reason)
        return None

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        if not self.is_fair(queue):
            return super()._get(queue)
        self._must_be_family(queue)
        while True:
            match self.run(self._pop(queue)):
                case Nothing():
                    raise Empty
                case Unfinished():
                    continue
                case Delivery() as popped:
                    message = self._open(popped)
                    if message is not None:
                        return message

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Get one message, or None."""
        message = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if message is not None and no_ack and is_delivery(message.delivery_tag):
            self.leases.ack(message.delivery_tag)
        return message

    # -- connections come and go. One that was cut is no lost broker: the next poll connects again, and only if that
    # fails does Celery hear of it, whose answer is to start its whole consumer anew.

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except BusyLoadingError:  # connecting again at once would not help
            raise
        except LOST:
            raise Empty from None

    def _receive(self) -> Any:
        try:
            return super()._receive()
        except LOST:
            self.subclient.connection.disconnect()
            raise Empty from None

    def _poll_error(self, type: str, **options: Any) -> Any:
        if type in self.lanes:
            return self.lanes[type].read()
        return super()._poll_error(type, **options)

    def _on_connection_disconnect(self, connection: Any) -> None:
        for lane in self.lanes.values():
            if lane.client.connection is connection:
                lane.forget()
                lane.connected = False
        super()._on_connection_disconnect(connection)

    def close(self) -> None:
        """Close: what was popped and not begun goes back at once."""
        if not self.closed:
            for lane in self.lanes.values():
                self._close_lane(lane)
        super().close()


class SentinelChannel(Channel, stock.SentinelChannel):
    """The same over Redis Sentinel."""

    from_transport_options = (  # type: ignore[assignment]  # as above
        *Channel.from_transport_options,
        *stock.SentinelChannel.from_transport_options,
    )
