"""Workers whose connections lose replies, and whose servers are replaced by others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from agent_exec.broker import fair_queue
from agent_exec.embedded import EmbeddedServer
from chaos.proxy import Proxy
from tests.broker.fair_app import LEASE_S
from tests.broker.workers import POOLS, Bench, Start, diary_of, until
from tests.sentinels import PASSWORD, Sentinels

#: Replies lost of each kind.
LOST = 3
#: Between two connections, and for a lapsed lease to be found by a pop.
BESIDE_S = 4.0


@pytest.fixture(scope="module", params=POOLS)
def proxy(start: Start, redis_server: EmbeddedServer, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """A proxy, and behind it a worker of each pool in turn that lives through all losses of replies."""
    with Proxy.before(redis_server.url) as proxy:
        worker = start(request.param, url=proxy.url).ready()
        yield proxy
        assert worker.stop() == 0


def test_a_message_whose_pop_was_not_heard_comes_back_within_seconds_and_runs_once(proxy: Proxy, bench: Bench) -> None:
    lost = proxy.dropped + LOST
    proxy.drop_replies(LOST, about=fair_queue._POP.sha.encode())
    for number in range(20):
        bench.send(f"agent_execution:t{number % 3}", f"p{number}")
    until(lambda: len(bench.ended()) == 20)
    assert proxy.dropped == lost
    began = sorted(bench.begun_at().values())
    assert began[-1] - began[0] < LOST * (LEASE_S + BESIDE_S)
    until(bench.idle)
    assert Counter(bench.begun()) == dict.fromkeys([f"p{number}" for number in range(20)], 1)
    assert bench.store.run(fair_queue.dead_letters()) == []


def test_an_acknowledgement_that_was_not_answered_is_repeated_and_nothing_runs_again(
    proxy: Proxy, bench: Bench
) -> None:
    lost, sent = proxy.dropped + LOST, 0
    proxy.drop_replies(LOST, about=fair_queue._ACK.sha.encode())
    while proxy.dropped < lost:  # sent alone, most have no pop to carry their acknowledgement
        bench.send("agent_execution:t", f"a{sent}")
        sent += 1
        until(lambda: len(bench.ended()) == sent)  # noqa: B023 called at once
        until(bench.idle)
    assert len(bench.begun()) == sent


# -- another server


@pytest.mark.parametrize("planned", [True, False], ids=["by command", "by a crash"])
def test_work_goes_on_after_a_fail_over(start: Start, redis_url: str, tmp_path: Path, planned: bool) -> None:
    with Sentinels(tmp_path) as cell:
        worker = start("asyncio", url=cell.url).ready()
        bench = Bench(f"redis://:{PASSWORD}@127.0.0.1:{cell.primary_port()}/0", diary_of(redis_url))
        for number in range(60):
            bench.send(f"agent_execution:t{number % 3}", f"f{number}", 0.1)
        until(lambda: len(bench.begun()) > 8)
        before = cell.primary_port()
        if planned:
            # Else the old primary goes on taking writes, which nobody will know of, for the second until it is told.
            bench.store.redis.config_set("min-replicas-to-write", 1)
            cell.fail_over()
        else:
            cell.kill_primary()
        until(lambda: cell.primary_port() != before)
        bench.close()
        bench = Bench(f"redis://:{PASSWORD}@127.0.0.1:{cell.primary_port()}/0", diary_of(redis_url))
        until(lambda: len(bench.ended()) == 60)
        until(bench.idle)
        assert len(bench.begun()) <= 60 + 8, "a replica may lack what its primary did last; that much is repeated"
        assert bench.at_once_of_each() == 1
        assert worker.stop() == 0
        bench.close()


def test_work_goes_on_at_the_next_address_of_a_list(start: Start, redis_url: str, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "first") as first, EmbeddedServer(tmp_path / "second") as second:
        replica = redis.Redis.from_url(second.url)
        _follow(replica, first)
        worker = start("asyncio", url=f"{first.url};{second.url}").ready()
        bench = Bench(first.url, diary_of(redis_url))
        for number in range(40):
            bench.send(f"agent_execution:t{number % 3}", f"l{number}", 0.1)
        until(lambda: len(bench.begun()) > 8)
        bench.close()
        first.kill()
        replica.replicaof("NO", "ONE")
        replica.close()
        bench = Bench(second.url, diary_of(redis_url))
        until(lambda: len(bench.ended()) == 40)
        until(bench.idle)
        assert len(bench.begun()) <= 40 + 8, "what ran meanwhile could not be acknowledged at the second"
        assert worker.stop() == 0
        bench.close()


def _follow(replica: Any, primary: EmbeddedServer) -> None:
    address = redis.connection.parse_url(primary.url)
    replica.config_set("masterauth", address["password"])
    replica.replicaof("127.0.0.1", address["port"])
    until(lambda: replica.info("replication").get("master_link_status") == "up")
