"""Doing what the orchestrator asks for.

Owns what each command comes to. Does not know the socket on which it came. The orchestrator serves every tenant, so a
command that names no tenant is for the one whose execution it is; a command that names one is for that tenant alone.
"""

from __future__ import annotations

from contextlib import suppress
from typing import assert_never

from agent_exec import approval
from agent_exec.contract.approval import Approval
from agent_exec.contract.command import CommandResult
from agent_exec.errors import AgentExecError, StorageError
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import AlreadyOver, CancelRequested, not_found
from agent_exec.store import Store
from notifier import outbox
from notifier.protocol import (
    BadCommand,
    CancelExecution,
    Command,
    Position,
    ReplayFrom,
    ResolveApproval,
)


async def carry_out(command: Command | BadCommand, *, store: Store) -> CommandResult:
    """Do it, and return what to answer. An error of ours is an answer too, Redis's absence among them."""
    try:
        match command:
            case BadCommand():
                return _not_done(command, code="invalid_message", message=command.complaint)
            case CancelExecution():
                return await _cancel(command, store)
            case ResolveApproval():
                return await _resolve(command, store)
            case ReplayFrom():
                return await _replay(command, store)
            case other:
                assert_never(other)
    except AgentExecError as error:
        return _not_done(command, code=error.code, message=str(error))


async def _cancel(command: CancelExecution, store: Store) -> CommandResult:
    answer = await store.run(ledger.cancel(await _tenant_of(command, store), command.execution_id))
    match answer:
        case CancelRequested():
            return CommandResult.of_cancel(command.execution_id, "cancel_requested")
        case AlreadyOver(status):
            return CommandResult.of_cancel(command.execution_id, status)
        case other:
            assert_never(other)


async def _resolve(command: ResolveApproval, store: Store) -> CommandResult:
    decision = Approval(approved=command.approved, reason=command.reason)
    tenant_id = await _tenant_of(command, store)
    resolved = await store.run(approval.resolve(tenant_id, command.execution_id, command.tool_call_id, decision))
    if resolved.hint is not None:
        with suppress(StorageError):  # it is stored: whoever looks for lost hints sends this one
            await store.run(resolved.hint.push())
    return CommandResult(command=command.command, execution_id=command.execution_id, tool_call_id=command.tool_call_id)


async def _replay(command: ReplayFrom, store: Store) -> CommandResult:
    position = Position(await _tenant_of(command, store), command.execution_id, command.sequence)
    match await store.run(outbox.replay(position)):
        case "replaying":
            return CommandResult(command=command.command, execution_id=command.execution_id)
        case "gone":
            raise not_found(command.execution_id)
        case "ahead":
            return _not_done(command, code="no_such_event", message=f"It has no event {command.sequence} yet.")
        case other:
            assert_never(other)


def _not_done(command: Command | BadCommand, *, code: str, message: str) -> CommandResult:
    return CommandResult(
        command=command.command,
        execution_id=command.execution_id,
        code=code,
        message=message,
        tool_call_id=command.tool_call_id if isinstance(command, ResolveApproval) else None,
    )


async def _tenant_of(command: Command, store: Store) -> str:
    tenant_id = command.tenant_id or await store.run(outbox.tenant_of(command.execution_id))
    if tenant_id is None:
        raise not_found(command.execution_id)
    return tenant_id
