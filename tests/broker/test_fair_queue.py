"""Each script of the fair queue, alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agent_exec import keys
from agent_exec.broker import fair_queue
from agent_exec.broker.fair_queue import Nothing, TenantDepth, Unfinished
from agent_exec.errors import InvalidMessage, StorageFull
from agent_exec.store import BlockingStore
from tests.processes import wait_until

LUA = Path(fair_queue.__file__).parent / "lua"
VARIANTS = ["", *(f"\x06\x16{step}" for step in range(1, 10))]


def tenants(texts: list[str]) -> Counter[str]:
    return Counter(text.split(":")[1].split("/")[0] for text in texts)


def test_each_script_has_its_twin() -> None:
    scripts = {path.stem for path in LUA.glob("*.lua") if not path.stem.startswith("_")}
    assert scripts == {name for name in scripts if callable(getattr(fair_queue, name, None))}
    for path in LUA.glob("*.lua"):
        header = path.read_text().split("-- include")[0]
        if not path.stem.startswith("_"):
            assert all(word in header for word in ("KEYS[1]", "ARGV", "Returns")), path.name


# -- push


def test_a_tag_is_queued_once(run: Any, serve: Any) -> None:
    call = fair_queue.push("agent_execution:a", tag="t", priority=3, message="m")
    assert [run(call), run(call)] == [True, False]
    assert serve(9) == ["m"]
    assert run(call) is True


def test_a_tag_that_a_worker_holds_is_not_queued_again(run: Any, pop: Any) -> None:
    call = fair_queue.push("agent_execution:a", tag="t", priority=3, message="m")
    run(call)
    held = pop()
    assert run(call) is False
    run(fair_queue.requeue(held.delivery))
    assert run(call) is False
    run(fair_queue.dead_letter(pop().delivery, reason="a test"))
    assert run(call) is True


@pytest.mark.parametrize(
    ("queue", "tag", "priority"),
    [
        ("agent_execution", "t", 0),
        ("agent_execution:", "t", 0),
        ("agent_execution:a", "", 0),
        ("agent_execution:a", "t", 10),
        ("agent_execution:a", "t", -1),
    ],
)
def test_what_cannot_be_queued_is_refused(queue: str, tag: str, priority: int) -> None:
    with pytest.raises(ValueError, match=r"push to <family>:<tenant>|priority from 0 to 9"):
        fair_queue.push(queue, tag=tag, priority=priority, message="m")


def test_a_hint_is_small() -> None:
    with pytest.raises(InvalidMessage, match="at most 16384 are taken"):
        fair_queue.push("agent_execution:a", tag="t", priority=0, message="x" * 16_385)


def test_a_message_of_any_bytes_arrives_as_it_was(run: Any, pop: Any) -> None:
    run(fair_queue.push("agent_execution:a", tag="t", priority=0, message=b"\xff\x00\r\n"))
    assert pop().message == b"\xff\x00\r\n"


# -- order within a queue


def test_nine_is_most_urgent_and_equals_are_first_in_first_out(push: Any, serve: Any) -> None:
    pushed = [
        (priority, tag) for priority in (5, 0, 9, 5, 0, 9) for tag in push("agent_execution:a", priority=priority)
    ]
    assert serve(9) == [tag for _, tag in sorted(pushed, key=lambda item: -item[0])]


def test_each_level_of_priority_is_worth_some_waiting(push: Any, serve: Any) -> None:
    # A level is worth a microsecond here, so two calls are further apart than nine levels.
    old = push("agent_execution:a", priority=0, aging_s=1e-6)
    new = push("agent_execution:a", priority=9, aging_s=1e-6)
    assert serve(9) == old + new


def test_a_message_that_comes_back_takes_its_old_place(push: Any, pop: Any, run: Any, serve: Any) -> None:
    tags = push("agent_execution:a", 3)
    run(fair_queue.requeue(pop().delivery))
    assert serve(9) == tags


def test_a_waiting_message_can_be_made_more_urgent(push: Any, run: Any, serve: Any, pop: Any) -> None:
    tags = push("agent_execution:a", 3)
    assert run(fair_queue.reprioritise(tags[2], priority=1))
    assert serve(9) == [tags[2], tags[0], tags[1]]
    assert not run(fair_queue.reprioritise(tags[2], priority=1))


def test_a_new_priority_holds_for_a_message_in_flight_should_it_come_back(
    push: Any, run: Any, pop: Any, serve: Any
) -> None:
    first, second = push("agent_execution:a", 2)
    held = pop()
    assert not run(fair_queue.reprioritise(first, priority=0))
    run(fair_queue.reprioritise(second, priority=5))
    run(fair_queue.release([held.delivery]))
    assert serve(9) == [second, first]


def test_a_priority_is_one_of_ten() -> None:
    with pytest.raises(ValueError, match="from 0 to 9"):
        fair_queue.reprioritise("t", priority=10)


# -- shares


def test_weights_are_exact(push: Any, run: Any, serve: Any) -> None:
    for tenant, weight in (("a", 8), ("b", 4), ("c", 1)):
        run(fair_queue.set_share(tenant, weight=weight))
        push(f"agent_execution:{tenant}", 90)
    assert tenants(serve(130)) == {"a": 80, "b": 40, "c": 10}


def test_a_quiet_tenant_passes_a_flood(push: Any, serve: Any) -> None:
    push("agent_execution:flood", 50, priority=9)
    serve(20)
    push("agent_execution:quiet", priority=0)
    assert "quiet" in tenants(serve(2))


def test_behind_a_flood_a_quiet_tenants_ten_begin_after_twice_the_services_of_when_alone(
    store: BlockingStore, push: Any, serve: Any
) -> None:
    """F28: however long the flood, for a place in the order is what it could cost."""
    flood = [
        fair_queue.push("agent_execution:flood", tag=f"f{n}", priority=9, message=f"x:flood/{n}") for n in range(5_000)
    ]
    store.run_many(flood)
    serve(100)
    ten = push("agent_execution:quiet", 10, priority=0)
    order = serve(2 * len(ten) + 1)
    behind = [order.index(tag) + 1 for tag in ten]
    assert all(place <= 2 * alone + 1 for alone, place in enumerate(behind, start=1)), behind


def test_nobody_gains_by_draining_and_refilling(push: Any, pop: Any, run: Any) -> None:
    push("agent_execution:flood", 50)
    served: Counter[str] = Counter()
    for _ in range(40):
        if not run(fair_queue.size("agent_execution:drip")):
            push("agent_execution:drip")
        popped = pop()
        served[popped.queue] += 1
        run(fair_queue.ack([popped.delivery]))
    assert set(served.values()) == {20}


def test_agents_share_their_tenants_share(push: Any, serve: Any) -> None:
    for queue in ("a:x", "a:y", "b:z"):
        push(f"agent_tools:{queue}", 30)
    assert Counter(text.split("/")[0] for text in serve(40, "agent_tools")) == {
        "agent_tools:a:x": 10,
        "agent_tools:a:y": 10,
        "agent_tools:b:z": 20,
    }


def test_a_new_weight_holds_at_once(push: Any, run: Any, serve: Any) -> None:
    run(fair_queue.set_share("a", weight=0.01))
    push("agent_execution:a", 5)
    push("agent_execution:b", 200)
    serve(10)  # a was served once and would wait for a hundred of b's
    assert run(fair_queue.set_share("a", weight=1)) is True
    assert run(fair_queue.set_share("a", weight=1)) is False
    assert tenants(serve(8)) == {"a": 4, "b": 4}


@pytest.mark.parametrize("share", [{"weight": 0}, {"weight": -1}, {"weight": float("inf")}, {"cap": -1}])
def test_an_impossible_share_is_refused(share: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Tenant 'a'"):
        fair_queue.set_share("a", **share)


# -- caps


def test_a_tenant_at_its_cap_is_passed_over_until_a_message_is_settled(push: Any, pop: Any, run: Any) -> None:
    """S38."""
    push("agent_execution:a", 5)
    held = [pop(default_cap=2) for _ in range(2)]
    assert pop(default_cap=2) is None
    assert run(fair_queue.depths())["agent_execution"].tenants["a"] == TenantDepth(waiting=3, in_flight=2, at_cap=True)
    run(fair_queue.ack([held[0].delivery]))
    assert pop(default_cap=2) is not None
    assert pop(default_cap=2) is None


def test_places_under_the_cap_that_a_dead_worker_held_are_free_when_their_leases_have_lapsed(
    push: Any, pop: Any
) -> None:
    """S38."""
    push("agent_execution:a", 5)
    assert [pop(default_cap=2, lease_s=lease_s) is not None for lease_s in (0.3, 0.3, 0.3)] == [True, True, False]
    wait_until(lambda: pop(default_cap=2) is not None, what="a lease to lapse", within_s=5)
    wait_until(lambda: pop(default_cap=2) is not None, what="the other", within_s=5)
    assert pop(default_cap=2) is None


def test_a_cap_of_its_own_wins_over_the_default(push: Any, pop: Any, run: Any) -> None:
    run(fair_queue.set_share("a", cap=3))
    push("agent_execution:a", 5)
    assert [pop(default_cap=1) is not None for _ in range(4)] == [True, True, True, False]


def test_a_raised_cap_holds_at_once(push: Any, pop: Any, run: Any, store: BlockingStore) -> None:
    run(fair_queue.set_share("a", cap=0))
    push("agent_execution:a", 2)
    assert pop() is None
    run(fair_queue.set_share("a", cap=1))
    assert store.redis.lrange("agent_execution", 0, -1) == [b""], "an idle worker is woken"
    assert [pop() is not None for _ in range(2)] == [True, False]


def test_a_lowered_cap_holds_at_once(push: Any, pop: Any, run: Any) -> None:
    push("agent_execution:a", 5)
    held = [pop() for _ in range(3)]
    run(fair_queue.set_share("a", cap=2))
    run(fair_queue.ack([held[0].delivery]))
    assert pop() is None
    run(fair_queue.ack([held[1].delivery]))
    assert pop() is not None


def test_a_cap_counts_in_each_family(push: Any, pop: Any) -> None:
    push("agent_execution:a")
    push("agent_tools:a:x")
    assert pop(default_cap=1) is not None
    assert pop("agent_tools", default_cap=1) is not None


def test_a_tenant_at_its_cap_keeps_its_place_while_others_drain(push: Any, pop: Any, run: Any, serve: Any) -> None:
    push("agent_execution:a", 60)
    serve(50, default_cap=1)
    held = pop(default_cap=1)
    assert pop(default_cap=1) is None, "the ring is empty, and a is owed its place in the old time"
    push("agent_execution:b", 60)
    run(fair_queue.ack([held.delivery]))
    assert tenants(serve(10, default_cap=1)) == {"a": 5, "b": 5}


# -- bounds on work


def test_tenants_that_drained_together_are_swept_in_bounded_pieces(push: Any, run: Any, store: BlockingStore) -> None:
    for number in range(500):
        push(f"agent_execution:t{number}")
    held = [run(fair_queue.pop("agent_execution")).delivery for _ in range(500)]
    run(fair_queue.ack(held))
    sizes = [store.redis.zcard(keys.fair_ring("agent_execution"))]
    while run(fair_queue.pop("agent_execution")) == Unfinished():
        sizes.append(store.redis.zcard(keys.fair_ring("agent_execution")))
    assert [before - after for before, after in pairwise(sizes)] == [64] * 7
    assert not store.redis.exists(keys.fair_ring("agent_execution"), keys.fair_virtual())


def test_a_message_behind_a_sweep_is_found(push: Any, pop: Any, run: Any) -> None:
    for number in range(200):
        push(f"agent_execution:t{number:03}")
    run(fair_queue.ack([pop().delivery for _ in range(200)]))
    push("agent_execution:zz")
    assert pop().queue == "agent_execution:zz"


# -- leases and settlement


def test_a_lapsed_message_is_delivered_anew_and_its_old_delivery_settles_nothing(push: Any, pop: Any, run: Any) -> None:
    push("agent_execution:a")
    first = pop(lease_s=0)
    second = pop()
    assert [first.delivery, second.delivery] == ["agent_execution:a/1#1", "agent_execution:a/1#2"]
    assert [first.earlier_deliveries, second.earlier_deliveries] == [0, 1]
    assert run(fair_queue.ack([first.delivery])) == 0
    assert run(fair_queue.requeue(first.delivery)) is False
    assert run(fair_queue.dead_letter(first.delivery, reason="a test")) is False
    assert run(fair_queue.depths())["agent_execution"].in_flight == 1
    assert run(fair_queue.ack([second.delivery, second.delivery])) == 1
    assert run(fair_queue.depths())["agent_execution"].in_flight == 0


def test_any_pop_puts_back_what_lapsed_in_any_family(push: Any, pop: Any) -> None:
    push("agent_tools:a:x")
    pop("agent_tools", lease_s=0)
    assert pop("agent_execution") is None
    assert pop("agent_tools").earlier_deliveries == 1


def test_a_renewed_lease_does_not_lapse_and_a_lost_one_is_named(push: Any, pop: Any, run: Any) -> None:
    push("agent_execution:a", 2)
    kept, settled = pop(lease_s=0.2), pop()
    run(fair_queue.ack([settled.delivery]))
    assert run(fair_queue.renew([kept.delivery, settled.delivery, "never#1"])) == [settled.delivery, "never#1"]
    assert run(fair_queue.renew([kept.delivery], lease_s=-1)) == []
    assert pop().earlier_deliveries == 1


def test_a_message_that_keeps_coming_back_is_a_dead_letter(push: Any, pop: Any, run: Any) -> None:
    push("agent_execution:a")
    for _ in range(3):
        run(fair_queue.requeue(pop().delivery, max_faults=3))
    assert pop(lease_s=0).earlier_deliveries == 3
    assert pop(max_faults=3) is None
    (letter,) = run(fair_queue.dead_letters())
    assert (letter.queue, letter.tag, letter.deliveries) == ("agent_execution:a", "agent_execution:a/1", 4)
    assert letter.reason == "came back 4 times: each worker that took it died or refused it"
    assert (letter.message, letter.size_bytes) == ("agent_execution:a/1", 19)


def test_a_message_that_was_never_begun_may_come_back_for_ever(push: Any, pop: Any, run: Any) -> None:
    push("agent_execution:a")
    for _ in range(30):
        assert run(fair_queue.release([pop(max_faults=1).delivery])) == 1
    assert pop(max_faults=1).earlier_deliveries == 30


def test_dead_letters_are_bounded_in_number_and_size(
    push: Any, pop: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S21."""
    monkeypatch.setattr(fair_queue, "_DEAD_LIMITS", (2, 10))
    push("agent_execution:a", 3)
    for number in range(3):
        run(fair_queue.dead_letter(pop().delivery, reason=f"reason {number}"))
    letters = run(fair_queue.dead_letters())
    assert [letter.reason for letter in letters] == ["reason 2", "reason 1"]
    assert {(letter.message, letter.size_bytes) for letter in letters} == {("agent_exe" + "c", 19)}
    assert len(run(fair_queue.dead_letters(limit=1))) == 1


