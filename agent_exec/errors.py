"""Every error of the service, with a stable code on each.

AgentExecError
├── InvalidMessage            the message or request breaks the contract
├── CallbackUrlInvalid        a callback may not go where it is to go
├── CallbacksNotConfigured    there is nothing to sign the tenant's callbacks with
├── AlreadyDelivered          the callback has arrived
├── Conflict                  the same id or idempotency key came before with other content
├── QueueFull                 the tenant has too many executions waiting
├── TooManyBatches            the tenant has too many batches that are not over
├── TooManySchedules          the tenant has as many schedules as it may
├── NotFound                  no such thing for this tenant
├── NotAwaitingApproval       the tool call does not wait for approval
├── AlreadyResolved           the tool call's approval was resolved before, the other way
├── TooManyStreams            the tenant follows too many executions at once
├── TooManyCommands           a socket sends commands faster than anybody needs
├── TooManyRequests           the tenant sends more requests a minute than it may
├── Unauthorized              no credential, or one that does not hold
├── TooManyAttempts           too many credentials that do not hold, from one address or for one key
├── Forbidden                 the credential's role does not allow this
├── SettingsInvalid           a setting is missing or wrong
├── ExecutionFailed           an execution ended as failed: what its Celery result raises
├── StorageError
│   ├── StorageUnavailable    Redis does not answer
│   └── StorageFull           Redis answers, and refuses writes
└── ExecutionError            ends an execution or delays a step
    ├── Cancelled             somebody asked for it
    ├── TimedOut              the execution's deadline passed
    ├── StepTimedOut          a step hung for longer than any of its kind may
    ├── StepPoisoned          a step was claimed too often without a result
    ├── LimitExceeded         turns, tool calls, tokens or money of the execution are used up
    ├── BudgetExceeded        the tenant's money of the day is used up
    ├── PromptInvalid         the prompt template does not render
    ├── OutputInvalid         the answer is not of the form that the agent demands
    ├── InternalError         a fault of this service; its log has the stack
    ├── AgentNotFound         Agent Management knows no such agent
    ├── TenantNotFound        Agent Management knows no such tenant
    ├── NeighbourError
    │   ├── NeighbourUnavailable   no answer, a time-out, or a 5xx
    │   └── NeighbourRefused       an answer that is no use to us: 4xx, or not of the contract
    └── ProviderError
        ├── ProviderNotConfigured  no such provider, or no key for it
        ├── ProviderKeyUnusable    the tenant's own key cannot be read, or is none
        ├── ProviderAuth           the provider refuses our key, or the account has no money
        ├── ProviderBadRequest     the provider refuses the request as it stands
        ├── ModelNotFound          the provider knows no such model
        ├── ContextTooLong         the conversation does not fit the model
        ├── ContentFiltered        the provider's filter stopped it
        ├── ProviderRateLimited    too many requests or tokens
        ├── ProviderOverloaded     the provider is in trouble (5xx)
        ├── ProviderTimeout        no connection, no first byte, or a stall
        ├── ProviderUnreachable    the connection failed or broke
        └── ProviderProtocol       the answer is not of the wire, or ended early

Owns classes, codes and whether a retry may help. Does not know who raises them or what is done about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class AgentExecError(Exception):
    """Base of all. `str(error)` says what, why, and what to do now."""

    code: ClassVar[str] = "agent_exec_error"
    retryable: ClassVar[bool] = False


class InvalidMessage(AgentExecError):
    """The message or request breaks the contract."""

    code = "invalid_message"

    def __init__(self, message: str, *, complaints: Sequence[tuple[str, str]] = ()) -> None:
        """Keep which fields are at fault, as far as they are known, and what is wrong with each."""
        super().__init__(message)
        self.complaints = tuple(complaints)


class CallbackUrlInvalid(AgentExecError):
    """A callback may not go where it is to go."""

    code = "invalid_callback_url"


class CallbacksNotConfigured(AgentExecError):
    """There is nothing to sign the tenant's callbacks with; none goes unsigned."""

    code = "callbacks_not_configured"


