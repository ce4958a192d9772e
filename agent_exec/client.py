"""What an orchestrator's engineer holds: submit work, cancel it, wait for it, follow its events. Synchronous.

Owns the client's verbs. Does not know Celery: a hint is sent as the ledger's workers send theirs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from agent_exec import events, keys, submission
from agent_exec.approval import resolve
from agent_exec.contract.approval import Approval
from agent_exec.contract.event import Frame
from agent_exec.contract.execution import ExecutionRequest, ExecutionView, FinalResponse
from agent_exec.contract.message import Message
from agent_exec.embedded import redis_url
from agent_exec.errors import Conflict, QueueFull, TimedOut
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Acceptance, AlreadyOver, CancelRequested, Prioritised
from agent_exec.script import Call
from agent_exec.settings import Settings, read_settings
from agent_exec.store import BlockingStore, redis_errors

#: How long one blocking read waits before the caller's own deadline is looked at.
BLOCK_S = 1.0


class AgentExecClient:
    """The service, for synchronous callers that reach its Redis. A context manager; also closed by `close()`."""

    def __init__(self, url: str | None = None, *, settings: Settings | None = None) -> None:
        """Take the Redis `url`; without it the one of the settings, or of the embedded server."""
        self._settings = settings or read_settings()
        self._store = BlockingStore(url or redis_url(self._settings))

    def submit(
        self,
        work: Message | ExecutionRequest,
        *,
        tenant_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Store one execution and return its id; it is stored when this returns.

        A standard message names its tenant; a request needs `tenant_id`.

        Raises:
            Conflict: the id or the key came before with another request.
            QueueFull: too many of the tenant's executions wait already.
            StorageUnavailable: Redis does not answer. The same id or key may safely be submitted again.
        """
        message = _message(work, tenant_id)
        accepted = self._store.run(self._storing(message, idempotency_key=idempotency_key))
        if not accepted.replayed:
            self._store.run(submission.first_hint(message, accepted).push())
        return accepted.execution_id

    def submit_many(
        self, work: Sequence[Message | ExecutionRequest], *, tenant_id: str | None = None
    ) -> list[str | Conflict | QueueFull]:
        """Store many in a few round trips; return an id each, or the error that refused it, in their order."""
        messages = [_message(one, tenant_id) for one in work]
        answers = self._store.run_each([self._storing(message) for message in messages])
        self._store.run_many(
            [
                submission.first_hint(message, answer).push()
                for message, answer in zip(messages, answers, strict=True)
                if not isinstance(answer, Exception) and not answer.replayed
            ]
        )
        outcome: list[str | Conflict | QueueFull] = []
        for answer in answers:
            if isinstance(answer, Conflict | QueueFull):
                outcome.append(answer)
            elif isinstance(answer, Exception):
                raise answer
            else:
                outcome.append(answer.execution_id)
        return outcome

    def cancel(self, tenant_id: str, execution_id: str) -> CancelRequested | AlreadyOver:
        """Ask for the end of an execution; durable when this returns.

        `CancelRequested`: it will end as failed, with the code `cancelled`; a step that runs is stopped within a heartbeat.
        `AlreadyOver`: it had ended before, so.

        Raises:
            NotFound: this tenant has no such execution.
            StorageUnavailable: Redis does not answer. Asking again is safe.
        """
        return self._store.run(ledger.cancel(tenant_id, execution_id))

    def resolve_approval(
        self, tenant_id: str, execution_id: str, tool_call_id: str, *, approved: bool, reason: str | None = None
    ) -> Approval:
        """Approve a tool call that waits for it, or reject it; durable when this returns. Return the decision that stands.

        Raises:
            NotFound: this tenant has no such execution.
            NotAwaitingApproval: the call does not wait for approval (any more).
            AlreadyResolved: it was resolved before, the other way.
        """
        approval = Approval(approved=approved, reason=reason)
        resolved = self._store.run(resolve(tenant_id, execution_id, tool_call_id, approval))
        if resolved.hint is not None:
            self._store.run(resolved.hint.push())
        return resolved.approval

    def prioritise(self, tenant_id: str, execution_id: str, priority: int) -> Prioritised | AlreadyOver:
        """Change how urgent an execution is, 0–9 and 9 the most; what waits already moves in its queue.

        Raises:
            NotFound: this tenant has no such execution.
        """
        answer = self._store.run(ledger.prioritise(tenant_id, execution_id, wish=priority))
        if isinstance(answer, Prioritised):
            self._store.run_many([hint.reprioritise() for hint in answer.queued])
        return answer

    def get(self, tenant_id: str, execution_id: str) -> ExecutionView:
        """Return the state of an execution, and its final response once there is one.

        Raises:
            NotFound: this tenant has no such execution.
        """
        return self._store.run(ledger.look(tenant_id, execution_id)).view(execution_id)

    def wait(self, tenant_id: str, execution_id: str, *, timeout_s: float | None = None) -> FinalResponse:
        """Block until the final response is there.

        Raises:
            NotFound: this tenant has no such execution.
            TimedOut: it has not ended within `timeout_s`; it goes on.
        """
        give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            response = self.get(tenant_id, execution_id).response
            if response is not None:
                return response
            if give_up_at is not None and time.monotonic() >= give_up_at:
                raise TimedOut(f"Execution '{execution_id}': has not ended within {timeout_s} s; it goes on.")
            self._block(keys.responses(tenant_id, execution_id), after=0, give_up_at=give_up_at)

    def events(self, tenant_id: str, execution_id: str, *, after: int = 0) -> Iterator[Frame]:
        """Yield the frames after sequence `after` as they come; ends after the terminal one.

        Raises:
            NotFound: this tenant has no such execution.
        """
        while True:
            page = self._store.run(events.read(tenant_id, execution_id, after=after))
            for event in page.events:
                yield Frame.model_validate_json(page.frame(event))
                if event.is_terminal:
                    return
                after = event.sequence
            if not page.events:
                if page.is_over:  # resumed from the end
                    return
                self._block(keys.streaming(tenant_id, execution_id), after=after, give_up_at=None)

    def _storing(self, message: Message, *, idempotency_key: str | None = None) -> Call[Acceptance]:
        return submission.store(
            message,
            open_retention_s=self._settings.open_retention_s,
            max_queued=self._settings.max_queued,
            idempotency_key=idempotency_key,
        )

    def _block(self, stream: str, *, after: int, give_up_at: float | None) -> None:
        """Wait for an entry of `stream` after `after`, for a while."""
        left_s = BLOCK_S if give_up_at is None else max(0.001, min(BLOCK_S, give_up_at - time.monotonic()))
        with redis_errors():
            self._store.redis.xread({stream: f"{after}-0"}, count=1, block=max(1, int(left_s * 1000)))

    def close(self) -> None:
        """Close the connections."""
        self._store.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()


def _message(work: Message | ExecutionRequest | Any, tenant_id: str | None) -> Message:
    if isinstance(work, Message):
        return work
    if tenant_id is None:
        raise TypeError("a request names no tenant: pass tenant_id=")
    return submission.message_of(work, tenant_id=tenant_id)
