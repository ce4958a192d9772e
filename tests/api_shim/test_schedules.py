"""Schedules, and executions that run later, over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

DAILY = {
    "cron": "0 7 * * *",
    "timezone": "Europe/Berlin",
    "request": {"agent_id": "desk", "query": "What is new?"},
}


async def ask(caller: aiohttp.ClientSession, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with caller.request(method, path, **options) as response:
        return response.status, await response.json() if response.content_length else None


async def test_a_schedule_is_made_shown_paused_resumed_and_deleted(
    acme: aiohttp.ClientSession, globex: aiohttp.ClientSession
) -> None:
    key = {"Idempotency-Key": "k"}
    async with acme.post("/v1/schedules", json=DAILY, headers=key) as response:
        made = await response.json()
        path = response.headers["Location"]
    assert (response.status, path) == (201, f"/v1/schedules/{made['schedule_id']}")
    assert made["next_at"] > datetime.now(UTC).isoformat()
    assert await ask(acme, "POST", "/v1/schedules", json=DAILY, headers=key) == (201, made)
    status, problem = await ask(acme, "POST", "/v1/schedules", json={**DAILY, "overlap": False}, headers=key)
    assert (status, problem["code"]) == (422, "idempotency_mismatch")
    assert await ask(acme, "GET", path) == (200, made)
    assert (await ask(acme, "GET", "/v1/schedules"))[1] == {"schedules": [made], "next_cursor": None}
    assert (await ask(globex, "GET", "/v1/schedules"))[1]["schedules"] == []
    paused = {**made, "paused": True, "next_at": None}
    assert await ask(acme, "POST", f"{path}/pause") == (200, paused)
    assert await ask(acme, "POST", f"{path}/resume") == (200, made)
    assert await ask(acme, "DELETE", path) == (204, None)
    assert (await ask(acme, "DELETE", path))[0] == 404


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"cron": "61 * * * *"}, "cron", "invalid_message"),
        ({"timezone": "../../etc/passwd"}, "timezone", "invalid_message"),
        ({"request": {**DAILY["request"], "run_at": "2026-01-01T00:00:00Z"}}, "body", "invalid_message"),  # type: ignore[dict-item]
        ({"request": {**DAILY["request"], "callback_url": "http://10.0.0.1"}}, None, "invalid_callback_url"),  # type: ignore[dict-item]
    ],
)
async def test_a_schedule_that_is_none_is_refused(
    acme: aiohttp.ClientSession, change: dict[str, Any], field: str | None, code: str
) -> None:
    status, problem = await ask(acme, "POST", "/v1/schedules", json={**DAILY, **change})
    assert (status, problem["code"]) == (422, code)
    assert [one["field"] for one in problem["errors"]] == ([] if field is None else [field])


async def test_an_execution_may_run_later_but_not_so_late_that_it_is_forgotten(acme: aiohttp.ClientSession) -> None:
    later = (datetime.now(UTC) + timedelta(hours=3)).replace(microsecond=0)
    request = {"agent_id": "desk", "query": "?", "run_at": later.isoformat()}
    status, accepted = await ask(acme, "POST", "/v1/executions", json=request)
    assert (status, accepted["status"]) == (202, "pending")
    _, view = await ask(acme, "GET", accepted["links"]["self"])
    assert (view["status"], datetime.fromisoformat(view["runs_at"])) == ("pending", later)
    request["run_at"] = (later + timedelta(days=30)).isoformat()
    status, problem = await ask(acme, "POST", "/v1/executions", json=request)
    assert (status, problem["code"]) == (422, "invalid_message")
    assert "run_at" in problem["detail"]
