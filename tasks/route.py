"""Which model an attempt of a completion asks, and what follows where one has failed or must not be asked now. Pure.

Owns the way along an agent's models, its bounds, and the note in which it lives from attempt to attempt. What a failure
means stands on its class (agent_exec.errors). Does not know how a model is asked, nor how one waits.

A failure that no repetition at this model mends (its key, its name, a conversation too long for it) strikes the model out.
One that may pass is tried again at the same model, and soon at the next one: a pause longer than `PATIENCE_S`, or the second
failure in a row, sends the turn on. Models that were left for such a reason come round again, so that fallbacks never make
an agent less patient than it would be without. A model that a conversation does not fit is left likewise, and comes round
again with less of it, where the agent's policy allows that. The turn ends when no model is left: a first try of each is
free, and all other tries together are `max_retries`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from agent_exec.contract.agent import AgentConfig, ModelChoice
from agent_exec.contract.completion import Usage
from agent_exec.contract.model import ContractModel, JsonObject
from agent_exec.errors import ContextTooLong, ProviderError, ProviderTimeout
from tasks.retry import backoff_s

#: A fallback begins to answer within a second or two. Who waits longer for one model than this waits for nothing.
PATIENCE_S = 5.0
#: Most failures that may pass have passed by the second try; after two, the provider has trouble and not an accident.
TRIES_IN_A_ROW = 2
#: What the end says of each model.
MAX_MESSAGE_CHARS = 300

_KINDS: dict[str, type[ProviderError]] = {kind.code: kind for kind in ProviderError.__subclasses__()}


class Failure(ContractModel):
    """Why a model did not answer."""

    code: str
    message: Annotated[str, Field(max_length=MAX_MESSAGE_CHARS)]

    def error(self, provider: str, *, beside: str = "") -> ProviderError:
        """Return it as the error that it was; `beside` is said after it."""
        return self.kind(self.message + beside, provider=provider)

    @property
    def kind(self) -> type[ProviderError]:
        """Its class."""
        return _KINDS.get(self.code, ProviderError)


class Standing(ContractModel):
    """Where a model of the chain stands in this turn."""

    #: Times it failed, or was left alone as broken.
    failures: Annotated[int, Field(ge=0)] = 0
    #: Times it was left for the next.
    left: Annotated[int, Field(ge=0)] = 0
    #: Not before this, by Redis's clock.
    not_before_ms: int = 0
    #: Times it was too long for it.
    tightened: Annotated[int, Field(ge=0)] = 0
    #: It is not asked again.
    out: bool = False
    #: The latest.
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask this model now, with a conversation that it has refused `tightened` times as too long.

    `change` tells of a model other than the last: `from`, `to`, and the code that made it so.
    """

    choice: ModelChoice
    change: JsonObject
    tightened: int = 0


