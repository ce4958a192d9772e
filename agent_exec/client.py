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
from agent_exec.batches import batch, item
from agent_exec.batches.item import BatchRef
from agent_exec.callbacks.door import Door
from agent_exec.contract.approval import Approval
from agent_exec.contract.batch import MAX_ITEMS, BatchResult, BatchView
from agent_exec.contract.event import Frame
from agent_exec.contract.execution import ExecutionRequest, ExecutionView, FinalResponse
from agent_exec.contract.message import Message
from agent_exec.contract.schedule import ScheduleRequest, ScheduleView
from agent_exec.embedded import redis_url
from agent_exec.errors import Conflict, InvalidMessage, QueueFull, TimedOut
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Acceptance, AlreadyOver, CancelRequested, Prioritised
from agent_exec.schedules import schedule
from agent_exec.schedules.schedule import ScheduleRef
from agent_exec.script import Call
from agent_exec.settings import Settings, read_settings
from agent_exec.store import BlockingStore, redis_errors

#: How long one blocking read waits before the caller's own deadline is looked at.
BLOCK_S = 1.0
SCHEDULES_AT_ONCE = 100


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
            CallbackUrlInvalid: its callback may not go there, by the settings of this process.
            Conflict: the id or the key came before with another request.
            QueueFull: too many of the tenant's executions wait already.
            StorageUnavailable: Redis does not answer. The same id or key may safely be submitted again.
        """
        message = _message(work, tenant_id)
        accepted = self._store.run(self._storing(message, idempotency_key=idempotency_key))
        if accepted.begins:
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
                if not isinstance(answer, Exception) and answer.begins
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

    def submit_batch(
        self,
        requests: Sequence[ExecutionRequest],
        *,
        tenant_id: str,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Store a batch of up to 10,000 requests and return its id; it is stored, and will be run, when this returns.

        Raises:
            InvalidMessage: too many requests, or none; or one is to run later than it would be kept.
            CallbackUrlInvalid: its callback, or one's own, may not go where it is to go.
            Conflict: the key came before with another batch.
            TooManyBatches: too many of the tenant's batches are not over.
            StorageUnavailable: Redis does not answer. The same key may safely be submitted again; without one, what had been
                stored is forgotten, and never run.
        """
        if not 1 <= len(requests) <= MAX_ITEMS:
            raise InvalidMessage(f"A batch has 1 to {MAX_ITEMS} requests; this one has {len(requests)}.")
        if callback_url is not None:
            Door.of_client(self._settings).admit(callback_url, tenant_id=tenant_id)
        for request in requests:
            self._admit(request, tenant_id)
        ref = BatchRef(tenant_id, submission.id_of_key("batch", tenant_id=tenant_id, idempotency_key=idempotency_key))
        items = [item.stored(request) for request in requests]
        fingerprint = item.Fingerprint()
        for one in items:
            fingerprint.add(one)
        max_open = self._settings.max_open_batches
        beginning = batch.create(
            ref,
            digest=fingerprint.digest(callback_url=callback_url),
            count=len(items),
            callback_url=callback_url,
            max_open=max_open,
        )
        if not self._store.run(beginning):
            for start, some in item.slices(items):
                self._store.run(batch.add(ref, some, start=start))
            self._store.run(batch.seal(ref, keep_s=self._settings.open_retention_s, max_open=max_open))
        return ref.batch_id

    def get_batch(self, tenant_id: str, batch_id: str) -> BatchView:
        """Return the state of a batch.

        Raises:
            NotFound: this tenant has no such batch.
        """
        return self._store.run(batch.look(BatchRef(tenant_id, batch_id)))

    def batch_results(self, tenant_id: str, batch_id: str, *, after: int = 0) -> Iterator[BatchResult]:
        """Yield what the requests of a batch came to, in their order and behind the first `after`.

        Ends before the first that has not ended.

        Raises:
            NotFound: this tenant has no such batch.
        """
        while True:
            page = self._store.run(batch.results(BatchRef(tenant_id, batch_id), after=after))
            yield from (came.result for came in page.came)
            after += len(page.came)
            if page.over or not page.came:
                return

    def cancel_batch(self, tenant_id: str, batch_id: str) -> bool:
        """Ask for the end of a batch; durable when this returns. False: it was over.

        Requests that are no executions yet never become any; those that are, are cancelled.

        Raises:
            NotFound: this tenant has no such batch.
        """
        return self._store.run(batch.cancel(BatchRef(tenant_id, batch_id), keep_s=self._settings.retention_s))

    def create_schedule(
        self, asked: ScheduleRequest, *, tenant_id: str, idempotency_key: str | None = None
    ) -> ScheduleView:
        """Store a schedule: its request becomes an execution at each time of its cron line.

        Raises:
            CallbackUrlInvalid: its callback may not go where it is to go.
            Conflict: the key came before with another request.
            TooManySchedules: the tenant has as many schedules as it may.
            StorageUnavailable: Redis does not answer. The same key may safely be used again.
        """
        self._admit(asked.request, tenant_id)
        ref = ScheduleRef(
            tenant_id, submission.id_of_key("schedule", tenant_id=tenant_id, idempotency_key=idempotency_key)
        )
        creating = schedule.create(ref, asked, now_ms=int(time.time() * 1000), at_most=self._settings.max_schedules)
        self._store.run(creating)
        return self._store.run(schedule.look(ref)).view()

    def schedules(self, tenant_id: str) -> Iterator[ScheduleView]:
        """Yield a tenant's schedules, newest first."""
        before_ms, skip = None, 0
        while True:
            page = self._store.run(schedule.page(tenant_id, before_ms=before_ms, skip=skip, limit=SCHEDULES_AT_ONCE))
            for one in page.listed:
                yield one.schedule.view()
                before_ms, skip = one.created_ms, skip + 1 if one.created_ms == before_ms else 1
            if page.is_last:
                return

    def get_schedule(self, tenant_id: str, schedule_id: str) -> ScheduleView:
        """Return the state of a schedule.

        Raises:
            NotFound: this tenant has no such schedule.
        """
        return self._store.run(schedule.look(ScheduleRef(tenant_id, schedule_id))).view()

    def pause_schedule(self, tenant_id: str, schedule_id: str) -> None:
        """Let no further time begin anything.

        Raises:
            NotFound: this tenant has no such schedule.
        """
        self._store.run(schedule.pause(ScheduleRef(tenant_id, schedule_id)))

    def resume_schedule(self, tenant_id: str, schedule_id: str) -> ScheduleView:
        """Let a schedule go on, from the first of its times after now.

        Raises:
            NotFound: this tenant has no such schedule.
        """
        ref = ScheduleRef(tenant_id, schedule_id)
        self._store.run(schedule.resume(self._store.run(schedule.look(ref))))
        return self._store.run(schedule.look(ref)).view()

    def delete_schedule(self, tenant_id: str, schedule_id: str) -> None:
        """Forget a schedule; what it has begun goes on.

        Raises:
            NotFound: this tenant has no such schedule.
        """
        self._store.run(schedule.delete(ScheduleRef(tenant_id, schedule_id)))

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

    def _admit(self, request: ExecutionRequest, tenant_id: str) -> None:
        submission.admit(
            request,
            tenant_id=tenant_id,
            open_retention_s=self._settings.open_retention_s,
            callback_door=Door.of_client(self._settings),
        )

    def _storing(self, message: Message, *, idempotency_key: str | None = None) -> Call[Acceptance]:
        return submission.store(
            message,
            open_retention_s=self._settings.open_retention_s,
            max_queued=self._settings.max_queued,
            idempotency_key=idempotency_key,
            callback_door=Door.of_client(self._settings),
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
