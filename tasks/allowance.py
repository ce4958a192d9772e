"""What an execution's limits leave for the next call of a model: tokens and money, checked before it is made. Pure.

Owns how much of an answer is asked for when little is left, and what is said when it is too little. Turns and tool calls are
checked where they are decided on (next_step.py), a tenant's money of the day where it is shared (agent_exec/spending), the
deadline round every step (attempt.py). Does not know prices: `worst_case` tells what a call may come to at most.
"""

from __future__ import annotations

from collections.abc import Callable

from agent_exec.contract.agent import Limits
from agent_exec.contract.completion import CompletionRequest, Usage
from agent_exec.errors import LimitExceeded

#: An answer of fewer tokens is no sentence and no tool call: asking for it wastes the prompt.
MIN_OUTPUT_TOKENS = 16

WorstCase = Callable[[CompletionRequest], Usage]


def within_limits(
    request: CompletionRequest, *, worst_case: WorstCase, used: Usage, limits: Limits
) -> tuple[CompletionRequest, Usage]:
    """Return the request with no more output than `limits` leave after what was `used`, and what it may come to at most.

    Where the model's price is unknown, its money is not limited.

    Raises:
        LimitExceeded: not even a short answer fits.
    """
    worst = worst_case(request)
    least = min(request.max_output_tokens, MIN_OUTPUT_TOKENS)
    left_tokens = limits.max_total_tokens - used.total_tokens
    if worst.prompt_tokens + least > left_tokens:
        raise _exceeded(
            f"{used.total_tokens} tokens are used, and the next call needs about {worst.prompt_tokens + least}",
            limit="max_total_tokens",
            at=limits.max_total_tokens,
        )
    if worst.total_tokens > left_tokens:
        request, worst = _of(request, left_tokens - worst.prompt_tokens, worst_case)
    left_usd = limits.max_cost_usd - (used.cost_usd or 0.0)
    if _fits(worst, left_usd):
        return request, worst
    shortest = _of(request, least, worst_case)
    if not _fits(shortest[1], left_usd):
        raise _exceeded(
            f"{used.cost_usd or 0.0:.6f} USD are spent, and the next call may cost {shortest[1].cost_usd:.6f}",
            limit="max_cost_usd",
            at=limits.max_cost_usd,
        )
    return _largest(request, left_usd, worst_case, least=least)


def cut_short(max_output_tokens: int) -> LimitExceeded:
    """Return the error of an answer that ends where the limits left no more than so many tokens for it."""
    return LimitExceeded(
        f"The answer was cut off after {max_output_tokens} tokens, all that the execution's limits had left. Raise "
        "limits.max_total_tokens or limits.max_cost_usd in the agent's configuration, or ask for less."
    )


def _largest(
    request: CompletionRequest, left_usd: float, worst_case: WorstCase, *, least: int
) -> tuple[CompletionRequest, Usage]:
    """Return the request with as many tokens of output, from `least`, as the money pays for."""
    fits, too_many = least, request.max_output_tokens
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if _fits(_of(request, middle, worst_case)[1], left_usd):
            fits = middle
        else:
            too_many = middle
    return _of(request, fits, worst_case)


def _of(request: CompletionRequest, max_output_tokens: int, worst_case: WorstCase) -> tuple[CompletionRequest, Usage]:
    shorter = request.model_copy(update={"max_output_tokens": max_output_tokens})
    return shorter, worst_case(shorter)


def _fits(worst: Usage, left_usd: float) -> bool:
    return worst.cost_usd is None or worst.cost_usd <= left_usd


def _exceeded(what: str, *, limit: str, at: float) -> LimitExceeded:
    message = f"{what}; limits.{limit} is {at:g}. Raise it in the agent's configuration, or ask for less."
    return LimitExceeded(message, detail={"limit": limit, "value": at})
