"""Batches against a plain model: feeders that die anywhere, ends and cancels at any time, every move repeated."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent_exec import keys
from agent_exec.batches import batch, feeding, item
from agent_exec.batches.feeding import CancelItems, Rest, Submit
from agent_exec.batches.item import BatchRef
from agent_exec.contract.batch import BatchEnded
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.embedded import EmbeddedServer
from agent_exec.script import Call, Script
from tests.ledger.clocked import CLOCK, ClockedStore

LUA = Path(batch.__file__).parent / "lua"
KEEP_S = 86_400
TENANT = "acme"
URL = "https://receiver.example/batches"
#: What finish.lua does of batches, as a script of its own.
SOURCE = "\n".join(
    [
        (LUA.parents[1] / "ledger" / "lua" / "_state.lua").read_text(),
        (LUA.parents[1] / "callbacks" / "lua" / "_create.lua").read_text(),
        (LUA / "_batch.lua").read_text(),
        "end_item(own_of(KEYS), ARGV[1], ARGV[2], ARGV[3], ARGV[4], clock_ms(), ARGV[5], ARGV[5])",
    ]
)
ITEM_ENDED = Script("item_ended", SOURCE, hashlib.sha1(SOURCE.encode(), usedforsecurity=False).hexdigest())


def item_ended(ref: BatchRef, index: int, *, status: str, response: str, keep_s: int = KEEP_S) -> Call[Any]:
    return Call(ITEM_ENDED, ref.keys, [ref.batch_id, index, status, response, keep_s * 1000], lambda reply: reply)


def requests(count: int) -> list[str]:
    return [item.stored(ExecutionRequest(agent_id="desk", query=f"item {index}")) for index in range(count)]


def create(ref: BatchRef, count: int, *, digest: str = "d", max_open: int = 9) -> Call[bool]:
    return batch.create(ref, digest=digest, count=count, callback_url=URL, max_open=max_open)


def seal(ref: BatchRef, *, max_open: int = 9) -> Call[None]:
    return batch.seal(ref, keep_s=KEEP_S, max_open=max_open)


class Batches(RuleBasedStateMachine):
    """Two batches of one tenant."""

    store: ClockedStore
    taken_up = Bundle("taken_up")  # (ref, Submit) that a feeder has taken and may yet carry out

    def __init__(self) -> None:
        super().__init__()
        self.store.redis.flushdb()
        self.store.advance(0)
        self.counts: dict[BatchRef, int] = {}
        self.submitted: dict[BatchRef, set[int]] = {}
        self.ended: dict[BatchRef, dict[int, str]] = {}
        self.cancelled: dict[BatchRef, set[int]] = {}  # what may have been submitted when the cancel was answered
        self.promised: dict[BatchRef, int] = {}

    @initialize(counts=st.lists(st.integers(1, 12), min_size=1, max_size=2))
    def stored(self, counts: list[int]) -> None:
        for number, count in enumerate(counts):
            ref = BatchRef(TENANT, f"00000000-0000-4000-8000-00000000000{number}")
            whole = requests(count)
            for _ in range(2):  # each move is repeated
                assert not self.store.run(create(ref, count))
                assert self.store.run(batch.add(ref, whole[:5], start=0)) in (min(count, 5), count)
                if count > 5:
                    assert self.store.run(batch.add(ref, whole[5:], start=5)) == count
            for _ in range(2):
                self.store.run(seal(ref))
            assert self.store.run(create(ref, count))
            self.counts[ref] = count
            self.submitted[ref], self.ended[ref], self.promised[ref] = set(), {}, 0

    def _ref(self, place: int) -> BatchRef:
        return list(self.counts)[place % len(self.counts)]

    @rule(ms=st.integers(1, 6_000))
    def wait(self, ms: int) -> None:
        self.store.advance(ms)

    @rule(target=taken_up, place=st.integers(0, 1), window=st.integers(1, 8))
    def feed(self, place: int, window: int) -> tuple[BatchRef, Submit | None]:
        ref = self._ref(place)
        match self.store.run(feeding.feed(ref, window=window)):
            case Submit() as submit:
                first, end = submit.start, submit.start + len(submit.items)
                assert list(submit.items) == requests(end)[first:]
                assert ref not in self.cancelled or set(range(first, end)) <= self.cancelled[ref]
                self.promised[ref] = max(self.promised[ref], end)
                return ref, submit
            case CancelItems(indexes):
                assert ref in self.cancelled
                assert set(indexes) == self.submitted[ref] - self.ended[ref].keys()
            case Rest():
                pass
        return ref, None

    @rule(work=taken_up, how_many=st.integers(0, 12))
    def submit_some(self, work: tuple[BatchRef, Submit | None], how_many: int) -> None:
        """Submit, and die: what comes of the work is nobody's now, or another's, or done again later."""
        ref, submit = work
        if submit is not None:
            self.submitted[ref] |= set(range(submit.start, submit.start + min(how_many, len(submit.items))))

    @rule(work=consumes(taken_up))
    def submit_all(self, work: tuple[BatchRef, Submit | None]) -> None:
        ref, submit = work
        if submit is not None:
            self.submitted[ref] |= set(range(submit.start, submit.start + len(submit.items)))
            self.store.run(feeding.fed(ref, submit, open_keep_s=KEEP_S, keep_s=KEEP_S))
            self.check(ref)

    @precondition(lambda self: any(self.submitted[ref] for ref in self.counts))
    @rule(
        place=st.integers(0, 1),
        chosen=st.integers(0, 11),
        status=st.sampled_from(["completed", "failed"]),
        times=st.integers(1, 2),
    )
    def end(self, place: int, chosen: int, status: str, times: int) -> None:
        ref = self._ref(place)
        if self.submitted[ref]:
            index = sorted(self.submitted[ref])[chosen % len(self.submitted[ref])]
            for _ in range(times):
                self.store.run(item_ended(ref, index, status=status, response=json.dumps({"status": status})))
                self.ended[ref].setdefault(index, status)
            self.check(ref)

    @rule(place=st.integers(0, 1))
    def cancel(self, place: int) -> None:
        ref = self._ref(place)
        was_over = self.is_over(ref)
        assert self.store.run(batch.cancel(ref, keep_s=KEEP_S)) is not was_over
        if not was_over:
            self.cancelled.setdefault(ref, set(range(self.promised[ref])))
        self.check(ref)

    def is_over(self, ref: BatchRef) -> bool:
        return self.fields(ref).get("finished_ms") is not None

    def fields(self, ref: BatchRef) -> dict[str, str]:
        raw = self.store.redis.hgetall(keys.batch(ref.tenant_id, ref.batch_id))
        return {name.decode(): value.decode() for name, value in raw.items()}

    def check(self, ref: BatchRef) -> None:
        fields = self.fields(ref)
        count = self.counts[ref]
        statuses = list(self.ended[ref].values())
        assert (int(fields["completed"]), int(fields["failed"])) == (
            statuses.count("completed"),
            statuses.count("failed"),
        )
        last = len(self.cancelled[ref]) if ref in self.cancelled else count
        if "finished_ms" in fields:
            assert set(self.ended[ref]) == set(range(last))
            assert not self.store.redis.exists(keys.batch_items(ref.tenant_id, ref.batch_id))
            assert self.store.redis.zscore(keys.open_batches(TENANT), ref.batch_id) is None

    def teardown(self) -> None:
        """Feed and end whatever is left: each batch is over then, and nothing is due."""
        for _ in range(200):
            if all(self.is_over(ref) for ref in self.counts):
                break
            self.store.advance(feeding.FEED_AGAIN_AFTER_MS)
            for ref in self.store.run(feeding.due()):
                match self.store.run(feeding.feed(ref, window=4)):
                    case Submit() as submit:
                        assert len(submit.items) <= 4 or ref in self.cancelled
                        self.submitted[ref] |= set(range(submit.start, submit.start + len(submit.items)))
                        self.store.run(feeding.fed(ref, submit, open_keep_s=KEEP_S, keep_s=KEEP_S))
            for ref in self.counts:
                for index in self.submitted[ref] - self.ended[ref].keys():
                    self.store.run(item_ended(ref, index, status="completed", response='{"status": "completed"}'))
                    self.ended[ref][index] = "completed"
        for ref in self.counts:
            assert self.is_over(ref), self.fields(ref)
            self.check(ref)
            body = self.store.redis.hget(keys.callback(TENANT, ref.batch_id), "body")
            assert BatchEnded.model_validate_json(body).data == self.store.run(batch.look(ref))
        assert self.store.redis.zcard(keys.callbacks_waiting(TENANT)) == len(self.counts)
        assert self.store.redis.zrange(keys.due_batches(), 0, -1) == []
        immortal = {key.decode() for key in self.store.redis.scan_iter() if self.store.redis.ttl(key) == -1}
        assert immortal <= {keys.callbacks(), keys.callbacks_wake(), CLOCK}


@pytest.fixture(scope="module")
def clocked_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with EmbeddedServer(tmp_path_factory.mktemp("batches")) as server:
        yield server


def test_every_batch_is_run_whole_and_once_whatever_dies(clocked_server: EmbeddedServer) -> None:
    store = ClockedStore(clocked_server.url)
    Batches.store = store
    try:
        run_state_machine_as_test(Batches, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
    finally:
        store.close()
