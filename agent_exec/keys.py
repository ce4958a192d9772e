"""Every Redis key: its spelling, its type, when it goes.

Owns spelling alone; nothing else in the project writes a key. Does not know what is done with one.

The names `agent_streaming:` and `agent_responses:` are the user's; ours begin with `ax:`.
"""

from __future__ import annotations

#: Patterns of every key that may stand in the store, for the test that no other does.
KNOWN = [
    "ax:*",
    "agent_streaming:*",
    "agent_responses:*",
    "celery-task-meta-*",
    "celery-taskset-meta-*",
]

#: Keys that never expire. Each is bounded by what is open, or trimmed by those who write it.
IMMORTAL = [
    "ax:pending",
    "ax:batches",
    "ax:schedule:*",
    "ax:schedules*",
    "ax:unsent_links",
    "ax:outbox",
    "ax:outbox:unacked",
    "ax:outbox:wake",
    "ax:callbacks",
    "ax:callbacks_wake",
    "ax:callbacks_outcomes",
]


def execution(tenant_id: str, execution_id: str) -> str:
    """HASH: the record of one execution and of its steps.

    Expires `open_retention_s` after acceptance, `retention_s` after the end.
    """
    return f"{execution_prefix()}{tenant_id}:{execution_id}"


def execution_prefix() -> str:
    """Return what every `execution` key begins with, for the one script that reads several."""
    return "ax:execution:"


def streaming(tenant_id: str, execution_id: str) -> str:
    """STREAM: every event of one execution, entry `<sequence>-0`. Expires with the execution."""
    return f"agent_streaming:{tenant_id}:{execution_id}"


def responses(tenant_id: str, execution_id: str) -> str:
    """STREAM: one entry, the final response. Expires `retention_s` after the end."""
    return f"agent_responses:{tenant_id}:{execution_id}"


def celery_result(execution_id: str) -> str:
    """STRING and channel: the final response as Celery's Redis backend keeps a result. Expires like the response."""
    return f"celery-task-meta-{execution_id}"


def executions(tenant_id: str) -> str:
    """ZSET execution id → accepted at, in ms: a tenant's executions. Trimmed at accept; expires when none is kept."""
    return f"ax:executions:{tenant_id}"


def queued(tenant_id: str) -> str:
    """ZSET execution id → accepted at, in ms: a tenant's executions that no worker has begun. Trimmed; expires."""
    return f"ax:queued:{tenant_id}"


def tenant(tenant_id: str) -> str:
    """HASH: what workers last learnt of a tenant: its plan. Expires with the retention of open executions."""
    return f"ax:tenant:{tenant_id}"


def idempotency(tenant_id: str, digest: str) -> str:
    """STRING `<execution id> <digest of the body>` under the digest of an idempotency key. Expires after 24 h."""
    return f"ax:idempotency:{tenant_id}:{digest}"


def pending() -> str:
    """ZSET `tenant execution step` → when it is next looked at, in ms: lost hints, leases, waits. Immortal, bounded."""
    return "ax:pending"


def links(tenant_id: str, execution_id: str) -> str:
    """STRING: what follows an execution in the canvas of a Celery app, as JSON. Gone when it was sent; expires."""
    return f"ax:links:{tenant_id}:{execution_id}"


def unsent_links() -> str:
    """ZSET `tenant execution` → when it is next looked at, in ms: ended executions with links to send. Immortal, bounded."""
    return "ax:unsent_links"


def refused_links(tag: str) -> str:
    """STRING: stands when the links of a refused message were told of it. Expires a day after."""
    return f"ax:refused_links:{tag}"


def outbox() -> str:
    """ZSET `tenant execution` → since when, in ms: executions with events the notifier has not sent. Immortal, bounded."""
    return "ax:outbox"


def outbox_unacked() -> str:
    """ZSET `tenant execution` → sent at, in ms: executions with events sent and not acknowledged. Immortal, bounded."""
    return "ax:outbox:unacked"


