"""What tenants are entitled to reaches the queues and those who accept work."""

from __future__ import annotations

import time

import pytest

from agent_exec import keys
from agent_exec.contract.agent import Tenant
from agent_exec.store import Store
from tasks import shares
from tasks.shares import Shares

ACME = Tenant(tenant_id="acme", plan="pro", weight=4.0, max_in_flight=7)


async def calls(store: Store) -> int:
    stats = await store.redis.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("eval", "evalsha"))


async def test_a_share_is_passed_on_when_it_is_new_or_has_changed(async_store: Store) -> None:
    passing = Shares(async_store, keep_s=60)
    await passing.note(ACME)
    assert await async_store.redis.hget(keys.tenant("acme"), "plan") == b"pro"
    before = await calls(async_store)
    await passing.note(ACME)
    assert await calls(async_store) == before
    await passing.note(ACME.model_copy(update={"plan": "enterprise"}))
    assert await async_store.redis.hget(keys.tenant("acme"), "plan") == b"enterprise"


async def test_a_share_is_passed_on_again_for_a_store_that_has_lost_it(
    async_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = Shares(async_store, keep_s=60)
    await passing.note(ACME)
    await async_store.redis.flushdb()
    later = time.monotonic() + shares.AGAIN_AFTER_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    await passing.note(ACME)
    assert await async_store.redis.exists(keys.tenant("acme"))


async def test_what_is_remembered_is_bounded(async_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "MAX_REMEMBERED", 2)
    passing = Shares(async_store, keep_s=60)
    for number in range(3):
        await passing.note(Tenant(tenant_id=f"t{number}"))
    before = await calls(async_store)
    await passing.note(Tenant(tenant_id="t2"))
    assert await calls(async_store) == before
    await passing.note(Tenant(tenant_id="t0"))
    assert await calls(async_store) > before
