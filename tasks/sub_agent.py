"""A call that asks another agent: a child execution, begun once, awaited without a slot, its end the call's result.

Owns which agent may be asked, what a child is given of its parent's limits, and what its end comes to. Does not know how an
execution runs; that a child ends with its parent is the ledger's affair.

The limits of an execution hold for it and for all below it together. What a turn that asks other agents has left of them is
divided by how many it asks, and each child may use an equal part of it, no more than its own configuration allows: whatever
each of them does, and whenever it runs, together they cannot use more. What they leave is there again for the next turn. Of
the turns, one is kept for the answer. The deadline is everybody's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import JsonValue

from agent_exec import submission
from agent_exec.contract.agent import AgentOverrides, Limits, SubAgent
from agent_exec.contract.execution import FinalResponse
from agent_exec.contract.message import Context, Message, MessageMetadata, Payload
from agent_exec.contract.model import MAX_QUERY_CHARS
from agent_exec.contract.tool import MAX_ERROR_CHARS, ToolDefinition, ToolError, ToolResult
from agent_exec.errors import Cancelled, Conflict, LimitExceeded, NotFound, TimedOut
from agent_exec.ledger import ledger
from agent_exec.ledger.ledger import Orphan, Parent
from agent_exec.ledger.parent import child_id, word_for
from agent_exec.ledger.record import ExecutionRecord, result_field
from tasks.journal import Below, Journal
from tasks.leases import CANCELLED, LeaseLost
from tasks.next_step import Park
from tasks.route import wasted_of
from tasks.step import Done, Step

#: The asked agent reads it as the caller's context: as material, and never as orders.
GIVEN = "given"
#: Ids of the caller's world. The global task stays the parent's: it has not ended when a child has.
INHERITED = {"conversation_id", "session_id", "workflow_id", "source"}
TOO_LATE = "The execution's deadline has passed; raise limits.deadline_s, or ask for less."
#: What a step journals that has come to nothing.
NOTHING = "null"
#: Of what a model has to say to another one.
QUESTION: dict[str, JsonValue] = {
    "type": "object",
    "properties": {
        "query": {
            "type": "string",
            "description": "The whole question or task: the agent sees nothing else of this conversation.",
            "minLength": 1,
            "maxLength": MAX_QUERY_CHARS,
        },
        "context": {"type": "object", "description": "Facts that the agent needs, if any."},
    },
    "required": ["query"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Answered:
    """What a call came to, for the model that made it, and how long it took; of a child, which one, and what it has used."""

    outcome: ToolResult | ToolError
    duration_s: float
    child_execution_id: str | None = None
    below: Below | None = None


def definition(agent: SubAgent) -> ToolDefinition:
    """Return the tool that an agent is to another one."""
    description = agent.description or f"Asks the agent '{agent.agent_id}', and returns its answer."
    return ToolDefinition(name=agent.tool_name, description=description, parameters=QUESTION, effect="idempotent")


async def ask(step: Step, agent: SubAgent, arguments: dict[str, JsonValue]) -> Done | Answered | ToolError:
    """Begin the child and wait for it; once it has ended, return how. An error says why there is no child."""
    child = child_id(step.ref.execution_id, step.ref.step)
    if step.claim.word is None:
        asker = await _look(step, step.ref.execution_id)
        granted = _granted(step, asker, agent)
        if isinstance(granted, ToolError):
            return granted
        try:
            await _begin(step, asker, _message(step, asker, agent, arguments, child=child, granted=granted))
        except Conflict as error:
            return ToolError(code=error.code, message=f"The agent '{agent.agent_id}' cannot be asked: {error}")
        except Orphan:
            await _must_have_ended(step, child)
        else:
            return Done(NOTHING, [], Park(_left_s(step), awaits=word_for(child)))
    return await _answered(step, agent, child)


def _message(
    step: Step,
    asker: ExecutionRecord,
    agent: SubAgent,
    arguments: dict[str, JsonValue],
    *,
    child: str,
    granted: Limits,
) -> Message:
    # As urgent as its parent, whatever its type is where a caller asks it.
    own = {"agent_type": step.journal.fixed.config.agent_type, "limits": granted}
    return Message(
        task_id=child,
        tenant_id=step.ref.tenant_id,
        agent_id=agent.agent_id,
        execution_id=child,
        created_at=datetime.now(UTC),
        priority=asker.wish,
        metadata=MessageMetadata.model_validate(
            asker.message.metadata.model_dump(include=INHERITED, exclude_unset=True)
        ),
        payload=Payload(
            query=str(arguments["query"]),
            agent_config=AgentOverrides.model_validate(own),
            context=Context.model_validate({GIVEN: arguments["context"]} if arguments.get("context") else {}),
        ),
    )


async def _begin(step: Step, asker: ExecutionRecord, message: Message) -> None:
    """Store the child and send its first hint. A child that an earlier attempt has begun is the same one.

    Raises:
        Conflict: somebody else's execution has its id.
        Orphan: the ledger takes no such child any more.
    """
    store = step.resources.store
    parent = Parent(step.ref.execution_id, word_for(message.execution_id), _agents(asker))
    accepted = await store.insist(
        submission.store_child(
            message,
            parent=parent,
            priority=asker.priority,
            open_retention_s=step.resources.settings.open_retention_s,
        )
    )
    if accepted.begins:
        await store.insist(submission.first_hint(message, accepted).push())


def _granted(step: Step, asker: ExecutionRecord, agent: SubAgent) -> Limits | ToolError:
    """Return what a child may use, the same for each of this turn and at each attempt; or why there is to be none."""
    agents, most = _agents(asker), step.resources.settings.max_agent_depth
    if agent.agent_id in agents:
        way = " → ".join([*agents, agent.agent_id])
        return ToolError(code="agent_cycle", message=f"'{agent.agent_id}' waits for this answer itself: {way}.")
    if len(agents) > most:
        deep = f"There are {len(agents)} agents above '{agent.agent_id}', and at most {most} may be."
        return ToolError(code="agents_too_deep", message=deep)
    # What ends beside this call must not change the parts that others were given.
    journal = Journal(asker).before_tools_of(step.number)
    config, spent = journal.fixed.config, journal.spent
    limits, asked = config.limits, [call for call in journal.turns[-1].tool_calls if config.sub_agent(call.name)]
    turns = (limits.max_turns - step.number - journal.below.turns - 1) // len(asked)
    tokens = (limits.max_total_tokens - spent.total_tokens) // len(asked)
    if turns < 1 or tokens < 1:
        name = "max_turns" if turns < 1 else "max_total_tokens"
        little = f"What is left of limits.{name} ({getattr(limits, name)}, for all agents below too) is too little."
        return ToolError(code=LimitExceeded.code, message=little)
    return Limits(
        max_turns=turns,
        max_tool_calls=max(0, limits.max_tool_calls - journal.tool_calls) // len(asked),
        max_total_tokens=tokens,
        max_cost_usd=max(0.0, limits.max_cost_usd - (spent.cost_usd or 0.0)) / len(asked),
        deadline_s=_left_s(step),
    )


def _agents(asker: ExecutionRecord) -> tuple[str, ...]:
    """Return the agents above a child, the outermost first."""
    above = asker.parent.agents if asker.parent is not None else ()
    return *above, asker.agent_id


def _left_s(step: Step) -> float:
    deadline_ms = step.claim.execution.deadline_ms
    assert deadline_ms is not None, "the prompt step sets one"
    left_s = (deadline_ms - step.now_ms()) / 1000
    if left_s <= 0:
        raise TimedOut(TOO_LATE)
    return left_s


async def _must_have_ended(step: Step, child: str) -> None:
    """Return if the child that the ledger does not take has ended before: then it is not taken twice.

    Raises:
        Cancelled, TimedOut: its parent has to end.
        LeaseLost: its parent has ended.
    """
    asker = await _look(step, step.ref.execution_id)
    if f"word:{word_for(child)}" in asker.fields:
        return
    if asker.finished_at is not None:
        raise LeaseLost
    raise Cancelled(CANCELLED) if asker.cancel_requested else TimedOut(TOO_LATE)


async def _answered(step: Step, agent: SubAgent, child: str) -> Answered:
    try:
        record = await _look(step, child)
    except NotFound:
        gone = f"The agent '{agent.agent_id}' has ended, and what it came to has expired before it was read."
        return Answered(ToolError(code="response_expired", message=gone), 0.0, child)
    response = record.response
    assert response is not None, "it has sent the word in the script that ended it"
    took_s = (response.finished_at - response.created_at).total_seconds()
    return Answered(_outcome(agent, response), max(0.0, took_s), child, _used(record, response))


def _outcome(agent: SubAgent, response: FinalResponse) -> ToolResult | ToolError:
    if response.error is not None:
        message = f"The agent '{agent.agent_id}' failed: {response.error.message}"
        return ToolError(code=response.error.code, message=message[:MAX_ERROR_CHARS])
    structured = response.output.structured
    return ToolResult(result=response.output.text if structured is None else structured)


def _used(record: ExecutionRecord, response: FinalResponse) -> Below:
    """Return what an execution that has ended has used, with all below it."""
    # A step at which it failed has journaled nothing, and noted what its attempts before the last had used.
    failed = [step for step in record.steps if record.result(step) == NOTHING]
    left_out = {result_field(step) for step in failed}
    journal = Journal(ExecutionRecord({name: text for name, text in record.fields.items() if name not in left_out}))
    wasted = journal.wasted
    for step in failed:
        wasted = wasted.plus(wasted_of(record.note(step)).known)
    return Below(
        usage=response.usage,
        wasted=wasted,
        turns=response.turns + journal.below.turns,
        tool_calls=journal.tool_calls,
    )


async def _look(step: Step, execution_id: str) -> ExecutionRecord:
    return await step.resources.store.insist(ledger.look(step.ref.tenant_id, execution_id))
