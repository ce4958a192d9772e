"""A worker, played: what the steps of an execution write to the ledger, in the order that a test says."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

from agent_exec.contract.approval import word_for
from agent_exec.contract.completion import Usage
from agent_exec.contract.event import CompletedData, EventName, FailedData, TokenData
from agent_exec.contract.execution import ErrorDetail, FinalResponse, Output
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Claimed, Event, Finished, Hold, StepRef
from agent_exec.store import Store


class PlayedWorker:
    """The worker of one execution."""

    def __init__(self, store: Store, tenant_id: str, execution_id: str) -> None:
        self._store = store
        self.execution_id = execution_id
        self._ref = StepRef(tenant_id, execution_id, "prompt")
        self._hold: Hold | None = None

    async def tell(self, *tokens: str) -> None:
        """Stream tokens, one event each."""
        hold = await self._claimed()
        told = [Event(EventName.TOKEN, TokenData(token=token).model_dump_json(exclude={"attempt"})) for token in tokens]
        assert await self._store.run(ledger.tell(hold, told)) == "told"

    async def note(self, name: EventName, **said: Any) -> None:
        """Write one event."""
        event = Event(name, json.dumps(said))
        assert await self._store.run(ledger.tell(await self._claimed(), [event])) == "told"

    async def think(self, turn: int, **detail: Any) -> None:
        """Ask the model for a turn."""
        step = f"completion.{turn}"
        await self.note(EventName.PROGRESS, stage="thinking", step=step, turn=turn, detail=detail)

    async def ask_for_approval(self, tool_call_id: str) -> None:
        """Have a tool call wait for approval."""
        awaits = word_for(tool_call_id)
        parked = ledger.wait(await self._claimed(), due_in_s=60, events=[], counted=False, awaits=awaits)
        assert await self._store.run(parked) == "waiting"
        self._hold = None

    async def finish(self, text: str = "42", **fields: Any) -> FinalResponse:
        """End the execution."""
        response = self._response(text, **fields)
        assert await self._end(response) == Finished(None)
        return response

    async def fail(self, code: str) -> FinalResponse:
        """End the execution with an error."""
        error = ErrorDetail(code=code, message=f"It is {code}.")
        response = self._response("", status="failed", error=error)
        assert await self._end(response) == Finished(None)
        return response

    async def try_to_finish(self) -> Finished | str:
        """End the execution, unless its end was asked for; return what the ledger said."""
        return await self._end(self._response("42"))

    def _response(self, text: str, **fields: Any) -> FinalResponse:
        now = datetime.now(UTC)
        return FinalResponse(
            **{
                "execution_id": self._ref.execution_id,
                "tenant_id": self._ref.tenant_id,
                "agent_id": "desk",
                "status": "completed",
                "output": Output(text=text),
                "usage": Usage(),
                "created_at": now,
                "finished_at": now,
                **fields,
            }
        )

    async def _end(self, response: FinalResponse) -> Finished | str:
        if response.error is None:
            terminal = Event(EventName.COMPLETED, CompletedData(response=response).model_dump_json())
        else:
            terminal = Event(EventName.FAILED, FailedData(error=response.error, response=response).model_dump_json())
        end = ledger.finish(
            await self._claimed(),
            result="{}",
            status=response.status,
            response=response.model_dump_json(),
            celery_result="{}",
            events=[terminal],
            retention_s=3_600,
        )
        return await self._store.run(end)

    async def _claimed(self) -> Hold:
        if self._hold is None:
            claimed = await self._store.run(ledger.claim(self._ref, lease_s=60, worker="played"))
            assert isinstance(claimed, Claimed), claimed
            self._hold = claimed.hold
        return self._hold


async def until(condition: Any, *, within_s: float = 10) -> None:
    """Wait until `condition()`, sync or async, holds."""
    async with asyncio.timeout(within_s):
        while True:
            outcome = condition()
            if await outcome if asyncio.iscoroutine(outcome) else outcome:
                return
            await asyncio.sleep(0.01)
