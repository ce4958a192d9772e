"""The fair queue, as calls of its scripts: push, pop, settle, and what operators ask of it.

Owns the meaning of the scripts in `lua/`, each under its own name. Does not know kombu nor Celery, nor how a call
reaches Redis: the shim and the running steps push hints with the same call, in the same pipeline as the ledger's writes,
as kombu's channel does.

How it serves, in one page:

- A *family* (`agent_execution`) holds *queues* (`agent_execution:{tenant}`, `agent_tools:{tenant}:{agent}`). Workers
  pop from the family; a queue exists while it holds messages, so a tenant needs no set-up.
- Among tenants: start-time fair queueing. A service costs a tenant 1/weight of virtual time; the one with the earliest
  start is next; one that becomes busy starts at the current virtual time. Among the agents of a tenant: the same, equally.
- Within a queue: ten priorities, 9 first, then first in, first out; each level is worth `AGING_S` of waiting, so what
  waits long enough goes first whatever its priority. Exactly: the least of `enqueued at - priority * AGING_S` is next.
- A tenant at its cap of un-acked messages is set aside until one of them is settled. The cap counts in each family.
- A popped message is leased for `LEASE_S`, by Redis's clock. A delivery is `tag#n`, so what a worker that lost its lease
  still says about it changes nothing. A message that comes back more than `MAX_FAULTS` times becomes a dead letter.
- Plain messages: what a Celery app without this package sent to the family's own name. They are taken where they lie.

Source: Goyal, Vin, Cheng, "Start-time Fair Queueing", SIGCOMM 1996.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_exec import keys
from agent_exec.errors import InvalidMessage
from agent_exec.routing import FAMILIES
from agent_exec.script import Call, Script

#: What a level of priority is worth. Nine levels are 9 minutes: long against a step, short against a deadline.
AGING_S = 60.0
#: How long a killed worker's messages stay away. Three renewals fit, so one lost renewal costs nothing.
LEASE_S = 12.0
#: A message that has killed this many workers is the cause.
MAX_FAULTS = 10
#: A hint holds ids; one larger than this is not one.
MAX_HINT_BYTES = 16_384
#: A standard message may be 1 MB, which base64 makes a third larger; the envelope needs some more.
MAX_PLAIN_BYTES = 1_500_000
#: Dead letters are for people, who read the newest.
DEAD_LETTERS_KEPT = 1_000
#: What of a dead message is kept: all of any hint, and the beginning of a large request. 64 MB for all in all.
DEAD_LETTER_MAX_BYTES = 65_536
#: And read them within two weeks; as in lua/_return.lua.
DEAD_LETTERS_EXPIRE_S = 14 * 86_400
#: Bounds one call of `purge`, in which Redis does nothing else.
PURGE_BATCH = 1_000

_LUA = Path(__file__).parent / "lua"
PUSH = Script.load(_LUA / "push.lua")
_POP = Script.load(_LUA / "pop.lua")
_ACK = Script.load(_LUA / "ack.lua")
_REQUEUE = Script.load(_LUA / "requeue.lua")
_RELEASE = Script.load(_LUA / "release.lua")
_DEAD_LETTER = Script.load(_LUA / "dead_letter.lua")
_DEAD_LETTERS = Script.load(_LUA / "dead_letters.lua")
_RENEW = Script.load(_LUA / "renew.lua")
_WAKE = Script.load(_LUA / "wake.lua")
_REPRIORITISE = Script.load(_LUA / "reprioritise.lua")
_SET_SHARE = Script.load(_LUA / "set_share.lua")
_SIZE = Script.load(_LUA / "size.lua")
_DEPTHS = Script.load(_LUA / "depths.lua")
_PURGE = Script.load(_LUA / "purge.lua")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message in a worker's hands: settle it by `delivery`. `more`: another may be had at once."""

    delivery: str
    queue: str
    message: bytes
    earlier_deliveries: int
    more: bool = True


@dataclass(frozen=True, slots=True)
class Nothing:
    """No message may be given now."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The call reached its bound on work before it found a message: call again."""


Popped = Delivery | Nothing | Unfinished


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that nobody will run, and why. `size_bytes` is that of the whole; `message` may be its beginning."""

    at_ms: int
    reason: str
    queue: str
    tag: str
    deliveries: int
    size_bytes: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantDepth:
    """A tenant's messages in one family. `at_cap`: set aside until one in flight is settled."""

    waiting: int = 0
    in_flight: int = 0
    at_cap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyDepth:
    """All messages of a family; `plain` of the waiting came from apps without this package."""

    waiting: int
    in_flight: int
    plain: int
    tenants: dict[str, TenantDepth] = field(default_factory=dict)


