"""What the document promises, tried by a machine that reads nothing else: schemathesis, against a running shim."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, Response
from schemathesis.checks import CheckFunction
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from agent_exec import api_keys
from agent_exec.embedded import EmbeddedServer
from agent_exec.errors import AgentExecError
from agent_exec.ledger import ledger
from agent_exec.store import Store
from api_shim.app import OPERATIONS
from api_shim.batch_body import LINES
from api_shim.openapi import document
from api_shim.operation import Operation
from tests.api_shim.played_worker import PlayedWorker
from tests.api_shim.shim_process import shim_process

TENANT = "acme"
schema = schemathesis.openapi.from_dict(document(OPERATIONS), config=SchemathesisConfig.from_dict({"seed": 1}))
#: Beside all odd values that the document suggests, each operation gets so many requests drawn at random, the same in every
#: run.
BOUNDED = settings(
    max_examples=25, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)

#: Refusals of what has the right form: no schema says what was sent before, or what a cursor means. And 4.0 is an integer to
#: JSON Schema, but not to a contract that coerces nothing.
MEANT = (
    "Input should be a valid integer",
    "This cursor is not one",
    "idempotency key came before",
    "Last-Event-ID",
    "is later than",
    "the last message has to be",
    "answers no tool call before it",
    "may hold tool_calls",
    "names another agent",
    "nested deeper than",
    "run_at",
    "cron line",
    "time zone",
    "The batch breaks the contract: line",
    "The batch has no requests",
    "callback",
)


@dataclass
class Tried:
    """A shim, and who asks."""

    url: str
    session: requests.Session
    keys: dict[str, str]

    def options(self, case: Case) -> dict[str, Any]:
        """Return how a case is sent."""
        role = "service" if case.path.startswith("/internal") else "operator"
        headers = {"Authorization": f"Bearer {self.keys[role]}"}
        return {"base_url": self.url, "session": self.session, "headers": headers, "timeout": 10}


@schemathesis.serializer(*LINES)
def _lines(_: object, value: object) -> bytes:
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="replace")


def _excluded(case: Case, response: Response) -> list[CheckFunction]:
    # No schema says what each line has to be.
    is_meant = case.media_type in LINES or any(words in response.text for words in MEANT)
    return [positive_data_acceptance] if response.status_code in (400, 422) and is_meant else []


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    folder = tmp_path_factory.mktemp("tried")
    file = folder / "keys.json"
    keys = {role: api_keys.create(file, tenant_id=TENANT, role=role) for role in ("operator", "service")}
    options = {
        "api_keys_file": file,
        "api_max_wait_s": 0.2,
        "api_requests_per_minute": 1_000_000,
        "api_failed_attempts": 1_000_000,
        "api_service_tenant": TENANT,
        "callback_secret": "whsec_" + "c2VjcmV0" * 4,
    }
    with EmbeddedServer(folder / "redis") as server, _at_work(server.url):
        with shim_process(folder, redis_url=server.url, **options) as shim, requests.Session() as session:
            session.trust_env = False
            yield Tried(shim.url, session, keys)
        assert "request broke" not in shim.output


class _at_work(threading.Thread):
    """A worker that answers every execution at once, while the context lasts."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._is_over = threading.Event()

    def run(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        store = Store(self._url)
        while not self._is_over.is_set():
            for one in await store.run(ledger.list_executions(TENANT, limit=20)):
                with suppress(AgentExecError, AssertionError):  # it is over already, or was cancelled
                    await PlayedWorker(store, TENANT, one.execution_id).finish("42")
            await asyncio.sleep(0.02)
        await store.aclose()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()


def _tested(operation: Operation) -> Callable[..., None]:
    """Return the test of one operation."""
    alone = schema.include(path=operation.path, method=operation.method)

    @alone.parametrize()
    @BOUNDED
    def test(case: Case, tried: Tried) -> None:
        response = case.call(**tried.options(case))
        case.validate_response(response, excluded_checks=_excluded(case, response))

    made: Callable[..., None] = test
    return made


# By a name each: all that schemathesis makes of one function have one id, and of those pytest-xdist runs one.
for _operation in OPERATIONS:
    if _operation.method != "WEBSOCKET":
        globals()[f"test_{_operation.function.__name__}_does_what_its_document_says"] = _tested(_operation)


def test_what_an_answer_links_to_is_there(tried: Tried) -> None:
    met: set[tuple[str, int]] = set()

    class Following(schema.include(path_regex="^/v1/executions").as_state_machine()):  # type: ignore[misc]  # a class that is made
        def get_call_kwargs(self, case: Case) -> dict[str, Any]:
            return tried.options(case)

        def validate_response(self, response: Response, case: Case, **_: Any) -> None:
            met.add((case.operation.label, response.status_code))
            case.validate_response(response, excluded_checks=_excluded(case, response))

    Following.run(settings=settings(BOUNDED, stateful_step_count=5))
    path = "/v1/executions/{execution_id}"
    assert {(f"GET {path}", 200), (f"POST {path}/cancel", 202)} <= met