def test_a_dead_letter_of_any_bytes_can_be_read(run: Any, pop: Any) -> None:
    run(fair_queue.push("agent_execution:a", tag="t", priority=0, message=b'\xff"\x00\n'))
    run(fair_queue.dead_letter(pop().delivery, reason="ünlesbar"))
    (letter,) = run(fair_queue.dead_letters())
    assert (letter.reason, letter.message) == ("ünlesbar", '�"\x00\n')


# -- plain messages


def test_plain_messages_are_taken_from_all_ten_lists(store: BlockingStore, serve: Any) -> None:
    for variant in VARIANTS:
        store.redis.lpush(f"agent_execution{variant}", f"in {variant!r}")
    assert sorted(serve(99)) == sorted(f"in {variant!r}" for variant in VARIANTS)


def test_no_plain_list_starves_another(store: BlockingStore, serve: Any) -> None:
    for variant in ("", "\x06\x169", "\x06\x163"):
        store.redis.lpush(f"agent_execution{variant}", *[variant or "plain"] * 60)
    assert len(set(serve(60))) == 3


def test_a_list_of_plain_messages_is_first_in_first_out(store: BlockingStore, serve: Any) -> None:
    for number in range(5):
        store.redis.lpush("agent_execution", number)
    store.redis.blmove("agent_execution", keys.fair_arriving("agent_execution"), 1, "RIGHT", "LEFT")
    assert serve(9) == list("01234")