def family_of(queue: str) -> str:
    """Return the family that a queue's name begins with: `agent_tools:t:a` → `agent_tools`."""
    return queue.partition(":")[0]


def is_delivery(tag: str) -> bool:
    """Say whether a delivery tag is one of ours; kombu's own are UUIDs."""
    _, separator, number = tag.rpartition("#")
    return bool(separator) and number.isdigit()


def push(
    queue: str,
    *,
    tag: str,
    priority: int,
    message: str | bytes,
    aging_s: float = AGING_S,
    max_bytes: int = MAX_HINT_BYTES,
    prefix: str = "",
) -> Call[bool]:
    """Return the call that queues `message`, the JSON of a kombu message. It answers False where `tag` is known.

    A tag is known from its push until its message is settled for good: queued or un-acked makes no difference.

    Raises:
        InvalidMessage: longer than `max_bytes`.
        ValueError: `queue` names no tenant, or the tag or the priority is impossible.
    """
    family, _, tenant = queue.partition(":")
    if not family or not tenant:
        raise ValueError(f"Queue '{queue}': push to <family>:<tenant>; the bare name is for plain messages.")
    if not tag or priority not in range(10):
        raise ValueError(f"Message '{tag}': a tag is needed, and a priority from 0 to 9 instead of {priority}.")
    text = message.encode() if isinstance(message, str) else message
    if len(text) > max_bytes:
        raise InvalidMessage(
            f"Message '{tag}' to queue '{queue}' has {len(text)} bytes, at most {max_bytes} are taken: "
            "send ids, and keep what they name in the ledger."
        )
    return Call(PUSH, _root(prefix), (queue, tag, priority, round(aging_s * 1e6), text), bool)


def pop(
    family: str,
    *,
    lease_s: float = LEASE_S,
    default_cap: int | None = None,
    plain_first: bool = False,
    max_plain_bytes: int = MAX_PLAIN_BYTES,
    max_faults: int = MAX_FAULTS,
    done: Sequence[str] = (),
    prefix: str = "",
) -> Call[Popped]:
    """Return the call that takes the next message of a family, leased for `lease_s`, and first forgets those `done`.

    `plain_first` says which comes first where both plain and queued messages wait; a caller alternates, so that neither
    starves the other. The call also puts back what other workers' lapsed leases held.
    """
    return Call(
        _POP,
        _root(prefix),
        (
            family,
            round(lease_s * 1000),
            "" if default_cap is None else default_cap,
            int(plain_first),
            max_plain_bytes,
            max_faults,
            *_DEAD_LIMITS,
            *done,
        ),
        _popped,
    )


def ack(deliveries: Sequence[str], *, prefix: str = "") -> Call[int]:
    """Return the call that forgets deliveries that are done. It answers how many were still current."""
    return Call(_ACK, _root(prefix), tuple(deliveries), int)


def requeue(delivery: str, *, max_faults: int = MAX_FAULTS, prefix: str = "") -> Call[bool]:
    """Return the call that puts a refused delivery back into its place; one refused too often is a dead letter."""
    return Call(_REQUEUE, _root(prefix), (delivery, max_faults, *_DEAD_LIMITS), bool)


def release(deliveries: Sequence[str], *, prefix: str = "") -> Call[int]:
    """Return the call that puts deliveries back that were never begun. It answers how many were still current."""
    return Call(_RELEASE, _root(prefix), tuple(deliveries), int)


def dead_letter(delivery: str, *, reason: str, prefix: str = "") -> Call[bool]:
    """Return the call that keeps a delivery among the dead letters, with the reason."""
    return Call(_DEAD_LETTER, _root(prefix), (delivery, reason, *_DEAD_LIMITS), bool)


def renew(deliveries: Sequence[str], *, lease_s: float = LEASE_S, prefix: str = "") -> Call[list[str]]:
    """Return the call that extends leases. It answers those that are lost: settled, or lapsed before."""
    return Call(_RENEW, _root(prefix), (round(lease_s * 1000), *deliveries), _texts)


def wake(family: str, *, prefix: str = "") -> Call[bool]:
    """Return the call that passes a wake-up on. It answers whether there was work to pass it on for."""
    return Call(_WAKE, _root(prefix), (family,), bool)


def reprioritise(tag: str, *, priority: int, aging_s: float = AGING_S, prefix: str = "") -> Call[bool]:
    """Return the call that changes a message's priority and keeps its age. It answers whether the message waits.

    Raises:
        ValueError: the priority is not from 0 to 9.
    """
    if priority not in range(10):
        raise ValueError(f"Message '{tag}': a priority is from 0 to 9, not {priority}.")
    return Call(_REPRIORITISE, _root(prefix), (tag, priority, round(aging_s * 1e6)), bool)


