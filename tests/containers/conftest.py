"""The containers of each test: a network, Redis with a volume, the played neighbours, and two workers.

The images are built by `make test-containers`, which also starts the tests; see nodes.py for how each container is started.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestSetup,
    CeleryWorkerCluster,
    RedisTestBackend,
    RedisTestBroker,
)
from pytest_docker_tools import container, fxtr, image, volume

from agent_exec import AgentExecClient
from tests.containers.nodes import (
    CONFINED,
    NEIGHBOURS_PORT,
    PATIENCE_S,
    Neighbours,
    RedisServer,
    Worker,
    WorkerContainer,
)

service_image = image(name="localhost/agent-exec:test")
next_image = image(name="localhost/agent-exec:test-next")
redis_image = image(name="localhost/agent-exec:test-redis")

redis_files = volume()
redis_container = container(
    image="{redis_image.id}",
    network="{default_pytest_celery_network.name}",
    volumes={"{redis_files.name}": {"bind": "/data", "mode": "rw"}},
    ports={"6379/tcp": None},
    wrapper_class=RedisServer,
    timeout=PATIENCE_S,
)
neighbours = container(
    image="{service_image.id}",
    # Slow enough that there is a middle of a stream to break.
    command=["python", "-m", "sandbox", "neighbours", "--host", "0.0.0.0", "--pace", "4"],
    network="{default_pytest_celery_network.name}",
    ports={f"{NEIGHBOURS_PORT}/tcp": None},
    wrapper_class=Neighbours,
    timeout=PATIENCE_S,
    **CONFINED,
)
_WORKER: dict[str, Any] = {
    "environment": fxtr("worker_environment"),
    "network": "{default_pytest_celery_network.name}",
    "wrapper_class": WorkerContainer,
    "timeout": PATIENCE_S,
    **CONFINED,
}
one_container = container(image="{service_image.id}", **_WORKER)
other_container = container(image="{service_image.id}", **_WORKER)
next_container = container(image="{next_image.id}", **_WORKER)


@pytest.fixture
def worker_environment(celery_worker_cluster_config: dict[str, Any], neighbours: Neighbours) -> dict[str, str]:
    """What every worker is configured by."""
    return WorkerContainer.environment(celery_worker_cluster_config, neighbours.url)


@pytest.fixture
def celery_broker_cluster(redis_container: RedisServer) -> CeleryBrokerCluster:
    """The one Redis, as broker."""
    return CeleryBrokerCluster(RedisTestBroker(redis_container))


@pytest.fixture
def celery_backend_cluster(redis_container: RedisServer) -> CeleryBackendCluster:
    """The one Redis, where the orchestrator's Celery looks for results."""
    return CeleryBackendCluster(RedisTestBackend(redis_container))


@pytest.fixture
def celery_worker_cluster(
    one_container: WorkerContainer, other_container: WorkerContainer, celery_setup_app: Celery
) -> CeleryWorkerCluster:
    """Two workers of this release."""
    return CeleryWorkerCluster(Worker(one_container, celery_setup_app), Worker(other_container, celery_setup_app))


@pytest.fixture
def client(celery_setup: CeleryTestSetup) -> Iterator[AgentExecClient]:
    """A client of the running service."""
    with AgentExecClient(celery_setup.broker.container.host_url) as opened:
        yield opened