def test_plain_and_queued_messages_take_turns_when_asked_to(store: BlockingStore, push: Any, serve: Any) -> None:
    store.redis.lpush("agent_execution", "p1", "p2")
    push("agent_execution:a", 2)
    assert serve(1, plain_first=True) == ["p1"]
    assert serve(1, plain_first=False) == ["agent_execution:a/1"]
    assert serve(2, plain_first=True) == ["p2", "agent_execution:a/2"]


def test_a_plain_message_that_comes_back_is_next(store: BlockingStore, pop: Any, run: Any, serve: Any) -> None:
    store.redis.lpush("agent_execution", "p1", "p2")
    first = pop()
    assert first.queue == "agent_execution"
    run(fair_queue.requeue(first.delivery))
    assert serve(9) == ["p1", "p2"]


def test_an_oversized_plain_message_is_a_dead_letter_unread(store: BlockingStore, run: Any, serve: Any) -> None:
    store.redis.lpush("agent_execution", "x" * 101, "ok")
    assert serve(9, max_plain_bytes=100) == ["ok"]
    (letter,) = run(fair_queue.dead_letters())
    assert letter.reason == "has 101 bytes; at most 100 are taken"


def test_a_request_of_the_largest_size_passes(store: BlockingStore, pop: Any) -> None:
    store.redis.lpush("agent_execution", b"x" * 1_500_000)
    assert len(pop().message) == 1_500_000