def set_share(
    tenant: str,
    *,
    weight: float | None = None,
    cap: int | None = None,
    families: Iterable[str] = FAMILIES,
    prefix: str = "",
) -> Call[bool]:
    """Return the call that sets a tenant's weight (None: 1) and cap (None: the workers' default). At once in force.

    A cap of 0 holds a tenant's messages back until it is raised. It answers False where nothing changed.

    Raises:
        ValueError: the weight is not positive, or the cap is negative.
    """
    if weight is not None and not 0 < weight < float("inf"):
        raise ValueError(f"Tenant '{tenant}': a weight is positive, not {weight}.")
    if cap is not None and cap < 0:
        raise ValueError(f"Tenant '{tenant}': a cap is at least 0, not {cap}.")
    return Call(
        _SET_SHARE,
        _root(prefix),
        (tenant, "" if weight is None else repr(float(weight)), "" if cap is None else cap, *families),
        bool,
    )


def size(queue: str, *, prefix: str = "") -> Call[int]:
    """Return the call that counts what waits in a family, for a tenant, or in one queue."""
    return Call(_SIZE, _root(prefix), (queue,), int)


def depths(families: Sequence[str] = FAMILIES, *, prefix: str = "") -> Call[dict[str, FamilyDepth]]:
    """Return the call that counts what waits and is in flight, by family and tenant. Costs as much as there are tenants."""
    return Call(_DEPTHS, _root(prefix), tuple(families), lambda reply: _depths(families, reply))


def purge(queue: str, *, prefix: str = "") -> Call[int]:
    """Return the call that removes up to `PURGE_BATCH` waiting messages. Fewer means that none is left."""
    return Call(_PURGE, _root(prefix), (queue, PURGE_BATCH), int)


def dead_letters(*, limit: int = 100, prefix: str = "") -> Call[list[DeadLetter]]:
    """Return the call that reads the newest dead letters, newest first."""
    return Call(_DEAD_LETTERS, _root(prefix), (limit,), lambda reply: [_dead_letter(item) for item in reply])


_DEAD_LIMITS = (DEAD_LETTERS_KEPT, DEAD_LETTER_MAX_BYTES)


def _root(prefix: str) -> tuple[str]:
    return (keys.fair_queue(prefix),)


def _popped(reply: Any) -> Popped:
    if reply is None:
        return Nothing()
    if not reply:
        return Unfinished()
    delivery, queue, message, earlier, more = reply
    return Delivery(
        delivery=_text(delivery),
        queue=_text(queue),
        message=message,
        earlier_deliveries=int(earlier),
        more=bool(more),
    )


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _texts(reply: Iterable[bytes | str]) -> list[str]:
    return [_text(value) for value in reply]


def _counts(flat: Sequence[Any]) -> dict[str, int]:
    return {_text(name): int(number) for name, number in zip(flat[::2], flat[1::2], strict=True)}


def _depths(families: Sequence[str], reply: Any) -> dict[str, FamilyDepth]:
    waiting, in_flight, plain = _counts(reply[0]), _counts(reply[1]), [int(number) for number in reply[3]]
    parked = set(_texts(reply[2][::2]))
    depths: dict[str, FamilyDepth] = {}
    for family, unseen in zip(families, plain, strict=True):
        nodes = [node for node in {*waiting, *in_flight} if node.startswith(f"{family}:")]
        tenants = {
            node.partition(":")[2]: TenantDepth(
                waiting=waiting.get(node, 0), in_flight=in_flight.get(node, 0), at_cap=node in parked
            )
            for node in sorted(nodes)
        }
        depths[family] = FamilyDepth(
            waiting=waiting.get(family, 0) + unseen,
            in_flight=in_flight.get(family, 0) + sum(tenant.in_flight for tenant in tenants.values()),
            plain=unseen + waiting.get(family, 0) - sum(tenant.waiting for tenant in tenants.values()),
            tenants=tenants,
        )
    return depths


def _dead_letter(item: bytes | str) -> DeadLetter:
    # What killed a message may be that it is no UTF-8; a reader of dead letters wants to see it all the same.
    letter = json.loads(_text(item))
    return DeadLetter(
        at_ms=int(letter["at_ms"]),
        reason=letter["reason"],
        queue=letter["queue"],
        tag=letter["tag"],
        deliveries=int(letter["deliveries"]),
        size_bytes=int(letter["bytes"]),
        message=letter["message"],
    )
