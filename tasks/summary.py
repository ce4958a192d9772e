"""The step before a turn that has the model sum up what no longer fits. Does nothing where all fits.

Owns the call and its record; what is summed up, and how it is shown, is in window.py. Nothing of it is streamed: a summary
is no part of the answer.
"""

from __future__ import annotations

from typing import assert_never

from agent_exec.contract.completion import CompletionRequest
from agent_exec.contract.event import EventName, ProgressData
from agent_exec.contract.model import JsonObject
from agent_exec.errors import ProviderError, ProviderProtocol
from providers.provider import Finished, Reasoning, Text
from tasks import window
from tasks.journal import Summary
from tasks.next_step import AskModel
from tasks.provider_call import Passage, after_failure, paid, passage
from tasks.route import Ask
from tasks.step import Done, Step
from tasks.window import Digest


async def summarise(step: Step) -> Done:
    """Do the step."""
    turn = int(step.ref.step.split(".")[2])
    digest = window.digest(step.journal, choice=step.journal.fixed.config.choice)
    if digest is None:
        return Done(Summary().model_dump_json(), [], AskModel(turn))
    passed = await passage(step, lambda ask: _request(step, digest, ask))
    if not isinstance(passed, Passage):
        return Done("null", [], passed)
    thinking = ProgressData(stage="thinking", step=step.ref.step, turn=turn, detail=passed.detail)
    try:
        summary = await _summed_up(step, passed, thinking, covers=digest.covers)
    except ProviderError as error:
        return Done("null", [], after_failure(step, passed, error))
    return Done(summary.model_dump_json(), [], AskModel(turn))


def _request(step: Step, digest: Digest, ask: Ask) -> tuple[CompletionRequest, JsonObject]:
    config = step.journal.fixed.config
    request = CompletionRequest(
        provider=ask.choice.provider,
        model=ask.choice.model,
        messages=digest.messages(tightened=ask.tightened),
        temperature=config.temperature,
        max_output_tokens=min(config.max_output_tokens, window.SUMMARY_TOKENS),
    )
    return request, {"policy": "summarise", "summarised": digest.covers}


async def _summed_up(step: Step, passed: Passage, thinking: ProgressData, *, covers: int) -> Summary:
    """Make the call."""
    said: list[str] = []
    finished: Finished | None = None
    async with paid(step, passed) as call:
        await step.tell(EventName.PROGRESS, thinking.model_dump_json())
        async with call as deltas:
            async for delta in deltas:
                match delta:
                    case Text(text):
                        said.append(text)
                    case Reasoning():
                        pass  # no part of it
                    case Finished():
                        finished = delta
                    case other:
                        assert_never(other)
        if finished is None:
            raise ProviderProtocol("The provider's stream ended without an end.", provider=passed.request.provider)
        text = "" if finished.reason == "content_filter" else "".join(said)
        return Summary(covers=covers, text=text, usage=finished.usage, wasted=passed.route.wasted)