def outbox_wake() -> str:
    """LIST of at most one token: wakes a notifier that blocks on it. Empty, hence absent, when all is sent."""
    return "ax:outbox:wake"


def streaming_prefix() -> str:
    """Return what every `streaming` key begins with, for the one script that reads several."""
    return streaming("", "").removesuffix(":")


def tenant_of(execution_id: str) -> str:
    """STRING: whose execution it is, for a neighbour that serves all tenants and names none. Expires with the execution."""
    return f"{tenant_of_prefix()}{execution_id}"


def tenant_of_prefix() -> str:
    """Return what every `tenant_of` key begins with, for the one script that reads several."""
    return "ax:tenant_of:"


def orchestrator_acks() -> str:
    """STRING: stands while the orchestrator acknowledges events itself. Expires `retention_s` after it last did."""
    return "ax:notifier:acks"


def notifier_lease() -> str:
    """STRING: which notifier is active. Expires with its lease."""
    return "ax:notifier"


def notifier_report() -> str:
    """STRING: what the active notifier last said of itself, as JSON. Expires a day after it."""
    return "ax:notifier:report"


def callback(tenant_id: str, callback_id: str) -> str:
    """HASH: a callback, its body and where it stands. Expires two weeks after the last try, `retention_s` after delivery."""
    return f"{callback_prefix()}{tenant_id}:{callback_id}"


def callback_prefix() -> str:
    """Return what every `callback` key begins with, for the scripts that read several."""
    return "ax:callback:"


def callbacks() -> str:
    """ZSET tenant → when its callbacks are next looked at, in ms. Immortal, bounded by the tenants that have open ones."""
    return "ax:callbacks"


def callbacks_wake() -> str:
    """LIST of at most one token: wakes whoever sends callbacks. Absent when it has been heard."""
    return "ax:callbacks_wake"


def callbacks_outcomes() -> str:
    """HASH outcome → how many tries of callbacks have come to it. Immortal: three numbers."""
    return "ax:callbacks_outcomes"


def callbacks_waiting(tenant_id: str) -> str:
    """ZSET callback id → when it is due, in ms. Expires two weeks after the last was added."""
    return f"ax:callbacks_waiting:{tenant_id}"


def callbacks_sending(tenant_id: str) -> str:
    """ZSET callback id → when its lease lapses, in ms: on their way. Expires two weeks after the last was added."""
    return f"ax:callbacks_sending:{tenant_id}"


def callbacks_dead(tenant_id: str) -> str:
    """ZSET callback id → given up at, in ms. Trimmed; expires two weeks after the last was added."""
    return f"ax:callbacks_dead:{tenant_id}"


def spending_open(tenant_id: str) -> str:
    """HASH name → its attempts whose call is not settled. Expires three days after the last change."""
    return f"ax:spending:{tenant_id}:open"


def spending_looks(tenant_id: str) -> str:
    """ZSET name → when one of its attempts lapses or is forgotten, in ms. Expires with `spending_open`."""
    return f"ax:spending:{tenant_id}:looks"


def spending_limit(tenant_id: str) -> str:
    """STRING: a tenant's budget a day in micro-dollars, empty for none, as workers last learnt of it. Expires in 35 days."""
    return f"ax:spending:{tenant_id}:limit"


def spending_day_prefix(tenant_id: str) -> str:
    """Return what the key of each day begins with; its number since 1970 follows.

    HASH: what a tenant has spent and reserved on a day. Expires 35 days after its end.
    """
    return f"ax:spending:{tenant_id}:day:"


def configuration(tenant_id: str) -> str:
    """HASH agent, or `*` for all → since when what is cached of its configuration is void. Expires a day after the last."""
    return f"ax:configuration:{tenant_id}"


# Batches. The script in which an execution ends computes these from the root and the ids that the execution names.


