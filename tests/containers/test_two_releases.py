"""This release and the next one side by side, as in a rolling upgrade. next.Dockerfile says how they differ."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from docker import DockerClient
from pytest_celery import CeleryTestSetup, CeleryWorkerCluster

from agent_exec import AgentExecClient, ExecutionRequest
from tests.containers.nodes import CONFINED, Worker, WorkerContainer
from tests.containers.watching import whole, workers_of
from tests.processes import wait_until

SUM = "What is 6 * 7?"


@pytest.fixture
def celery_worker_cluster(one_container: WorkerContainer, celery_setup_app: Celery) -> CeleryWorkerCluster:
    """A worker of this release; the next release's comes in the test."""
    return CeleryWorkerCluster(Worker(one_container, celery_setup_app))


def test_both_take_work_and_hand_it_to_each_other(
    celery_setup: CeleryTestSetup, next_container: WorkerContainer, client: AgentExecClient
) -> None:
    both = {celery_setup.worker.short_id, Worker(next_container, celery_setup.app).short_id}
    seen: set[str] = set()
    shared = 0

    def each_has_worked() -> bool:
        nonlocal shared
        execution_id = client.submit(ExecutionRequest(agent_id="desk", query=SUM), tenant_id="acme")
        assert client.wait("acme", execution_id, timeout_s=60).status == "completed"
        whole(client, execution_id)
        workers = workers_of(celery_setup, execution_id)
        seen.update(workers)
        shared += len(workers) == 2
        return seen == both and shared > 0

    wait_until(each_has_worked, within_s=120, what="work by each of the two, and an execution that both had a part in")


def test_what_the_next_release_accepted_waits_for_its_worker(
    celery_setup: CeleryTestSetup,
    client: AgentExecClient,
    request: pytest.FixtureRequest,
    docker_client: DockerClient,
    next_image: Any,
    default_pytest_celery_network: Any,
    worker_environment: dict[str, str],
) -> None:
    older = celery_setup.worker
    submitted = docker_client.containers.run(
        next_image.id,
        ["agent-exec", "submit", "--tenant", "acme", "--agent", "desk", "--query", SUM],
        environment=worker_environment,
        network=default_pytest_celery_network.name,
        remove=True,
        **CONFINED,
    )
    execution_id = submitted.decode().strip()
    for left in ("hint left to a newer worker", "step left to a newer worker"):  # the newer's hint; then one of its own
        wait_until(
            lambda left=left: any(execution_id in line and left in line for line in older.logs().splitlines()),  # type: ignore[misc]
            within_s=60,
            what=left,
        )
    own = client.submit(ExecutionRequest(agent_id="desk", query=SUM), tenant_id="acme")
    assert client.wait("acme", own, timeout_s=60).status == "completed", "the older goes on with its own work"
    view = client.get("acme", execution_id)
    assert (view.status, view.last_sequence) == ("pending", 1)

    newer = Worker(request.getfixturevalue("next_container"), celery_setup.app)
    assert client.wait("acme", execution_id, timeout_s=60).status == "completed"
    whole(client, execution_id)
    assert workers_of(celery_setup, execution_id) == {newer.short_id}
