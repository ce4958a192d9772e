"""Faults under a running service, by their numbers: what is promised holds."""

from __future__ import annotations

import json
import signal
from collections import Counter

import pytest
import redis

from agent_exec import EventName, ExecutionRequest
from agent_exec.errors import StorageUnavailable
from agent_exec.ledger.ledger import CancelRequested
from tests.processes import wait_until
from tests.service.conftest import Service, streaming

QUESTION = "Tell me at some length what you can do for me."


def test_f01_a_worker_killed_in_mid_stream_loses_and_doubles_nothing(slow: Service) -> None:
    victim = slow.worker("victim")
    with slow.client() as client:
        execution_id = client.submit(ExecutionRequest(agent_id="desk", query=QUESTION), tenant_id="acme")
        wait_until(lambda: streaming(client, execution_id), what="tokens")
        victim.kill()
        slow.worker("heir")
        final = client.wait("acme", execution_id, timeout_s=40)
        frames = list(client.events("acme", execution_id))
    assert final.status == "completed", final.error
    assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
    names = Counter(frame.event for frame in frames)
    assert (names[EventName.COMPLETED], names[EventName.FAILED], names[EventName.STEP_RESTARTED]) == (1, 0, 1)
    assert frames[-1].event == EventName.COMPLETED
    restarted = max(frame.sequence for frame in frames if frame.event == EventName.STEP_RESTARTED)
    valid = [
        str(frame.data["token"]) for frame in frames if frame.event == EventName.TOKEN and frame.sequence > restarted
    ]
    assert "".join(valid) == final.output.text
    assert len(slow.calls()) == 2, "the call that was in flight, and its repetition"


def test_f08_a_worker_asked_to_stop_finishes_what_it_runs(slow: Service) -> None:
    worker = slow.worker("leaving")
    with slow.client() as client:
        execution_id = client.submit(ExecutionRequest(agent_id="desk", query=QUESTION), tenant_id="acme")
        wait_until(lambda: streaming(client, execution_id), what="tokens")
        assert worker.stop(within_s=30) == 0
        assert client.get("acme", execution_id).status == "completed"
    assert len(slow.calls()) == 1


def test_f09_what_does_not_finish_in_the_grace_time_is_handed_back_at_once(slow: Service) -> None:
    leaving = slow.worker("impatient", AGENT_EXEC_SHUTDOWN_GRACE_S="0.2", AGENT_EXEC_LEASE_S="60")
    with slow.client() as client:
        execution_id = client.submit(ExecutionRequest(agent_id="desk", query=QUESTION), tenant_id="acme")
        wait_until(lambda: streaming(client, execution_id), what="tokens")
        slow.worker("heir")
        assert leaving.stop(within_s=10) == 0
        assert "step handed back" in leaving.output
        final = client.wait("acme", execution_id, timeout_s=20)
        assert final.status == "completed"
        names = Counter(frame.event for frame in client.events("acme", execution_id))
        assert (names[EventName.STEP_RESTARTED], names[EventName.COMPLETED]) == (1, 1)


def test_f07_a_worker_that_stalls_and_wakes_writes_nothing(slow: Service) -> None:
    stalled = slow.worker("stalled")
    with slow.client() as client:
        execution_id = client.submit(ExecutionRequest(agent_id="desk", query=QUESTION), tenant_id="acme")
        wait_until(lambda: streaming(client, execution_id), what="tokens")
        stalled.send(signal.SIGSTOP)
        slow.worker("heir")
        final = client.wait("acme", execution_id, timeout_s=40)
        before = list(client.events("acme", execution_id))
        stalled.send(signal.SIGCONT)
        noticed = ("step left to another attempt", "write refused")
        wait_until(lambda: any(words in stalled.output for words in noticed), what="the stalled worker to notice")
        assert list(client.events("acme", execution_id)) == before
    assert final.status == "completed"


def test_a_cancel_closes_the_providers_socket(slow: Service) -> None:
    slow.worker("cancelled")
    with slow.client() as client:
        execution_id = client.submit(ExecutionRequest(agent_id="desk", query=QUESTION), tenant_id="acme")
        wait_until(lambda: streaming(client, execution_id), what="tokens")
        assert isinstance(client.cancel("acme", execution_id), CancelRequested)
        final = client.wait("acme", execution_id, timeout_s=5)
        assert final.error is not None
        assert final.error.code == "cancelled"
        assert final.output.text, "what had been said is kept"
    [call] = wait_until(lambda: [one for one in slow.calls() if one["outcome"] != "open"], within_s=3)
    assert call["outcome"] == "disconnected"


def test_f16_redis_killed_and_restarted_loses_nothing(slow: Service) -> None:
    slow.worker("survivor")
    with slow.client() as client:
        execution_id = client.submit(ExecutionRequest(agent_id="desk", query=QUESTION), tenant_id="acme")
        wait_until(lambda: streaming(client, execution_id), what="tokens")
        slow.redis.kill()
        with pytest.raises(StorageUnavailable):
            client.submit(ExecutionRequest(agent_id="desk", query=QUESTION), tenant_id="acme")
        slow.redis.restart()
        final = client.wait("acme", execution_id, timeout_s=40)
        frames = list(client.events("acme", execution_id))
        assert final.status == "completed", final.error
        assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
        after = client.submit(ExecutionRequest(agent_id="desk", query="And what is 2 * 3?"), tenant_id="acme")
        assert client.wait("acme", after, timeout_s=40).status == "completed"


def test_a_new_tenant_is_served_by_workers_that_never_heard_of_it(service: Service) -> None:
    with service.http("initech") as http:
        answer = http.post(
            "/v1/executions",
            json={"agent_id": "summariser", "query": "Summarise: all went well."},
            headers={"Prefer": "wait=20"},
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "completed"


def test_no_message_holds_a_prompt(service: Service) -> None:
    """Watch Redis while an execution runs: hints hold ids, whatever the query says (S21)."""
    with redis.Redis.from_url(service.redis.url) as watcher, watcher.monitor() as monitor, service.client() as client:
        work = ExecutionRequest(agent_id="desk", query="CANARY What is 6 * 7?")
        execution_id = client.submit(work, tenant_id="acme")
        client.wait("acme", execution_id, timeout_s=30)
        watcher.echo("the end of the watch")  # in no script's text, which is watched too
        hints = 0
        for command in monitor.listen():
            line = str(command["command"])
            if "the end of the watch" in line:
                break
            if '"content-type"' in line.replace("\\", ""):
                hints += 1
                assert "CANARY" not in json.dumps(line)
    assert hints >= 4
