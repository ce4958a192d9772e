"""What HTTP itself offers: conditional requests, keys on every POST, origins, rates, the document and its page."""

from __future__ import annotations

import base64
import gzip
import hashlib
import inspect
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import pytest
from openapi_spec_validator import validate

from agent_exec import errors
from agent_exec.errors import AgentExecError, ExecutionError, TooManyRequests
from api_shim import examples
from api_shim.app import OPERATIONS
from api_shim.openapi import document
from api_shim.operation import Repeatable
from api_shim.problem import KINDS, Problem
from api_shim.rates import MANY_TENANTS, Rates
from tests.api_shim.conftest import Submitted, session
from tests.api_shim.played_worker import until
from tests.api_shim.shim_process import ShimProcess, shim_process

WORK = {"agent_id": "desk", "query": "hello"}
PAGE = "https://console.example"


async def test_an_execution_that_has_not_changed_is_not_sent_again(
    acme: aiohttp.ClientSession, execution: Submitted
) -> None:
    async with acme.get(execution.path) as response:
        tag, whole = response.headers["ETag"], await response.text()
    assert whole
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        async with acme.get(execution.path, headers={"If-None-Match": known}) as response:
            assert (response.status, response.headers["ETag"], await response.read()) == (304, tag, b"")
    for unknown in ('"other"', tag.strip('"'), "nonsense", ""):
        async with acme.get(execution.path, headers={"If-None-Match": unknown}) as response:
            assert (response.status, await response.text()) == (200, whole)
    await execution.finish()
    async with acme.get(execution.path, headers={"If-None-Match": tag}) as response:
        assert response.status == 200
        assert response.headers["ETag"] != tag


async def test_anothers_tag_tells_nothing(
    acme: aiohttp.ClientSession, globex: aiohttp.ClientSession, execution: Submitted
) -> None:
    async with acme.get(execution.path) as response:
        tag = response.headers["ETag"]
    async with globex.get(execution.path, headers={"If-None-Match": tag}) as response:
        assert response.status == 404


@pytest.mark.parametrize(
    "operation", [one for one in OPERATIONS if one.method == "POST"], ids=lambda one: f"{one.method} {one.path}"
)
def test_every_post_takes_an_idempotency_key(operation: Any) -> None:
    assert operation.taken is Repeatable or "Idempotency-Key" in operation.taken.headers()


async def test_a_key_on_what_is_repeatable_by_itself_is_looked_at(
    acme: aiohttp.ClientSession, execution: Submitted
) -> None:
    for key, status in (("k", 202), ("k", 202), ("x" * 256, 422), ("a b", 422)):
        async with acme.post(f"{execution.path}/cancel", headers={"Idempotency-Key": key}) as response:
            assert response.status == status


async def test_every_line_of_a_request_bears_its_id(acme: aiohttp.ClientSession, shim: ShimProcess) -> None:
    async with acme.post("/v1/executions", json=WORK, headers={"X-Request-Id": "mine-7"}) as response:
        assert response.headers["X-Request-Id"] == "mine-7"
    await until(lambda: '"mine-7"' in shim.output)
    for sly in ('a"b', "a\tb", "x" * 65, "é"):
        async with acme.get("/v1/executions", headers={"X-Request-Id": sly}) as response:
            assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"])


async def test_pages_of_a_listed_origin_alone_may_use_it(acme: aiohttp.ClientSession) -> None:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, idempotency-key",
    }
    async with acme.options("/v1/executions", headers={**asked, "Origin": PAGE}) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == PAGE
        assert "idempotency-key" in response.headers["Access-Control-Allow-Headers"]
        assert "Access-Control-Allow-Credentials" not in response.headers
        assert response.headers["X-Request-Id"]
    async with acme.options("/v1/executions", headers={**asked, "Origin": "https://evil.example"}) as response:
        assert response.status == 400
        assert "Access-Control-Allow-Origin" not in response.headers
    async with acme.get("/v1/executions", headers={"Origin": PAGE}) as response:
        assert response.headers["Access-Control-Allow-Origin"] == PAGE
        assert "ETag" in response.headers["Access-Control-Expose-Headers"]
        assert response.headers["Vary"] == "Origin"
    for origin in ("https://evil.example", f"{PAGE}.evil", "null"):
        async with acme.get("/v1/executions", headers={"Origin": origin}) as response:
            assert "Access-Control-Allow-Origin" not in response.headers


@pytest.fixture
async def slow_lane(
    tmp_path: Path, redis_url: str, keys_file: Path, api_key: dict[str, str]
) -> AsyncIterator[ShimProcess]:
    """A shim of its own that takes three requests a minute of a tenant, and no page."""
    with shim_process(tmp_path, redis_url=redis_url, api_keys_file=keys_file, api_requests_per_minute=3) as own:
        yield own


