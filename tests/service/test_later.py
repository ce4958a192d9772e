"""Work that begins later: at a time that was asked for, at the times of a schedule, and what a batch's end sets off."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery

from agent_exec import ExecutionRequest, keys
from agent_exec.contract.schedule import ScheduleRequest
from tests.processes import wait_until
from tests.service.conftest import Service

QUESTION = ExecutionRequest(agent_id="desk", query="What is 6 * 7?")
#: What a worker that looks every second may be late, on a busy machine.
LATE_S = 3.0


@pytest.fixture
def apart(service: Service) -> Iterator[Service]:
    """The same neighbours, on a database of its own, with no worker yet."""
    running = service.apart(9)
    yield running
    running.stop()
    with running.client() as client:
        client._store.redis.flushdb()


def in_s(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def test_an_execution_begins_at_its_time_whichever_door_it_came_by(apart: Service) -> None:
    apart.worker("later")
    run_at = in_s(3)
    message: dict[str, Any] = {
        "task_id": "t-1",
        "tenant_id": "acme",
        "agent_id": "desk",
        "execution_id": str(uuid.uuid4()),
        "created_at": datetime.now(UTC).isoformat(),
        "metadata": {"run_at": run_at.isoformat()},
        "payload": {"query": QUESTION.query},
    }
    url = apart.env["AGENT_EXEC_REDIS_URL"]
    app = Celery(broker=url, backend=url, set_as_current=False)
    app.send_task("agent_exec.execute", kwargs={"message": message}, queue="agent_execution")
    app.close()
    with apart.client() as client:
        by_client = client.submit(QUESTION.model_copy(update={"run_at": run_at}), tenant_id="acme")
        view = client.get("acme", by_client)
        assert (view.status, view.started_at) == ("pending", None)
        assert view.runs_at is not None
        assert abs(view.runs_at - run_at) < timedelta(milliseconds=1)
        for execution_id in (by_client, message["execution_id"]):
            wait_until(lambda e=execution_id: client.get("acme", e).response, what="its end")  # type: ignore[misc]
            started_at = client.get("acme", execution_id).started_at
            assert started_at is not None
            assert timedelta(0) <= started_at - run_at < timedelta(seconds=LATE_S)


def test_a_time_that_passed_without_any_worker_is_made_up_for(apart: Service) -> None:
    with apart.client() as client:
        execution_id = client.submit(QUESTION.model_copy(update={"run_at": in_s(1)}), tenant_id="acme")
        cancelled = client.submit(QUESTION.model_copy(update={"run_at": in_s(3_600)}), tenant_id="acme")
        client.cancel("acme", cancelled)
        time.sleep(1)  # nothing could be waited for: nobody is there
        apart.worker("late")
        assert client.wait("acme", execution_id, timeout_s=20).status == "completed"
        error = client.wait("acme", cancelled, timeout_s=20).error
    assert error is not None
    assert error.code == "cancelled"


def due(apart: Service, schedule_id: str) -> int:
    """Have a schedule be due now; return the time."""
    with apart.client() as client:
        redis = client._store.redis
        now_ms = int(time.time() * 1000)
        redis.hset(keys.schedule("acme", schedule_id), "next_ms", now_ms)
        redis.zadd(keys.due_schedules(), {f"acme {schedule_id}": now_ms})
    return now_ms


def executions(apart: Service) -> set[str]:
    with apart.client() as client:
        return {name.decode() for name in client._store.redis.zrange(keys.executions("acme"), 0, -1)}


def test_each_time_of_a_schedule_begins_one_execution_among_several_workers(apart: Service) -> None:
    first = apart.worker("first")
    apart.worker("second")
    with apart.client() as client:
        asked = ScheduleRequest(cron="0 7 1 1 *", timezone="Europe/Berlin", request=QUESTION)
        schedule_id = client.create_schedule(asked, tenant_id="acme").schedule_id
        times = [due(apart, schedule_id)]
        wait_until(lambda: client.get_schedule("acme", schedule_id).last_execution_id, what="the first")
        times.append(due(apart, schedule_id))
        first.kill()
        begun = {str(uuid.uuid5(uuid.UUID(schedule_id), str(at_ms))) for at_ms in times}
        wait_until(lambda: executions(apart) == begun, what="one execution for each time")
        for execution_id in begun:
            assert client.wait("acme", execution_id, timeout_s=30).status == "completed"
        view = client.get_schedule("acme", schedule_id)
        assert view.last_execution_id in begun
        assert view.next_at is not None
        assert (view.next_at.astimezone(UTC).month, view.next_at.astimezone(UTC).hour) == (1, 6)
        client.delete_schedule("acme", schedule_id)
    assert executions(apart) == begun


def test_a_time_at_which_the_last_one_still_runs_is_left_out_where_that_is_asked(slow: Service) -> None:
    slow.worker("busy")
    with slow.client() as client:
        asked = ScheduleRequest(cron="0 7 1 1 *", request=QUESTION, overlap=False)
        schedule_id = client.create_schedule(asked, tenant_id="acme").schedule_id
        due(slow, schedule_id)
        running = wait_until(lambda: client.get_schedule("acme", schedule_id).last_execution_id, what="the first")
        second_ms = due(slow, schedule_id)
        wait_until(
            lambda: (
                (at := client.get_schedule("acme", schedule_id).next_at) and at.timestamp() * 1000 > second_ms + 1_000
            ),
            what="the second to be left out",
        )
        assert client.get("acme", running).finished_at is None, "else nothing overlapped"
        assert executions(slow) == {running}
        client.delete_schedule("acme", schedule_id)
        client.cancel("acme", running)


def test_the_end_of_a_batch_is_told_to_who_asked_for_it(service: Service) -> None:
    url = f"{service.neighbours_url}/receiver/hooks/{uuid.uuid4().hex}"
    body = {"requests": [QUESTION.model_dump(mode="json", exclude_unset=True)] * 3, "callback_url": url}
    with service.http("acme") as http:
        accepted = http.post("/v1/batches", json=body)
        assert accepted.status_code == 202, accepted.text
        batch_id = accepted.json()["batch_id"]

        def arrivals() -> list[dict[str, Any]]:
            with service.neighbours() as neighbours:
                came = neighbours.get("/receiver/callbacks").raise_for_status().json()["callbacks"]
            return [one for one in came if one["webhook_id"] == batch_id]

        [arrival] = wait_until(arrivals, what="the callback", within_s=30)
        assert (arrival["fault"], url.endswith(arrival["path"])) == (None, True)
        view = http.get(f"/v1/batches/{batch_id}").json()
        assert (view["status"], view["completed"]) == ("completed", 3)
        results = http.get(f"/v1/batches/{batch_id}/results").text.splitlines()
    assert len(results) == 3
