"""The completion step: ask the model for one turn, and stream what it says.

Owns the request made from the journal, and the events of an answer. Does not know any provider's wire, nor what follows.
"""

from __future__ import annotations

from typing import assert_never

from agent_exec.contract.completion import CompletionRequest, CompletionResponse
from agent_exec.contract.event import EventName, ProgressData, ToolCallRequestedData
from agent_exec.contract.tool import ToolCall
from agent_exec.errors import ProviderProtocol
from agent_exec.ledger.ledger import Event
from providers.provider import Finished, Reasoning, Text
from tasks.next_step import after_completion
from tasks.step import Done, Step
from tasks.token_stream import TokenStream, token_event
from tasks.transcript import transcript


async def complete(step: Step) -> Done:
    """Do the step."""
    turn, journal, store = step.number, step.journal, step.resources.store
    request = _request(step)
    provider = step.resources.providers.named(request.provider)
    thinking = ProgressData(stage="thinking", step=step.ref.step, turn=turn)
    await step.tell(EventName.PROGRESS, thinking.model_dump_json())
    step.tokens = tokens = TokenStream(store, step.claim.hold, flush_ms=step.resources.settings.token_flush_ms)
    finished: Finished | None = None
    try:
        async with provider.stream(request) as deltas:
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
    answer = CompletionResponse(
        provider=request.provider,
        model=finished.model or request.model,
        text=tokens.text,
        tool_calls=list(finished.tool_calls),
        finish_reason=finished.reason,
        usage=finished.usage,
    )
    rest = await tokens.rest()
    last_words = [token_event(rest, is_final=not answer.tool_calls)] if rest or not answer.tool_calls else []
    return Done(
        result=answer.model_dump_json(),
        events=[*last_words, *[_requested(call, turn) for call in answer.tool_calls]],
        next=after_completion(answer, turn=turn, journal=journal),
    )


def _request(step: Step) -> CompletionRequest:
    fixed = step.journal.fixed
    config = fixed.config
    # A choice that forces a tool forces the first one; held on to, no turn could ever answer.
    forced = config.tool_choice not in ("auto", "none")
    return CompletionRequest(
        provider=config.provider,
        model=config.model,
        messages=transcript(step.journal),
        tools=fixed.tools,
        tool_choice="auto" if forced and step.number > 1 else config.tool_choice,
        parallel_tool_calls=config.parallel_tool_calls,
        temperature=config.temperature,
        max_output_tokens=config.max_output_tokens,
        response_format=config.response_format,
    )


def _requested(call: ToolCall, turn: int) -> Event:
    try:
        arguments = call.decoded_arguments()
    except ValueError:
        arguments = call.arguments
    asked = ToolCallRequestedData(tool_call_id=call.id, name=call.name, arguments=arguments, turn=turn)
    return Event(EventName.TOOL_CALL_REQUESTED, asked.model_dump_json())
