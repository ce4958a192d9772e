"""The clients: they submit by HTTP and by the client library, again with the same key where a fault swallowed the answer.

Owns L-client: what was accepted, what was cancelled, and who never heard. Does not know which faults there are.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import httpx

from agent_exec import ExecutionRequest
from agent_exec.client import AgentExecClient
from agent_exec.errors import AgentExecError, QueueFull, StorageError
from agent_exec.ledger.ledger import CancelRequested
from chaos.evidence import Cancel, Refusal, Submission, canary
from chaos.neighbours import Watcher
from chaos.service import AGENT, TENANTS, Service, now_ms

SUBMITTERS = 4
CANCELLERS = 2
#: A client that got no answer comes again after this long.
AGAIN_AFTER_S = (0.1, 0.6)
#: Of the clients whose first try got no answer, this share never comes again: their work is there once, or not at all.
GIVING_UP = 0.2
#: Longer than any fault: a client that still gets no answer has found one.
PATIENCE_S = 60.0
#: Of the executions, this share asks to be called back at the end.
CALLED_BACK = 0.25
#: A cancel comes this long after the acceptance, so as to meet every step.
CANCEL_AFTER_S = (0.0, 3.0)
HTTP_TIMEOUT_S = 10.0
#: How often a client that waits for room looks whether the time is over.
LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """What one client will do. The same seed makes the same."""

    number: int
    tenant_id: str
    door: Literal["http", "client"]
    gives_up: bool
    cancel_after_s: float | None
    called_back: bool

    @property
    def mark(self) -> str:
        """What its prompt begins with."""
        return f"mark-{self.number:06d}"

    def request(self, hooks_url: str) -> ExecutionRequest:
        """Return two tools in one turn, one that reads and one that acts; then an answer from their results."""
        own = canary(self.tenant_id)
        question = (
            f"{self.mark} {own}. What is {self.number} * 7?\nSend a note to {self.mark} saying that {own} was here"
        )
        hook = f"{hooks_url}/{self.tenant_id}" if self.called_back else None
        return ExecutionRequest(agent_id=AGENT, query=question, callback_url=hook)


def plan(seed: int, number: int, *, cancels: float) -> Plan:
    """Return what client `number` does; `cancels` is the share of executions that are cancelled."""
    chance = random.Random(f"{seed}:{number}")
    return Plan(
        number=number,
        tenant_id=chance.choice(TENANTS),
        door=chance.choice(("http", "client")),
        gives_up=chance.random() < GIVING_UP,
        cancel_after_s=chance.uniform(*CANCEL_AFTER_S) if chance.random() < cancels else None,
        called_back=chance.random() < CALLED_BACK,
    )


class Unanswered(Exception):
    """No answer, or one that says to come again."""


class Refused(Exception):
    """An answer that no fault excuses."""


class Load:
    """The clients, at work in threads until all work is submitted, the time is over, or they are stopped."""

    def __init__(
        self,
        service: Service,
        watcher: Watcher,
        *,
        seed: int,
        executions: int | None,
        until: float | None,
        open_at_once: int,
        cancels: float,
    ) -> None:
        """Take how many executions (null: no bound), until when on the monotonic clock, and how many may be open at once."""
        self.submissions: list[Submission] = []
        self.cancels: list[Cancel] = []
        self.refusals: list[Refusal] = []
        self.retries = 0
        self._service = service
        self._watcher = watcher
        self._seed = seed
        self._left = executions
        self._until = until
        self._open_at_once = open_at_once
        self._cancel_share = cancels
        self._next = 0
        self._accepted: set[str] = set()
        self._to_cancel: list[tuple[float, str, Plan]] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._submitters = self._threads(SUBMITTERS, self._submit_all)
        self._cancellers = self._threads(CANCELLERS, self._cancel_all)

    @property
    def accepted(self) -> int:
        """How many executions were accepted."""
        return len(self._accepted)

    @property
    def submitting(self) -> bool:
        """Whether there is more to come."""
        return any(thread.is_alive() for thread in self._submitters)

    def open_executions(self) -> set[str]:
        """Return the accepted executions whose end the orchestrator has not been told."""
        with self._lock:
            return self._accepted - self._watcher.ended

    def stop(self) -> None:
        """Submit nothing more; return when every client has its answer."""
        self._stopping.set()
        with self._watcher.changed:
            self._watcher.changed.notify_all()
        for thread in [*self._submitters, *self._cancellers]:
            thread.join()

    def _threads(self, count: int, work: Callable[[Door], None]) -> list[threading.Thread]:
        def run() -> None:
            with Door(self._service) as door:
                work(door)

        threads = [threading.Thread(target=run, name=work.__name__, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        return threads

    def _submit_all(self, door: Door) -> None:
        while (number := self._take()) is not None:
            mine = plan(self._seed, number, cancels=self._cancel_share)
            submission = self._submit(door, mine)
            with self._lock:
                self.submissions.append(submission)
                if submission.execution_id is not None:
                    self._accepted.add(submission.execution_id)
                    if mine.cancel_after_s is not None:
                        due = time.monotonic() + mine.cancel_after_s
                        heapq.heappush(self._to_cancel, (due, submission.execution_id, mine))

    def _take(self) -> int | None:
        """Return the next client's number, once there is room for its execution; None for the end."""
        with self._watcher.changed:
            while not self._over() and len(self.open_executions()) >= self._open_at_once:
                self._watcher.changed.wait(LOOK_S)
            if self._over():
                return None
            if self._left is not None:
                self._left -= 1
            self._next += 1
            return self._next

    def _over(self) -> bool:
        late = self._until is not None and time.monotonic() > self._until
        return late or self._stopping.is_set() or self._left == 0

    def _submit(self, door: Door, mine: Plan) -> Submission:
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            try:
                execution_id = door.submit(mine, key=f"{self._seed}-{mine.mark}")
            except Unanswered:
                self.retries += 1
                if mine.gives_up:
                    return Submission(mark=mine.mark, tenant_id=mine.tenant_id)
                time.sleep(random.uniform(*AGAIN_AFTER_S))
            except Refused as refusal:
                self.refusals.append(Refusal(mark=mine.mark, answer=str(refusal)))
                return Submission(mark=mine.mark, tenant_id=mine.tenant_id)
            else:
                return Submission(
                    mark=mine.mark, tenant_id=mine.tenant_id, execution_id=execution_id, accepted_at_ms=now_ms()
                )
        self.refusals.append(Refusal(mark=mine.mark, answer=f"none in {PATIENCE_S:.0f} s"))
        return Submission(mark=mine.mark, tenant_id=mine.tenant_id)

    def _cancel_all(self, door: Door) -> None:
        while not (self._stopping.is_set() and not self._to_cancel):
            with self._lock:
                due = self._to_cancel and self._to_cancel[0][0] <= time.monotonic()
                chosen = heapq.heappop(self._to_cancel) if due else None
            if chosen is None:
                time.sleep(AGAIN_AFTER_S[0])
                continue
            _, execution_id, mine = chosen
            try:
                requested = door.cancel(mine, execution_id)
            except Unanswered:
                with self._lock:
                    heapq.heappush(self._to_cancel, (time.monotonic() + AGAIN_AFTER_S[1], execution_id, mine))
            except Refused as refusal:
                self.refusals.append(Refusal(mark=mine.mark, answer=f"of a cancel: {refusal}"))
            else:
                self.cancels.append(Cancel(execution_id=execution_id, answered_at_ms=now_ms(), requested=requested))