# -- waking


def test_a_push_leaves_one_token_and_an_idle_pop_none(push: Any, serve: Any, store: BlockingStore) -> None:
    push("agent_execution:a", 5)
    assert store.redis.lrange("agent_execution", 0, -1) == [b""]
    serve(5)
    assert serve(1) == []
    assert not store.redis.exists("agent_execution")


def test_tokens_that_killed_workers_took_are_no_messages(store: BlockingStore, push: Any, serve: Any, run: Any) -> None:
    store.redis.lpush(keys.fair_arriving("agent_execution"), "", "", "p", "")
    assert run(fair_queue.size("agent_execution")) == 1
    assert serve(9) == ["p"]


def test_a_pop_that_leaves_work_wakes_the_next_worker(push: Any, pop: Any, store: BlockingStore) -> None:
    push("agent_execution:a", 2)
    store.redis.delete("agent_execution")
    pop()
    assert store.redis.lrange("agent_execution", 0, -1) == [b""]
    store.redis.delete("agent_execution")
    pop()
    assert not store.redis.exists("agent_execution")


def test_a_wake_up_is_passed_on_only_where_there_is_work(push: Any, pop: Any, run: Any, store: BlockingStore) -> None:
    assert run(fair_queue.wake("agent_execution")) is False
    push("agent_execution:a")
    store.redis.delete("agent_execution")
    assert run(fair_queue.wake("agent_execution")) is True
    assert store.redis.lrange("agent_execution", 0, -1) == [b""]