class AlreadyDelivered(AgentExecError):
    """The callback has arrived; it is not sent again."""

    code = "already_delivered"


class Conflict(AgentExecError):
    """The same execution id or idempotency key came before with other content."""

    code = "idempotency_mismatch"


class QueueFull(AgentExecError):
    """The tenant has too many executions waiting."""

    code = "queue_full"
    retryable = True


class TooManyBatches(AgentExecError):
    """The tenant has too many batches that are not over."""

    code = "too_many_batches"
    retryable = True


class TooManySchedules(AgentExecError):
    """The tenant has as many schedules as it may."""

    code = "too_many_schedules"


class NotFound(AgentExecError):
    """No such execution, callback, batch or schedule for this tenant; another tenant's looks the same."""

    code = "not_found"


class NotAwaitingApproval(AgentExecError):
    """The tool call does not wait for approval: it never did, its time has passed, or its execution has ended."""

    code = "not_awaiting_approval"


class AlreadyResolved(AgentExecError):
    """The tool call's approval was resolved before, the other way; the first decision stands."""

    code = "already_resolved"


class TooManyStreams(AgentExecError):
    """The tenant has too many event streams and sockets open."""

    code = "too_many_streams"
    retryable = True


class TooManyCommands(AgentExecError):
    """A socket sends commands faster than anybody needs; this one was not carried out."""

    code = "too_many_commands"
    retryable = True


class TooManyRequests(AgentExecError):
    """The tenant sends more requests than it may."""

    code = "too_many_requests"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        """Keep after which pause the next one is taken."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unauthorized(AgentExecError):
    """No credential, or one that does not hold."""

    code = "unauthorized"


class TooManyAttempts(AgentExecError):
    """Too many credentials that do not hold, from one address or for one key; one that holds is let in all the same."""

    code = "too_many_attempts"
    retryable = True


class Forbidden(AgentExecError):
    """The credential's role does not allow this."""

    code = "forbidden"


class SettingsInvalid(AgentExecError):
    """A setting is missing or wrong."""

    code = "settings_invalid"


class ExecutionFailed(AgentExecError):
    """An execution ended as failed; `response` is its final response, as a dict."""

    code = "execution_failed"

    def __init__(self, error_code: str, message: str, response: dict[str, Any]) -> None:
        """Take what Celery's result holds."""
        super().__init__(error_code, message, response)
        self.error_code = error_code
        self.response = response

    def __str__(self) -> str:
        """Return the code and the message."""
        return f"{self.args[0]}: {self.args[1]}"


class StorageError(AgentExecError):
    """Redis failed us."""

    code = "storage_error"
    retryable = True


class StorageUnavailable(StorageError):
    """Redis does not answer; what was asked may or may not have happened."""

    code = "storage_unavailable"


class StorageFull(StorageError):
    """Redis answers, and refuses writes."""

    code = "storage_full"


class ExecutionError(AgentExecError):
    """Ends an execution, or delays one of its steps; `detail` is JSON that the final response's error shows beside it."""

    code = "execution_error"

    def __init__(self, message: str, *, detail: dict[str, Any] | None = None) -> None:
        """Keep the detail."""
        super().__init__(message)
        self.detail = detail or {}


class Cancelled(ExecutionError):
    """Somebody asked for it."""

    code = "cancelled"


class TimedOut(ExecutionError):
    """The execution's deadline passed."""

    code = "timed_out"


class StepTimedOut(ExecutionError):
    """A step hung for longer than any of its kind may."""

    code = "step_timed_out"
    retryable = True


class StepPoisoned(ExecutionError):
    """A step was claimed too often without a result."""

    code = "step_poisoned"


class LimitExceeded(ExecutionError):
    """Turns, tool calls, tokens or money of the execution are used up."""

    code = "limit_exceeded"


