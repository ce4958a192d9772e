"""The completion step: ask a model for one turn, and stream what it says.

Owns the request made from the journal, and the events of an answer. Does not know any provider's wire, which model is asked
and what a call may cost (provider_call.py), nor what follows an answer (next_step.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never
from uuid import uuid4

from agent_exec.contract.completion import CompletionRequest, CompletionResponse
from agent_exec.contract.event import EventName, ProgressData, ToolCallRequestedData
from agent_exec.contract.model import JsonObject
from agent_exec.contract.tool import ToolCall
from agent_exec.errors import ProviderError, ProviderProtocol
from agent_exec.ledger.ledger import Event
from agent_exec.ledger.parent import child_id
from providers.provider import Finished, Reasoning, Text
from tasks.allowance import cut_short
from tasks.journal import Journal, tool_call_step
from tasks.next_step import Fail, Finish, Next, after_completion
from tasks.provider_call import Passage, after_failure, paid, passage
from tasks.route import Ask
from tasks.step import Done, Step
from tasks.token_stream import TokenStream
from tasks.window import show


async def complete(step: Step) -> Done:
    """Do the step."""
    passed = await passage(step, lambda ask: _request(step, ask))
    if not isinstance(passed, Passage):
        return Done("null", [], passed)
    so_far = int(step.claim.execution.fields["sequence"])
    step.tokens = tokens = TokenStream(step.resources.teller, step.claim.hold, events=so_far)
    try:
        answer = await _answer(step, passed, tokens)
    except ProviderError as error:
        failed = after_failure(step, passed, error)
        return await step.failed(failed.error) if isinstance(failed, Fail) else Done("null", [], failed)
    rest = await tokens.rest()
    follows = _after(step, passed, answer)
    is_final = not answer.tool_calls and isinstance(follows, Finish | Fail)  # and no answer to be mended
    last_words = [tokens.event(rest, is_final=is_final)] if rest or is_final else []
    return Done(
        result=answer.model_dump_json(),
        events=[*last_words, *[_requested(step, call, index) for index, call in enumerate(answer.tool_calls)]],
        next=follows,
    )


def _after(step: Step, passed: Passage, answer: CompletionResponse) -> Next:
    """Return what follows an answer. One that is cut off where the execution's limits ended is none."""
    follows = after_completion(
        answer, turn=step.number, journal=step.journal, max_repairs=step.resources.settings.max_repairs
    )
    most = passed.request.max_output_tokens
    shortened = most < step.journal.fixed.config.max_output_tokens
    if isinstance(follows, Finish) and answer.finish_reason == "length" and shortened:
        return Fail(cut_short(most), answer=answer)
    return follows


async def _answer(step: Step, passed: Passage, tokens: TokenStream) -> CompletionResponse:
    """Make the call."""
    request = passed.request
    thinking = ProgressData(stage="thinking", step=step.ref.step, turn=step.number, detail=passed.detail)
    finished: Finished | None = None
    async with paid(step, passed) as call:
        await step.tell(EventName.PROGRESS, thinking.model_dump_json())
        try:
            async with call as deltas:
                async for delta in deltas:
                    match delta:
                        case Text(text):
                            await tokens.put(text)
                        case Reasoning():
                            pass  # the model's own notes are neither answer nor event
                        case Finished():
                            finished = delta
                        case other:
                            assert_never(other)
        finally:
            tokens.stop()
        if finished is None:
            raise ProviderProtocol("The provider's stream ended without an end.", provider=request.provider)
    return CompletionResponse(
        provider=request.provider,
        model=finished.model or request.model,
        text=tokens.text,
        tool_calls=_told_apart(finished.tool_calls, step.journal),
        finish_reason=finished.reason,
        usage=finished.usage,
        usage_estimated=finished.usage_estimated,
        wasted=passed.route.wasted,
    )


def _request(step: Step, ask: Ask) -> tuple[CompletionRequest, JsonObject]:
    fixed = step.journal.fixed
    config = fixed.config
    shown = show(step.journal, choice=ask.choice, tightened=ask.tightened)
    # A choice that forces a tool forces the first one; held on to, no turn could ever answer.
    forced = config.tool_choice not in ("auto", "none")
    request = CompletionRequest(
        provider=ask.choice.provider,
        model=ask.choice.model,
        messages=shown.messages,
        tools=fixed.tools,
        tool_choice="auto" if forced and step.number > 1 else config.tool_choice,
        parallel_tool_calls=config.parallel_tool_calls,
        temperature=config.temperature,
        max_output_tokens=config.max_output_tokens,
        response_format=config.response_format,
    )
    return request, shown.detail


def _told_apart(calls: Sequence[ToolCall], journal: Journal) -> list[ToolCall]:
    """Give a call whose id another one had before a new one: events and approvals name a call by it, whatever the turn."""
    seen = {call.id for answer in journal.turns for call in answer.tool_calls}
    apart = []
    for call in calls:
        own = call.model_copy(update={"id": f"call_{uuid4().hex}"}) if call.id in seen else call
        seen.add(own.id)
        apart.append(own)
    return apart


def _requested(step: Step, call: ToolCall, index: int) -> Event:
    try:
        arguments = call.decoded_arguments()
    except ValueError:
        arguments = call.arguments
    asks_agent = step.journal.fixed.config.sub_agent(call.name) is not None
    asked = ToolCallRequestedData(
        tool_call_id=call.id,
        name=call.name,
        arguments=arguments,
        turn=step.number,
        child_execution_id=child_id(step.ref.execution_id, tool_call_step(step.number, index)) if asks_agent else None,
    )
    return Event(EventName.TOOL_CALL_REQUESTED, asked.model_dump_json())