def test_nobody_is_woken_for_a_tenant_at_its_cap(push: Any, pop: Any, run: Any, store: BlockingStore) -> None:
    push("agent_execution:a", 2)
    held = pop(default_cap=1)
    assert pop(default_cap=1) is None
    push("agent_execution:a")
    assert not store.redis.exists("agent_execution")
    run(fair_queue.ack([held.delivery]))
    assert store.redis.lrange("agent_execution", 0, -1) == [b""]


# -- operators


def test_sizes(store: BlockingStore, push: Any, run: Any) -> None:
    push("agent_tools:a:x", 2)
    push("agent_tools:a:y")
    push("agent_tools:b:x")
    store.redis.lpush("agent_tools", "plain")
    sizes = {name: run(fair_queue.size(name)) for name in ("agent_tools", "agent_tools:a", "agent_tools:a:x")}
    assert sizes == {"agent_tools": 5, "agent_tools:a": 3, "agent_tools:a:x": 2}


def test_depths(store: BlockingStore, push: Any, pop: Any, run: Any) -> None:
    push("agent_execution:a", 3)
    push("agent_execution:b")
    store.redis.lpush("agent_execution", "p1", "p2")
    for _ in range(3):
        pop()
    pop(plain_first=True)
    depth = run(fair_queue.depths())["agent_execution"]
    assert (depth.waiting, depth.in_flight, depth.plain) == (2, 4, 1)
    assert depth.tenants == {"a": TenantDepth(waiting=1, in_flight=2), "b": TenantDepth(waiting=0, in_flight=1)}