class BudgetExceeded(ExecutionError):
    """The tenant's money of the day is used up."""

    code = "budget_exceeded"


class PromptInvalid(ExecutionError):
    """The prompt template does not render."""

    code = "prompt_invalid"


class OutputInvalid(ExecutionError):
    """The answer is not of the form that the agent demands."""

    code = "output_invalid"


class InternalError(ExecutionError):
    """A fault of this service; its log has the stack."""

    code = "internal_error"


class AgentNotFound(ExecutionError):
    """Agent Management knows no such agent."""

    code = "agent_not_found"


class TenantNotFound(ExecutionError):
    """Agent Management knows no such tenant."""

    code = "tenant_not_found"


class NeighbourError(ExecutionError):
    """The Tool Registry, Agent Management or the orchestrator failed us; `neighbour` says which."""

    code = "neighbour_error"

    def __init__(self, message: str, *, neighbour: str, retry_after_s: float | None = None) -> None:
        """Keep the neighbour's name and the pause it asked for."""
        super().__init__(message)
        self.neighbour = neighbour
        self.retry_after_s = retry_after_s


class NeighbourUnavailable(NeighbourError):
    """No answer, a time-out, or a 5xx; `unheard` where it is certain that the request did nothing there."""

    code = "neighbour_unavailable"
    retryable = True

    def __init__(
        self, message: str, *, neighbour: str, retry_after_s: float | None = None, unheard: bool = False
    ) -> None:
        """Keep whether the request can have done anything: one that found no connection, or was turned away, cannot."""
        super().__init__(message, neighbour=neighbour, retry_after_s=retry_after_s)
        self.unheard = unheard


class NeighbourRefused(NeighbourError):
    """An answer that is no use to us: a 4xx, or not of the contract."""

    code = "neighbour_refused"


class ProviderError(ExecutionError):
    """A provider's call failed; `retry_after_s` is the pause that the provider asked for."""

    code = "provider_error"
    #: Another model may answer what this one did not.
    another_may: ClassVar[bool] = True

    def __init__(self, message: str, *, provider: str, retry_after_s: float | None = None) -> None:
        """Keep the provider's name and the pause it asked for."""
        super().__init__(message)
        self.provider = provider
        self.retry_after_s = retry_after_s


class ProviderNotConfigured(ProviderError):
    """No such provider, or no key for it."""

    code = "provider_not_configured"


class ProviderKeyUnusable(ProviderError):
    """The tenant's own key cannot be read, or is none; the service's is not used in its place."""

    code = "provider_key_unusable"
    retryable = True


class ProviderAuth(ProviderError):
    """The provider refuses our key, or the account has no money."""

    code = "provider_auth"


class ProviderBadRequest(ProviderError):
    """The provider refuses the request as it stands."""

    code = "provider_bad_request"


class ModelNotFound(ProviderError):
    """The provider knows no such model."""

    code = "model_not_found"


class ContextTooLong(ProviderError):
    """The conversation does not fit the model."""

    code = "context_too_long"


class ContentFiltered(ProviderError):
    """The provider's filter stopped it; no other model is asked to say it in its place."""

    code = "content_filtered"
    another_may = False


class ProviderRateLimited(ProviderError):
    """Too many requests or tokens."""

    code = "provider_rate_limited"
    retryable = True


class ProviderOverloaded(ProviderError):
    """The provider is in trouble (5xx)."""

    code = "provider_overloaded"
    retryable = True


class ProviderTimeout(ProviderError):
    """No connection, no first byte, or a stall in mid-stream."""

    code = "provider_timeout"
    retryable = True


class ProviderUnreachable(ProviderError):
    """The connection failed or broke."""

    code = "provider_unreachable"
    retryable = True


class ProviderProtocol(ProviderError):
    """The answer is not of the wire, or ended early."""

    code = "provider_protocol"
    retryable = True
