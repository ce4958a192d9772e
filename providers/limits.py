"""Whether a provider may be asked now: rate limits and circuit breakers, shared by the whole fleet in Redis.

Owns the Python side of three scripts: `admit` before a call, `answered` at its head, `settle` after it. Their rules stand in
`lua/_lane.lua` and `lua/_breaker.lua`. Does not know how a call is made (gate.py puts the scripts round it), what waits, or
what else could be asked instead.

A lane is a provider, one of its keys, and a model: what providers limit. Its limits are what their heads tell, and, after a
refusal that nothing told explains, a pace of our own: half of what was let through, growing from there. A lane that nobody
knows begins with sixteen calls a second and doubles that each second while it is used; nothing known is no limit after that.
A breaker is of a provider and a model, whatever the key: it is the endpoint that fails. There is one for everybody, opened
by several tenants' failures, and one for each tenant, so that calls which fail for what is in them stop no others.

Whoever dies between `admit` and `settle` leaves nothing behind: levels refill by themselves, and a probe is a lease.
"""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent_exec import keys
from agent_exec.script import Call, Script
from providers.quota import Quota

_LUA = Path(__file__).parent / "lua"
_ADMIT = Script.load(_LUA / "admit.lua")
_ANSWERED = Script.load(_LUA / "answered.lua")
_SETTLE = Script.load(_LUA / "settle.lua")

#: What a call came to, as far as limits and breakers care. `refused`: the provider lives, and does not take this request;
#: `broken`: it is in trouble, silent or not there; `abandoned`: it was we who ended it.
Outcome = Literal["answered", "refused", "rate_limited", "broken", "abandoned"]


@dataclass(frozen=True, slots=True)
class Lane:
    """What one limit counts; `key_fingerprint` names the key and tells nothing of it."""

    provider: str
    key_fingerprint: str
    model: str


@dataclass(frozen=True, slots=True)
class Asker:
    """Who wants to call: `name` is one of the tenant's, and the same when the same step comes again, to its place.

    It may have places in several lanes, and leaves the others when one lets it through.
    """

    tenant_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """The call may be made, in `after_s` (0.2 at most: a longer wait is `Deferred`).

    `tell_head`: `answered` has to be run when the head of the answer is there. Few calls have to; each may.
    """

    lane: Lane
    asker: Asker
    ticket: str
    tokens: int
    after_s: float
    admitted_at_ms: int
    tell_head: bool


@dataclass(frozen=True, slots=True)
class Deferred:
    """The lane is full: come back in `wait_s`, five minutes at most.

    Nobody else is told the same time, and the place is kept for 30 s after it. It may turn out to be put off further:
    tenants that wait take turns. Times of five minutes are spread at random, and so is the wait of who got no place
    (`placed` is False), for its tenant has ten thousand already.
    """

    wait_s: float
    placed: bool


@dataclass(frozen=True, slots=True)
class Broken:
    """The breaker is open, or half open and another call is the probe: come back in `wait_s`, which is spread at random."""

    wait_s: float


def admit(lane: Lane, *, asker: Asker, tokens: int, probe_lease_s: float) -> Call[Admitted | Deferred | Broken]:
    """Ask to make one call that may use `tokens`, prompt and answer together.

    If it is the one to probe a half-open breaker, nobody else is for `probe_lease_s`, or until its `answered` or `settle`.
    """
    ticket = secrets.token_hex(8)

    def parse(reply: list[Any]) -> Admitted | Deferred | Broken:
        match reply:
            case [b"admitted", after_ms, now_ms, tell_head]:
                return Admitted(lane, asker, ticket, tokens, after_ms / 1000, now_ms, bool(tell_head))
            case [b"deferred", wait_ms, placed]:
                return _deferred(wait_ms, placed)
            case [_, wait_ms, spread_ms]:
                return Broken((wait_ms + random.uniform(0, spread_ms)) / 1000)
            case _:
                raise ValueError(f"admit.lua answered {reply!r}")

    return Call(
        _ADMIT,
        _keys(lane, asker),
        [asker.tenant_id, asker.name, tokens, ticket, int(probe_lease_s * 1000)],
        parse,
    )


def answered(admitted: Admitted, *, quota: Quota | None) -> Call[None]:
    """Tell that the head of the answer is there, a success, and what limits it told."""
    return Call(
        _ANSWERED,
        _keys(admitted.lane, admitted.asker),
        [admitted.ticket, *_told(quota)],
        lambda _: None,
    )


def settle(
    admitted: Admitted,
    *,
    outcome: Outcome,
    tokens: int,
    quota: Quota | None = None,
    retry_after_s: float | None = None,
) -> Call[Deferred | None]:
    """Tell what the call came to and how many tokens it used; after `rate_limited`, with the quota and the pause it told.

    Returns when to come back after `rate_limited`, else None.
    """
    asker = admitted.asker
    return Call(
        _SETTLE,
        _keys(admitted.lane, asker),
        [
            asker.tenant_id,
            asker.name,
            admitted.ticket,
            admitted.admitted_at_ms,
            admitted.tokens,
            tokens,
            outcome,
            "" if retry_after_s is None else int(retry_after_s * 1000),
            *_told(quota),
        ],
        lambda reply: _deferred(*reply) if reply else None,
    )


def _deferred(wait_ms: int, placed: int) -> Deferred:
    wait_s = wait_ms / 1000
    is_its_own = placed == 1
    return Deferred(wait_s if is_its_own else random.uniform(wait_s / 2, wait_s), bool(placed))


def _keys(lane: Lane, asker: Asker) -> list[str]:
    names = (lane.provider, lane.key_fingerprint, lane.model)
    return [
        keys.provider_lane(*names),
        keys.provider_line(*names),
        keys.provider_lapses(*names),
        keys.provider_turns(*names),
        keys.provider_breaker(lane.provider, lane.model),
        keys.provider_breaker(lane.provider, lane.model, asker.tenant_id),
        keys.provider_trouble(lane.provider, lane.model),
        keys.provider_places(asker.tenant_id, asker.name),
    ]


def _told(quota: Quota | None) -> list[int]:
    allowances = (quota.requests, quota.tokens) if quota is not None else (None, None)
    return [
        number
        for allowance in allowances
        for number in (
            (0, 0, 0) if allowance is None else (allowance.limit, allowance.remaining, int(allowance.period_s * 1000))
        )
    ]
