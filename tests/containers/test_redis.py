"""Redis in a container, its files in a volume: killed and started again under a running service."""

from __future__ import annotations

import pytest
from pytest_celery import CeleryTestSetup

from agent_exec import AgentExecClient, ExecutionRequest
from agent_exec.errors import StorageUnavailable
from tests.containers.nodes import Neighbours
from tests.containers.watching import QUESTION, streaming, whole
from tests.processes import wait_until


def test_a_killed_redis_container_comes_back_with_everything_and_the_service_goes_on(
    celery_setup: CeleryTestSetup, client: AgentExecClient, neighbours: Neighbours
) -> None:
    running = client.submit(ExecutionRequest(agent_id="desk", query=QUESTION), tenant_id="acme")
    wait_until(lambda: streaming(client, running), within_s=30, what="tokens")
    before = list(range(1, client.get("acme", running).last_sequence + 1))

    celery_setup.broker.kill()
    with pytest.raises(StorageUnavailable):
        client.submit(ExecutionRequest(agent_id="desk", query=QUESTION), tenant_id="acme")
    celery_setup.broker.restart()

    with AgentExecClient(celery_setup.broker.container.host_url) as again:
        assert again.wait("acme", running, timeout_s=60).status == "completed"
        assert len(whole(again, running)) > len(before)
        later = again.submit(ExecutionRequest(agent_id="desk", query="What is 2 * 3?"), tenant_id="acme")
        assert again.wait("acme", later, timeout_s=60).status == "completed"
        whole(again, later)
    assert len(neighbours.calls()) <= 4
    assert {worker.container.status for worker in celery_setup.worker_cluster} == {"running"}