class Door:
    """One thread's ways to the service. A context manager."""

    def __init__(self, service: Service) -> None:
        """Take the service; nothing connects yet."""
        self._http = httpx.Client(base_url=service.shim_url, timeout=HTTP_TIMEOUT_S, trust_env=False)
        self._client: AgentExecClient = service.client()
        self._keys = service.keys
        self._hooks_url = service.neighbours.hooks_url

    def submit(self, mine: Plan, *, key: str) -> str:
        """Return the execution's id.

        Raises:
            Unanswered: come again with the same key.
            Refused: this should not have been.
        """
        request = mine.request(self._hooks_url)
        if mine.door == "http":
            headers = {"Idempotency-Key": key}
            body = request.model_dump(mode="json", exclude_unset=True)
            return str(self._post(mine.tenant_id, "/v1/executions", body, headers)["execution_id"])
        try:
            return self._client.submit(request, tenant_id=mine.tenant_id, idempotency_key=key)
        except (StorageError, QueueFull) as error:
            raise Unanswered from error
        except AgentExecError as error:
            raise Refused(repr(error)) from error

    def cancel(self, mine: Plan, execution_id: str) -> bool:
        """Cancel an execution; return whether that was still possible.

        Raises:
            Unanswered: come again.
            Refused: this should not have been.
        """
        if mine.door == "http":
            answer = self._post(mine.tenant_id, f"/v1/executions/{execution_id}/cancel", None, {})
            return bool(answer["status"] == "cancel_requested")
        try:
            return isinstance(self._client.cancel(mine.tenant_id, execution_id), CancelRequested)
        except StorageError as error:
            raise Unanswered from error
        except AgentExecError as error:
            raise Refused(repr(error)) from error

    def _post(self, tenant_id: str, path: str, body: object, headers: dict[str, str]) -> dict[str, object]:
        headers = {**headers, "Authorization": f"Bearer {self._keys[tenant_id]}"}
        try:
            answer = self._http.post(path, json=body, headers=headers)
        except httpx.TransportError as error:
            raise Unanswered from error
        if answer.status_code in (429, 503):
            raise Unanswered
        if not answer.is_success:
            raise Refused(f"{answer.status_code} {answer.text}")
        found: dict[str, object] = answer.json()
        return found

    def __enter__(self) -> Door:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._http.close()
        self._client.close()