@dataclass(frozen=True, slots=True)
class Pause:
    """Nobody is to be asked before `due_in_s`; because of `error`."""

    due_in_s: float
    error: ProviderError


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No model is left; `error` says most of why."""

    error: ProviderError


Way = Ask | Pause | GiveUp


class Note(ContractModel):
    """What of a route outlives an attempt. Another version's is as good as none: the turn starts at its first model."""

    version: Literal[1]
    last: Annotated[int, Field(ge=0)] = 0
    standings: list[Standing] = Field(default_factory=list)
    #: What the attempts of this turn have used that did not come to its answer.
    wasted: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Route:
    """The way of one turn along the models of its agent, so far."""

    chain: tuple[ModelChoice, ...]
    max_retries: int
    #: How often a conversation that a model refuses as too long may be made shorter for it.
    max_tightened: int
    standings: tuple[Standing, ...]
    #: The model that was asked last, by its place in the chain.
    last: int
    wasted: Usage

    @classmethod
    def of(cls, config: AgentConfig, *, note: str, max_retries: int, max_tightened: int = 0) -> Route:
        """Return the route that an earlier attempt has noted, or a new one."""
        first = ModelChoice(provider=config.provider, model=config.model)
        chain = tuple(dict.fromkeys((first, *config.fallbacks)))
        kept = _read(note)
        if len(kept.standings) != len(chain) or kept.last >= len(chain):
            kept = Note(version=1, standings=[Standing()] * len(chain))
        return cls(chain, max_retries, max_tightened, tuple(kept.standings), kept.last, kept.wasted)

    @property
    def note(self) -> str:
        """The route as text that `of` reads."""
        note = Note(version=1, last=self.last, standings=list(self.standings), wasted=self.wasted)
        return note.model_dump_json(exclude_defaults=True)

    def way(self, *, now_ms: float) -> Way:
        """Return what to do now."""
        places = [place for place, standing in enumerate(self.standings) if self._may_be_asked(standing)]
        if not places:
            return GiveUp(self._telling())

        def rank(place: int) -> tuple[bool, float, int, int]:
            standing = self.standings[place]
            pause_ms = max(0.0, standing.not_before_ms - now_ms)
            is_long = pause_ms > PATIENCE_S * 1000
            return is_long, pause_ms if is_long else 0.0, standing.left, place

        place = min(places, key=rank)
        standing, choice = self.standings[place], self.chain[place]
        pause_ms = standing.not_before_ms - now_ms
        if pause_ms > 0 and standing.failure is not None:
            return Pause(pause_ms / 1000, standing.failure.error(choice.provider))
        return Ask(choice, self._change(place), standing.tightened)

    def asked(self, choice: ModelChoice) -> Route:
        """Return the route on which `choice` is the model asked last."""
        return dataclasses.replace(self, last=self.chain.index(choice))

    def failed(self, choice: ModelChoice, error: ProviderError, *, now_ms: float) -> Route:
        """Return the route after `error` of `choice`: a call that failed, or a breaker that does not let it through."""
        standing = self.standings[self.chain.index(choice)]
        failures = standing.failures + 1
        pause_s = backoff_s(failures, retry_after_s=error.retry_after_s) if error.retryable else 0.0
        tightened = standing.tightened + isinstance(error, ContextTooLong)
        # A time-out has cost its patience already.
        is_left = isinstance(error, ProviderTimeout | ContextTooLong) or failures % TRIES_IN_A_ROW == 0
        failed = Standing(
            failures=failures,
            left=standing.left + (is_left or pause_s > PATIENCE_S),
            not_before_ms=round(now_ms + pause_s * 1000),
            tightened=tightened,
            out=not error.retryable and not standing.tightened < tightened <= self.max_tightened,
            failure=_failure(error),
        )
        return self._with(choice, failed, ends=not error.another_may)

    def deferred(self, choice: ModelChoice, error: ProviderError, *, due_in_s: float, now_ms: float) -> Route:
        """Return the route where `choice` is not to be asked yet: its limits leave no room. No failure, and no retry."""
        standing = self.standings[self.chain.index(choice)]
        deferred = {"not_before_ms": round(now_ms + due_in_s * 1000), "failure": _failure(error)}
        return self._with(choice, standing.model_copy(update=deferred))

    def wasting(self, usage: Usage) -> Route:
        """Return the route after a call that used as much and came to nothing; money that nobody knows is left out."""
        known = usage.model_copy(update={"cost_usd": usage.cost_usd or 0.0})
        return dataclasses.replace(self, wasted=self.wasted.plus(known))

    def _may_be_asked(self, standing: Standing) -> bool:
        retries = sum(max(0, one.failures - 1) for one in self.standings)
        return not standing.out and (standing.failures == 0 or retries < self.max_retries)

    def _with(self, choice: ModelChoice, standing: Standing, *, ends: bool = False) -> Route:
        place = self.chain.index(choice)
        standings = [*self.standings[:place], standing, *self.standings[place + 1 :]]
        if ends:
            standings = [one.model_copy(update={"out": True}) for one in standings]
        return dataclasses.replace(self, standings=tuple(standings))

    def _telling(self) -> ProviderError:
        """Return the error that says most: what ends the turn for every model; else the first that a later execution may
        be spared; else the first.
        """
        told = [(choice, one.failure) for choice, one in zip(self.chain, self.standings, strict=True) if one.failure]
        first = max(told, key=lambda one: (not one[1].kind.another_may, one[1].kind.retryable))
        others = ", ".join(f"{_name(choice)}: {failure.code}" for choice, failure in told if choice != first[0])
        error = first[1].error(first[0].provider, beside=f" The agent's other models: {others}." if others else "")
        error.detail = {"tried": [{"model": _name(choice), "code": failure.code} for choice, failure in told]}
        return error

    def _change(self, place: int) -> JsonObject:
        if place == self.last:
            return {}
        before = self.standings[self.last].failure
        return {
            "from": _name(self.chain[self.last]),
            "to": _name(self.chain[place]),
            "code": before.code if before is not None else None,
        }


def wasted_of(note: str) -> Usage:
    """Return what the attempts that left this note had used in vain."""
    return _read(note).wasted


def _read(note: str) -> Note:
    try:
        return Note.model_validate_json(note)
    except ValidationError:
        return Note(version=1)


def _failure(error: ProviderError) -> Failure:
    return Failure(code=error.code, message=str(error)[:MAX_MESSAGE_CHARS])


def _name(choice: ModelChoice) -> str:
    return f"{choice.provider}/{choice.model}"