@pytest.mark.parametrize(("name", "left"), [("agent_tools", 0), ("agent_tools:a", 2), ("agent_tools:a:x", 3)])
def test_purge(name: str, left: int, push: Any, pop: Any, run: Any) -> None:
    push("agent_tools:a:x", 1501)
    held = pop("agent_tools")
    push("agent_tools:a:y")
    push("agent_tools:b:x", 2)
    purged = [run(fair_queue.purge(name)) for _ in range(3)]
    assert purged == [1000, 503 - left, 0]
    assert run(fair_queue.size("agent_tools")) == left
    assert run(fair_queue.ack([held.delivery])) == 1, "what is in flight stays"


def test_purging_a_family_takes_plain_messages_and_parked_tenants_too(
    store: BlockingStore, push: Any, pop: Any, run: Any, serve: Any
) -> None:
    run(fair_queue.set_share("a", cap=0))
    push("agent_execution:a")
    assert pop() is None
    for variant in VARIANTS:
        store.redis.lpush(f"agent_execution{variant}", "plain")
    assert run(fair_queue.purge("agent_execution")) == 11
    assert run(fair_queue.size("agent_execution")) == 0
    assert not store.redis.exists(keys.fair_message(), keys.fair_record())


# -- everything


def test_a_prefix_stands_before_every_key(store: BlockingStore, run: Any) -> None:
    store.redis.lpush("cell1:agent_execution", "plain")
    run(fair_queue.push("agent_execution:a", tag="t", priority=0, message="m", prefix="cell1:"))
    assert run(fair_queue.pop("agent_execution")) == Nothing()
    run(fair_queue.set_share("a", weight=2, cap=1, prefix="cell1:"))
    held = [run(fair_queue.pop("agent_execution", prefix="cell1:")) for _ in range(2)]
    assert [popped.message for popped in held] == [b"m", b"plain"]
    run(fair_queue.dead_letter(held[0].delivery, reason="a test", prefix="cell1:"))
    assert run(fair_queue.depths(prefix="cell1:"))["agent_execution"].in_flight == 1
    names = store.redis.keys()
    assert names
    assert all(name.startswith(b"cell1:") for name in names)
    store.redis.delete(*names)


def test_a_full_redis_refuses_a_push_whole_and_lets_work_drain(
    store: BlockingStore, push: Any, serve: Any, run: Any
) -> None:
    push("agent_execution:a", 3)
    store.redis.config_set("maxmemory", 1)
    try:
        before = {name: store.redis.dump(name) for name in store.redis.scan_iter()}
        with pytest.raises(StorageFull):
            run(fair_queue.push("agent_execution:a", tag="one more", priority=0, message="m"))
        assert {name: store.redis.dump(name) for name in store.redis.scan_iter()} == before
        assert len(serve(9)) == 3
    finally:
        store.redis.config_set("maxmemory", 0)
    assert run(fair_queue.depths())["agent_execution"].in_flight == 0