def batch_root() -> str:
    """Return what every key of a batch begins with."""
    return "ax:batch"


def batch(tenant_id: str, batch_id: str) -> str:
    """HASH: the record of one batch. Expires an hour after its last item came; once it is sealed, `open_retention_s` after
    it was last fed; once it is over, as the last of its executions.
    """
    return f"{batch_root()}:{tenant_id}:{batch_id}"


def batch_items(tenant_id: str, batch_id: str) -> str:
    """LIST of requests as JSON, until the batch is over. Expires with it."""
    return f"{batch_root()}_items:{tenant_id}:{batch_id}"


def batch_results(tenant_id: str, batch_id: str) -> str:
    """HASH index of the request → its status and final response. Expires with the batch."""
    return f"{batch_root()}_results:{tenant_id}:{batch_id}"


def batches(tenant_id: str) -> str:
    """ZSET batch → stored at, in ms: a tenant's batches. Trimmed when one is stored; expires when none is kept."""
    return f"{batch_root()}es:{tenant_id}"


def open_batches(tenant_id: str) -> str:
    """ZSET batch → stored at, in ms: a tenant's batches that are not over. Trimmed when one is stored or fed; expires."""
    return f"{batch_root()}es_open:{tenant_id}"


def due_batches() -> str:
    """ZSET `tenant batch` → when it is next looked at, in ms: batches that want feeding. Immortal, bounded."""
    return f"{batch_root()}es"


def schedule(tenant_id: str, schedule_id: str) -> str:
    """HASH: a schedule, until it is deleted. Immortal, bounded by `max_schedules` a tenant."""
    return f"{schedule_prefix()}{tenant_id}:{schedule_id}"


def schedule_prefix() -> str:
    """Return what every `schedule` key begins with, for the scripts that read several."""
    return "ax:schedule:"


def schedules(tenant_id: str) -> str:
    """ZSET schedule → created at, in ms: a tenant's schedules. Immortal, bounded by `max_schedules`."""
    return f"ax:schedules:{tenant_id}"


def due_schedules() -> str:
    """ZSET `tenant schedule` → when it is next due, in ms. Immortal, bounded by the schedules there are."""
    return "ax:schedules"


# What the fleet knows of providers. A lane is a provider, one key of it (by its fingerprint) and a model.


def provider_lane(provider: str, key_fingerprint: str, model: str) -> str:
    """STRING: what limits a lane, and how much of it is left. Expires a day after the last call."""
    return f"ax:lane:{provider}:{key_fingerprint}:{model}"


def provider_line(provider: str, key_fingerprint: str, model: str) -> str:
    """ZSET `tenant who` → virtual time of its turn: calls that were put off. Expires with the longest wait."""
    return f"ax:lane_line:{provider}:{key_fingerprint}:{model}"


def provider_lapses(provider: str, key_fingerprint: str, model: str) -> str:
    """ZSET `tenant who` → until when its place in the line is kept, in ms. Expires with the longest wait."""
    return f"ax:lane_lapses:{provider}:{key_fingerprint}:{model}"


def provider_turns(provider: str, key_fingerprint: str, model: str) -> str:
    """ZSET tenant → virtual time at which its next turn in the line begins. Expires with the longest wait."""
    return f"ax:lane_turns:{provider}:{key_fingerprint}:{model}"


def provider_places(tenant_id: str, name: str) -> str:
    """SET of `lane line lapses turns`: the lanes in which one who was put off has a place. Expires with the longest wait."""
    return f"ax:lane_places:{tenant_id}:{name}"


def provider_breaker(provider: str, model: str, tenant_id: str = "") -> str:
    """HASH: an open or half-open circuit breaker, everybody's or one tenant's. Expires an hour after it opened."""
    return f"ax:breaker:{tenant_id}:{provider}:{model}"


def provider_trouble(provider: str, model: str) -> str:
    """HASH: what calls came to since one failed, by tenant. Expires 30 s after that one."""
    return f"ax:trouble:{provider}:{model}"