async def test_a_tenant_may_send_so_many_requests_and_another_does_not_feel_it(
    slow_lane: ShimProcess, api_key: dict[str, str]
) -> None:
    """S38."""
    async with session(slow_lane, api_key["acme"]) as acme, session(slow_lane, api_key["globex"]) as globex:
        statuses = []
        for _ in range(4):
            async with acme.get("/v1/executions") as response:
                statuses.append(response.status)
        assert statuses == [200] * 3 + [429]
        async with acme.post("/v1/executions", json=WORK) as response:
            problem = Problem.model_validate_json(await response.text())
            assert (response.status, problem.code, problem.retryable) == (429, "too_many_requests", True)
            assert 1 <= int(response.headers["Retry-After"]) <= 20
        async with acme.post("/v1/chat/completions", json={}) as response:
            assert (response.status, (await response.json())["error"]["type"]) == (429, "rate_limit_error")
        async with globex.get("/v1/executions") as response:
            assert response.status == 200
        async with acme.get("/health/live") as response:
            assert response.status == 200
        # No origin is listed here, so no page may use it.
        async with acme.options("/v1/executions", headers={"Origin": PAGE}) as response:
            assert response.status == 405
        async with globex.get("/v1/executions", headers={"Origin": PAGE}) as response:
            assert "Access-Control-Allow-Origin" not in response.headers


def test_rates_hold_over_any_minute_and_a_burst_comes_back() -> None:
    rates = Rates(60)

    def taken(count: int, *, at_s: float) -> int:
        for done in range(count):
            try:
                rates.take("acme", now_s=at_s)
            except TooManyRequests:
                return done
        return count

    assert taken(100, at_s=0) == 60
    with pytest.raises(TooManyRequests) as refused:
        rates.take("acme", now_s=0.25)
    assert refused.value.retry_after_s == pytest.approx(0.75)
    assert taken(5, at_s=1) == 1
    assert taken(5, at_s=11) == 5
    assert taken(100, at_s=11) == 5
    assert taken(100, at_s=1_000) == 60


def test_tenants_who_have_gone_quiet_are_forgotten() -> None:
    rates = Rates(60)
    for number in range(MANY_TENANTS):
        rates.take(f"t{number}", now_s=0)
    rates.take("late", now_s=100)
    assert len(rates._due_s) == 1


async def test_the_page_shows_the_document_and_may_do_nothing_else(shim: ShimProcess) -> None:
    async with aiohttp.ClientSession(shim.url, auto_decompress=False) as anybody:
        async with anybody.get("/docs", headers={"Accept-Encoding": "identity"}) as response:
            page = await response.text()
            assert response.headers["Content-Type"] == "text/html; charset=utf-8"
            may = response.headers["Content-Security-Policy"]
        async with anybody.get("/docs", headers={"Accept-Encoding": "gzip"}) as response:
            assert response.headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(await response.read()).decode() == page
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    may_run = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert f"script-src {may_run};" in may
    assert may.startswith("default-src 'none';")
    assert "connect-src 'self'" in may
    assert "unsafe-eval" not in may
    assert 'url: "openapi.json"' in scripts[-1]
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', page), (
        "nothing is fetched from elsewhere"
    )


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return document(OPERATIONS)


def test_the_document_is_valid_and_describes_every_operation(described: dict[str, Any]) -> None:
    validate(described)
    told = [(method.upper(), path) for path, methods in described["paths"].items() for method in methods]
    assert sorted(told) == sorted((one.method, one.path) for one in OPERATIONS if one.method != "WEBSOCKET")
    names = [one["operationId"] for methods in described["paths"].values() for one in methods.values()]
    assert len(names) == len(set(names))


def test_every_answer_and_every_error_has_an_example_that_fits(described: dict[str, Any]) -> None:
    def fits(content: dict[str, Any]) -> None:
        for media_type, one in content.items():
            shown = [one["example"]] if "example" in one else [each["value"] for each in one["examples"].values()]
            assert shown
            schema = {**one.get("schema", {}), "components": described["components"]}
            assert [*(error.message for value in shown for error in jsonschema_rs.iter_errors(schema, value))] == [], (
                media_type
            )

    for methods in described["paths"].values():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                assert response["description"]
                assert "X-Request-Id" in response["headers"]
                assert ("content" in response) == (status not in ("204", "304")), (operation["operationId"], status)
                fits(response.get("content", {}))
            if "requestBody" in operation:
                fits(operation["requestBody"]["content"])
            if method == "post":
                assert "Idempotency-Key" in {one["name"] for one in operation["parameters"]}
            assert operation["summary"]
            assert all(one.get("description") for one in operation["parameters"] if one["in"] == "header")


def test_every_example_is_shown_somewhere(described: dict[str, Any]) -> None:
    text = json.dumps(described)
    for model, example in examples.OF_MODEL.items():
        shown = (example.model_dump(mode="json"), example.model_dump(mode="json", exclude_unset=True))
        assert any(json.dumps(one) in text for one in shown), model


def test_every_error_that_a_caller_may_meet_has_its_words() -> None:
    """What ends an execution is told by its response; what the settings are wrong with, nobody is told over HTTP (S29)."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, AgentExecError)]
    met = {kind for kind in kinds if not kind.__subclasses__() and not issubclass(kind, ExecutionError)}
    assert met - KINDS.keys() == {errors.SettingsInvalid, errors.ExecutionFailed}
