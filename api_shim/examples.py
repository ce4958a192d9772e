"""What requests and answers look like: one example of each model, for the document.

Owns the examples; they are models, so none can be wrong. Does not know which operation gives which.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from pydantic import BaseModel

from agent_exec.batches.item import stored
from agent_exec.contract.approval import Approval, ApprovalAnswer
from agent_exec.contract.batch import BatchList, BatchRequest, BatchResult, BatchView
from agent_exec.contract.callback import CallbackList, CallbackView
from agent_exec.contract.completion import Usage
from agent_exec.contract.event import CompletedData, EventName, Frame, TokenData
from agent_exec.contract.execution import ExecutionRequest, ExecutionView, FinalResponse, Output
from agent_exec.contract.message import Context
from agent_exec.contract.schedule import ScheduleList, ScheduleRequest, ScheduleView
from agent_exec.contract.spending import DaySpending, Spending, TenantUsage, Used
from agent_exec.contract.tool import ToolCallRecord
from agent_exec.events import LoggedEvent, event_id
from api_shim.batch_body import LINES
from api_shim.batches import BatchAccepted
from api_shim.chat_wire import ChatRequest, InstructionMessage, StreamedAnswer, UserMessage, completion_of
from api_shim.executions import Accepted, CancelAnswer, ExecutionList, links
from api_shim.health import Health
from api_shim.internal import Invalidated, Invalidation

EXECUTION_ID = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"
_IDS: dict[str, Any] = {"execution_id": EXECUTION_ID, "tenant_id": "acme", "agent_id": "weather-desk"}
_BEGAN = datetime(2026, 3, 2, 9, 30, 0, tzinfo=UTC)
_ENDED = datetime(2026, 3, 2, 9, 30, 4, tzinfo=UTC)

_RESPONSE = FinalResponse(
    **_IDS,
    status="completed",
    output=Output(text="It is 7 °C in Oslo, with light rain."),
    usage=Usage(prompt_tokens=412, completion_tokens=31, total_tokens=443, cost_usd=0.000_124),
    tool_calls=[
        ToolCallRecord(
            id="call_1",
            name="get_weather",
            arguments={"city": "Oslo"},
            result={"celsius": 7, "sky": "rain"},
            duration_s=0.2,
        )
    ],
    turns=2,
    provider="openai",
    model="gpt-4o-mini",
    created_at=_BEGAN,
    started_at=_BEGAN,
    finished_at=_ENDED,
)
_VIEW = ExecutionView(
    **_IDS, status="completed", priority=5, created_at=_BEGAN, started_at=_BEGAN, finished_at=_ENDED, last_sequence=9
)
_FRAME = Frame(
    event=EventName.TOKEN,
    task_id=EXECUTION_ID,
    tenant_id="acme",
    execution_id=EXECUTION_ID,
    event_id=event_id(EXECUTION_ID, 7),
    sequence=7,
    timestamp=_ENDED,
    data=TokenData(token="It is 7 °C").model_dump(),  # noqa: S106 a piece of text
)
_CALLBACK = CallbackView(
    callback_id=EXECUTION_ID,
    tenant_id="acme",
    url="https://hooks.example.com/agents",
    state="dead",
    attempts=8,
    created_at=_ENDED,
    last_attempt_at=_ENDED,
    last_status=500,
    last_fault="answered",
)
_REQUEST = ExecutionRequest(
    agent_id="weather-desk",
    query="What is the weather in Oslo?",
    context=Context.model_validate({"variables": {"persona": "a weather clerk"}}),
)
_REQUESTS = [_REQUEST, ExecutionRequest(agent_id="weather-desk", query="What is the weather in Bergen?")]
_BATCH_ID = "0b5f0d3a-9a55-4a53-8f5e-3f3c1f7a2c11"
_BATCH = BatchView(
    batch_id=_BATCH_ID,
    tenant_id="acme",
    status="processing",
    count=10_000,
    submitted=412,
    completed=309,
    failed=3,
    cancelled=0,
    created_at=_BEGAN,
)
_SCHEDULE_ID = "c3f1de88-2a39-4e31-9b62-5d2f1f0a7c45"
_SCHEDULE = ScheduleView(
    schedule_id=_SCHEDULE_ID,
    tenant_id="acme",
    cron="0 7 * * 1-5",
    timezone="Europe/Berlin",
    request=_REQUEST,
    overlap=False,
    paused=False,
    next_at=datetime(2026, 3, 3, 6, 0, 0, tzinfo=UTC),
    last_at=datetime(2026, 3, 2, 6, 0, 0, tzinfo=UTC),
    last_execution_id=EXECUTION_ID,
    created_at=datetime(2026, 2, 27, 12, 0, 0, tzinfo=UTC),
)
_SPENT = Spending(used=Used(calls=2, prompt_tokens=412, completion_tokens=31, cost_usd=0.000_124))

#: Of each model that is a body or an answer.
OF_MODEL: dict[type[BaseModel], BaseModel] = {
    type(example): example
    for example in (
        _REQUEST,
        Accepted(execution_id=EXECUTION_ID, status="pending", replayed=False, links=links(EXECUTION_ID)),
        _RESPONSE,
        _VIEW.model_copy(update={"response": _RESPONSE}),
        ExecutionList(executions=[_VIEW], next_cursor="YWNtZToxNzcyNDQzODAwMDAwOjE"),
        CancelAnswer(execution_id=EXECUTION_ID, status="cancel_requested"),
        Approval(approved=True, reason="The amount is right."),
        ApprovalAnswer(execution_id=EXECUTION_ID, tool_call_id="call_1", approved=True, reason="The amount is right."),
        _CALLBACK,
        CallbackList(callbacks=[_CALLBACK]),
        BatchRequest(requests=_REQUESTS, callback_url="https://hooks.example.com/agents"),
        BatchAccepted(
            batch_id=_BATCH_ID,
            status="pending",
            count=2,
            replayed=False,
            links={
                "self": f"/v1/batches/{_BATCH_ID}",
                "results": f"/v1/batches/{_BATCH_ID}/results",
                "cancel": f"/v1/batches/{_BATCH_ID}/cancel",
            },
        ),
        _BATCH,
        BatchList(batches=[_BATCH]),
        ScheduleRequest(cron="0 7 * * 1-5", timezone="Europe/Berlin", request=_REQUEST, overlap=False),
        _SCHEDULE,
        ScheduleList(schedules=[_SCHEDULE]),
        Invalidation(tenant_id="acme", agent_id="weather-desk"),
        Invalidated(tenant_id="acme", agent_id="weather-desk"),
        TenantUsage(
            tenant_id="acme",
            first_day=date(2026, 3, 1),
            last_day=date(2026, 3, 2),
            days=[DaySpending(day=date(2026, 3, 2), used=_SPENT.used, limit_usd=20.0)],
            total=_SPENT,
        ),
        ChatRequest(
            model="weather-desk",
            messages=[
                InstructionMessage(role="system", content="Be brief."),
                UserMessage(role="user", content="What is the weather in Oslo?"),
            ],
        ),
        completion_of(_RESPONSE),
        Health(status="ready"),
    )
}
#: Of each answer that is no JSON, by its operation's path and its media type.
OF_TEXT = {
    (
        "/v1/executions/{execution_id}/events",
        "text/event-stream",
    ): f"id: 7\nevent: agent_response_token\ndata: {_FRAME.model_dump_json()}\n\n",
    ("/v1/chat/completions", "text/event-stream"): StreamedAnswer(
        EXECUTION_ID, "weather-desk", whole=True, with_usage=False
    ).tell([LoggedEvent(9, EventName.COMPLETED, 0, CompletedData(response=_RESPONSE).model_dump_json())]),
    **dict.fromkeys(
        [("/v1/batches", media_type) for media_type in LINES], "".join(f"{stored(one)}\n" for one in _REQUESTS)
    ),
    (
        "/v1/batches/{batch_id}/results",
        "application/jsonl",
    ): f"{BatchResult(index=0, execution_id=EXECUTION_ID, status='completed', response=_RESPONSE).model_dump_json()}\n",
    (
        "/metrics",
        "text/plain",
    ): 'agent_exec_api_requests_total{method="POST",route="/v1/executions",status="202"} 17.0\n',
}