# Fair queue. Its scripts compute their keys from the first one (broker/lua/_keys.lua), so that kombu's
# `global_keyprefix`, which may stand before every one of them, is known by it. None expires but where it says so: each
# holds undelivered work and is absent without any, and the shares are a tenant's configuration.

FAIR_QUEUE_LISTS = ["agent_execution", "agent_execution\x06\x16?", "agent_tools", "agent_tools\x06\x16?"]
KNOWN += FAIR_QUEUE_LISTS
IMMORTAL += [*FAIR_QUEUE_LISTS, "ax:queue:*"]


def fair_queue(prefix: str = "") -> str:
    """No key itself: what all keys of the fair queue begin with."""
    return f"{prefix}ax:queue"


def fair_plain(family: str, prefix: str = "") -> str:
    """LIST: plain messages, as a Celery app without this package sends them; the empty string is a wake-up token.

    Its nine variants, `\\x06\\x16` and a digit behind it, are kombu's priorities.
    """
    return f"{prefix}{family}"


def fair_arriving(family: str, prefix: str = "") -> str:
    """LIST: plain messages and tokens that have woken a worker, and wait for any worker's next pop."""
    return f"{fair_queue(prefix)}:arriving:{family}"


def fair_leaf(queue: str, prefix: str = "") -> str:
    """ZSET tag → enqueued at - priority x aging, in µs: the waiting messages of one queue."""
    return f"{fair_queue(prefix)}:leaf:{queue}"


def fair_ring(node: str, prefix: str = "") -> str:
    """ZSET child → virtual time at which its next service starts: children of a family or tenant that may be served."""
    return f"{fair_queue(prefix)}:ring:{node}"


def fair_parked(family: str, prefix: str = "") -> str:
    """HASH tenant's node → virtual time at which its next service starts: tenants at their cap."""
    return f"{fair_queue(prefix)}:parked:{family}"


def fair_virtual(prefix: str = "") -> str:
    """HASH node → the virtual time at which its last service started."""
    return f"{fair_queue(prefix)}:virtual"


def fair_message(prefix: str = "") -> str:
    """HASH tag → the wire message, from push to settlement."""
    return f"{fair_queue(prefix)}:message"


def fair_record(prefix: str = "") -> str:
    """HASH tag → `score enqueued_us priority deliveries faults queue`, from push to settlement."""
    return f"{fair_queue(prefix)}:record"


def fair_lease(prefix: str = "") -> str:
    """ZSET delivery (`tag#n`) → when its lease lapses, in ms: the un-acked messages."""
    return f"{fair_queue(prefix)}:lease"


def fair_waiting(prefix: str = "") -> str:
    """HASH family or tenant's node → messages waiting."""
    return f"{fair_queue(prefix)}:waiting"


def fair_in_flight(prefix: str = "") -> str:
    """HASH tenant's node, or family for plain messages → messages un-acked."""
    return f"{fair_queue(prefix)}:in_flight"


def fair_share(prefix: str = "") -> str:
    """HASH tenant → `weight cap`, each empty where it is the default. The cap: most messages un-acked in one family."""
    return f"{fair_queue(prefix)}:share"


def fair_dead(prefix: str = "") -> str:
    """LIST: dead letters as JSON, newest first, 1,000 at most. Expires 14 days after the last."""
    return f"{fair_queue(prefix)}:dead"


def fair_clock(prefix: str = "") -> str:
    """STRING: the last time given to a message, in µs. Expires a day after it."""
    return f"{fair_queue(prefix)}:clock"


#: What kombu keeps beside the families: bindings, the un-acked messages of ordinary queues, replies to remote control.
KOMBU = ["_kombu.binding*", "unacked*", "*.reply.celery.pidbox"]
KNOWN += KOMBU
IMMORTAL += KOMBU
