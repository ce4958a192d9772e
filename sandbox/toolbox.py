"""The tools themselves: their arguments, their definitions, what they do.

Owns one entry a tool. Does not know HTTP, tenants or idempotency keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from agent_exec.contract.tool import Effect, ToolDefinition
from sandbox.arithmetic import BadExpression, evaluate
from sandbox.corpus import search
from sandbox.places import UnknownPlace, zone_of
from sandbox.units import BadUnit, convert, unit

MAX_SLEEP_S = 30.0

Now = Callable[[], datetime]


class BadArguments(ValueError):
    """The arguments are no use to the tool; says why, for the model to read."""


class Arguments(BaseModel):
    """What a tool takes. Its JSON Schema is the definition's `parameters`."""

    model_config = ConfigDict(extra="forbid", strict=True)


A = TypeVar("A", bound=Arguments)


@dataclass(frozen=True, slots=True)
class Tool(Generic[A]):
    """A tool: `run` takes checked arguments and gives any JSON, or raises BadArguments."""

    name: str
    description: str
    arguments: type[A]
    run: Callable[[A], Awaitable[JsonValue]]
    effect: Effect = "read"
    timeout_s: float = 10.0
    requires_approval: bool = False

    def definition(self) -> ToolDefinition:
        """Return the tool as the registry lists it."""
        return ToolDefinition(
            name=self.name,
            description=self.description,
            parameters=self.arguments.model_json_schema(),
            effect=self.effect,
            timeout_s=self.timeout_s,
            requires_approval=self.requires_approval,
        )

    async def call(self, arguments: dict[str, JsonValue]) -> JsonValue:
        """Check `arguments` and run.

        Raises:
            BadArguments: they do not fit.
        """
        try:
            checked = self.arguments.model_validate(arguments)
        except ValidationError as error:
            raise BadArguments(
                "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            ) from None
        return await self.run(checked)


class CalculatorArguments(Arguments):
    """An expression."""

    expression: str = Field(max_length=300, description="such as (12 + 3) * 4 or sqrt(2)")


class ClockArguments(Arguments):
    """A place."""

    city: str = Field(default="UTC", max_length=100, description="a city, or a zone such as Europe/Oslo")


class ConvertUnitsArguments(Arguments):
    """A measure and the unit wanted."""

    value: float
    from_unit: str = Field(max_length=50, description="such as km")
    to_unit: str = Field(max_length=50, description="such as miles")


class SearchDocumentsArguments(Arguments):
    """A query."""

    query: str = Field(min_length=1, max_length=1_000)
    top_k: int = Field(default=2, ge=1, le=10)


class NoteArguments(Arguments):
    """A note."""

    recipient: str = Field(min_length=1, max_length=200)
    text: str = Field(min_length=1, max_length=4_000)


class SlowArguments(Arguments):
    """How long."""

    seconds: float = Field(ge=0, le=MAX_SLEEP_S)


async def _calculate(arguments: CalculatorArguments) -> JsonValue:
    try:
        return {"expression": arguments.expression, "value": evaluate(arguments.expression)}
    except BadExpression as error:
        raise BadArguments(str(error)) from None


async def _convert(arguments: ConvertUnitsArguments) -> JsonValue:
    try:
        source, target = unit(arguments.from_unit), unit(arguments.to_unit)
        result = convert(arguments.value, source=source, target=target)
    except BadUnit as error:
        raise BadArguments(str(error)) from None
    return {"value": arguments.value, "from_unit": source.name, "to_unit": target.name, "result": result}


async def _search(arguments: SearchDocumentsArguments) -> JsonValue:
    return {
        "documents": [
            {"id": hit.passage.id, "title": hit.passage.title, "text": hit.passage.text, "score": hit.score}
            for hit in search(arguments.query, top_k=arguments.top_k)
        ]
    }


async def _take_note(arguments: NoteArguments) -> JsonValue:
    return {"delivered_to": arguments.recipient, "characters": len(arguments.text)}


async def _sleep(arguments: SlowArguments) -> JsonValue:
    await asyncio.sleep(arguments.seconds)
    return {"slept_s": arguments.seconds}


def _clock(now: Now) -> Callable[[ClockArguments], Awaitable[JsonValue]]:
    async def tell(arguments: ClockArguments) -> JsonValue:
        try:
            zone = zone_of(arguments.city)
        except UnknownPlace as error:
            raise BadArguments(str(error)) from None
        there = now().astimezone(zone)
        return {
            "city": arguments.city,
            "zone": zone.key,
            "time": there.strftime("%H:%M"),
            "date": there.date().isoformat(),
            "weekday": there.strftime("%A"),
        }

    return tell


def _utc_now() -> datetime:
    return datetime.now(UTC)


def toolbox(*, now: Now = _utc_now) -> dict[str, Tool[Any]]:
    """Return every tool by its name; `now` gives an aware time."""
    tools: list[Tool[Any]] = [
        Tool("calculator", "Works out arithmetic.", CalculatorArguments, _calculate),
        Tool("clock", "Tells the time and date in a city.", ClockArguments, _clock(now)),
        Tool("convert_units", "Converts a measure from one unit to another.", ConvertUnitsArguments, _convert),
        Tool("search_documents", "Searches the employee handbook.", SearchDocumentsArguments, _search),
        Tool("send_note", "Sends a short note to a person.", NoteArguments, _take_note, effect="effect"),
        Tool(
            "publish_note",
            "Publishes a note for everybody; a person has to agree.",
            NoteArguments,
            _take_note,
            effect="effect",
            requires_approval=True,
        ),
        Tool("slow", "Sleeps, for trying out long calls.", SlowArguments, _sleep, timeout_s=MAX_SLEEP_S + 10),
    ]
    return {tool.name: tool for tool in tools}
