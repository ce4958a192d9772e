"""What callers and configurations get wrong, and the words they get back: what is wrong and what to do now."""

from __future__ import annotations

import re
from typing import Any

import pytest

from agent_exec import ExecutionRequest, FinalResponse
from tests.processes import free_port
from tests.service.conftest import Service


def run(service: Service, tenant_id: str, **request: Any) -> FinalResponse:
    with service.client() as client:
        work = ExecutionRequest.model_validate({"agent_id": "desk", "query": "hello", **request})
        return client.wait(tenant_id, client.submit(work, tenant_id=tenant_id), timeout_s=30)


@pytest.mark.parametrize(
    ("tenant_id", "request_", "code", "words"),
    [
        ("acme", {"agent_id": "nobody"}, "agent_not_found", "Agent 'nobody'.*check the id"),
        ("nowhere", {}, "tenant_not_found", "Tenant 'nowhere'.*create it"),
        ("acme", {"agent_config": {"model": "no-such-model", "fallbacks": []}}, "model_not_found", "model"),
        (
            "acme",
            {"agent_config": {"provider": "mistral", "fallbacks": []}},
            "provider_not_configured",
            "AGENT_EXEC_PROVIDERS",
        ),
        ("acme", {"agent_config": {"system_prompt": "{{ missing }}"}}, "prompt_invalid", "'missing' is undefined"),
        ("acme", {"agent_config": {"tools": ["teleport"]}}, "prompt_invalid", "does not offer teleport"),
        ("acme", {"deadline_s": 0.000_001}, "timed_out", "deadline"),
    ],
)
def test_a_wrong_configuration_is_told_in_the_executions_error(
    service: Service, tenant_id: str, request_: dict[str, Any], code: str, words: str
) -> None:
    final = run(service, tenant_id, **request_)
    assert final.error is not None, final
    assert final.error.code == code
    assert re.search(words, final.error.message), final.error.message


def test_a_missing_key_names_the_variable(service: Service) -> None:
    keyless = service.apart(7, OPENAI_API_KEY="")
    try:
        keyless.worker("keyless")
        final = run(keyless, "acme", agent_config={"fallbacks": []})
    finally:
        keyless.stop()
    assert final.error is not None
    assert (final.error.code, "OPENAI_API_KEY" in final.error.message) == ("provider_not_configured", True)


def test_a_neighbour_that_is_away_is_told_and_nothing_hangs(service: Service) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    alone = service.apart(8, AGENT_EXEC_AGENT_MANAGEMENT_URL=nobody, AGENT_EXEC_MAX_RETRIES="1")
    try:
        alone.worker("alone")
        final = run(alone, "acme")
        with alone.client() as client:
            frames = list(client.events("acme", final.execution_id))
    finally:
        alone.stop()
    assert final.error is not None
    assert (final.error.code, final.error.retryable) == ("neighbour_unavailable", True)
    assert "Agent Management cannot be reached" in final.error.message
    assert len([frame for frame in frames if frame.data.get("stage") == "waiting"]) == 1, "tried once more"
