"""Batches on the whole service: handed in by the CLI and the client, fed by workers that die, cancelled, in nobody's way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_exec import EventName, ExecutionRequest, keys
from agent_exec.batches.batch import BatchRef
from tests.processes import wait_until
from tests.service.conftest import Service

#: The command, beside the interpreter.
AGENT_EXEC = Path(sys.executable).parent / "agent-exec"


@pytest.fixture
def apart(service: Service) -> Iterator[Service]:
    """The same neighbours, on a database of its own."""
    running = service.apart(9)
    yield running
    running.stop()
    with running.client() as client:
        client._store.redis.flushdb()


def cli(service: Service, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(AGENT_EXEC), *words],
        env=service.env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=50,
    )


def asked(count: int, *, agent_id: str = "desk") -> list[ExecutionRequest]:
    return [ExecutionRequest(agent_id=agent_id, query=f"What is {index} * 7?") for index in range(count)]


def test_a_file_is_run_and_its_results_come_in_its_order(apart: Service, tmp_path: Path) -> None:
    apart.worker("batches")
    lines = [json.dumps({"query": f"What is {index} * 7?"}) for index in range(30)]
    lines[11] = json.dumps({"agent_id": "nobody", "query": "Is anybody there?"})
    out = tmp_path / "results.jsonl"
    file = tmp_path / "work.jsonl"
    file.write_text("\n".join(lines))

    ran = cli(apart, "batch", str(file), "--tenant", "acme", "--agent", "desk", "--out", str(out))

    assert ran.returncode == 1, ran.stderr
    assert "29 completed, 1 failed" in ran.stderr
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["index"] for one in results] == list(range(30))
    assert [one["status"] for one in results if one["index"] != 11] == ["completed"] * 29
    assert results[11]["response"]["error"]["code"] == "agent_not_found"
    assert all(str(one["index"] * 7) in one["response"]["output"]["text"] for one in results if one["index"] != 11)
    # The same file again is the same batch, and a file of results that was cut is gone on with.
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    again = cli(apart, "batch", str(file), "--tenant", "acme", "--agent", "desk", "--out", str(out))
    assert again.returncode == 1
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"query": "no agent"}\n{"agent_id": "desk"}\nno json',
            ["line 1", "line 2", "line 3 is not JSON", "Nothing was submitted"],
        ),
        ("\n\n", ["1 to 10000 requests", "has 0"]),
    ],
)
def test_a_file_that_is_wrong_is_told_line_by_line_and_leaves_nothing(
    apart: Service, text: str, said: list[str]
) -> None:
    ran = cli(apart, "batch", "-", "--tenant", "acme", stdin=text)

    assert ran.returncode == 2
    assert all(words in ran.stderr for words in said), ran.stderr
    with apart.client() as client:
        assert client._store.redis.keys("*") == []


def test_a_batch_survives_the_workers_that_feed_and_run_it(apart: Service) -> None:
    first = apart.worker("first")
    with apart.client() as client:
        batch_id = client.submit_batch(asked(60), tenant_id="acme", idempotency_key="twice")
        assert client.submit_batch(asked(60), tenant_id="acme", idempotency_key="twice") == batch_id
        wait_until(lambda: client.get_batch("acme", batch_id).completed > 3, what="some of it")
        first.kill()
        apart.worker("second")
        wait_until(lambda: client.get_batch("acme", batch_id).finished_at, what="the batch to end", within_s=40)
        view = client.get_batch("acme", batch_id)
        results = list(client.batch_results("acme", batch_id))
    assert (view.status, view.completed, view.failed, view.cancelled) == ("completed", 60, 0, 0)
    assert [one.index for one in results] == list(range(60))
    ref = BatchRef("acme", batch_id)
    assert [one.execution_id for one in results] == [ref.item(index).execution_id for index in range(60)]


def test_a_cancelled_batch_submits_no_more_and_ends(apart: Service) -> None:
    apart.worker("cancelled")
    with apart.client() as client:
        batch_id = client.submit_batch(asked(400), tenant_id="acme")
        wait_until(lambda: client.get_batch("acme", batch_id).completed > 3, what="some of it")
        assert client.cancel_batch("acme", batch_id)
        view = wait_until(
            lambda: (view := client.get_batch("acme", batch_id)).finished_at and view, what="its end", within_s=20
        )
        assert not client.cancel_batch("acme", batch_id)
        results = list(client.batch_results("acme", batch_id))
        listed = client._store.redis.zcard(keys.executions("acme"))
    assert view.status == "cancelled"
    assert view.completed + view.failed + view.cancelled == 400
    assert listed == view.submitted < 400
    assert [one.index for one in results] == list(range(400))
    unborn = [one for one in results if one.response is None]
    assert len(unborn) == view.cancelled > 0
    assert {one.error.code for one in unborn if one.error is not None} == {"cancelled"}


def test_a_batch_is_in_nobodys_way(apart: Service) -> None:
    apart.worker("shared", AGENT_EXEC_BATCH_WINDOW="10")

    def start_delay_s(tenant_id: str) -> float:
        with apart.client() as client:
            before = time.monotonic()
            execution_id = client.submit(ExecutionRequest(agent_id="desk", query="What is 1 * 7?"), tenant_id=tenant_id)
            for frame in client.events(tenant_id, execution_id):
                if frame.event == EventName.PROGRESS:
                    break
            return time.monotonic() - before

    for tenant_id in ("acme", "globex"):  # a worker knows both, and their caps
        start_delay_s(tenant_id)
    idle_s = max(start_delay_s(tenant_id) for tenant_id in ("acme", "globex") for _ in range(3))
    with apart.client() as client:
        batch_id = client.submit_batch(asked(200), tenant_id="acme")
        wait_until(lambda: client.get_batch("acme", batch_id).completed, what="the batch to run")
        delays_s = [start_delay_s(tenant_id) for _ in range(5) for tenant_id in ("acme", "globex")]
        view = client.get_batch("acme", batch_id)
        assert view.finished_at is None
        assert view.submitted - view.completed - view.failed <= 10
        client.cancel_batch("acme", batch_id)
    assert max(delays_s) < 2 * idle_s + 1
