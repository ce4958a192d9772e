"""What events hold beside what their steps say."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from agent_exec.contract.completion import Usage
from agent_exec.contract.event import CompletedData, FailedData, TokenData
from agent_exec.contract.execution import ErrorDetail, FinalResponse, Output


def response(text: str) -> FinalResponse:
    now = datetime.now(UTC)
    return FinalResponse(
        execution_id="6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10",
        tenant_id="acme",
        agent_id="desk",
        status="completed",
        output=Output(text=text),
        usage=Usage(),
        created_at=now,
        finished_at=now,
    )


@pytest.mark.parametrize("text", ["", "42", "晴れ 🌞"])
def test_a_terminal_event_has_the_hash_of_the_text(text: str) -> None:
    expected = hashlib.sha256(text.encode()).hexdigest()
    for event in (
        CompletedData(response=response(text)),
        FailedData(error=ErrorDetail(code="c", message="m"), response=response(text)),
    ):
        assert event.text_sha256 == expected
        assert type(event).model_validate_json(event.model_dump_json()) == event


def test_a_hash_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError):
        CompletedData(response=response(""), text_sha256="nonsense")


def test_tokens_of_a_first_attempt_name_none() -> None:
    assert TokenData.model_validate_json('{"token": "a", "is_final": false}').attempt == 1
    assert TokenData.model_validate_json('{"token": "a", "is_final": false, "attempt": 3}').attempt == 3
