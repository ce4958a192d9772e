"""JSON against a JSON Schema: a structured answer, and the arguments of a tool call. Pure.

Owns what fits and why not; follows no remote reference, and no pattern makes it slow. Does not know what a value is for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jsonschema_rs
from pydantic import JsonValue, TypeAdapter, ValidationError

from agent_exec.contract.model import Json

#: How many faults of a value are told; more do not help a model to mend them.
MAX_FAULTS = 5

_JSON: TypeAdapter[JsonValue] = TypeAdapter(Json)


@dataclass(frozen=True, slots=True)
class Fits:
    """An answer that is of the form asked for; `value` is what its text holds, None where no form is."""

    value: JsonValue


@dataclass(frozen=True, slots=True)
class Unfit:
    """An answer that is not, and why: at most `MAX_FAULTS` clauses."""

    faults: list[str]


def read_answer(text: str, schema: dict[str, Any] | None) -> Fits | Unfit:
    """Return what an answer's text holds; `schema` is the agent's `response_format`."""
    if schema is None:
        return Fits(None)
    try:
        value = _JSON.validate_json(text)
    except ValidationError as error:
        return Unfit([f"it is no JSON: {error.errors()[0]['msg'].removeprefix('Invalid JSON: ')}"])
    wrong = faults(value, schema)
    return Unfit(wrong) if wrong else Fits(value)


def check_schema(schema: dict[str, Any]) -> None:
    """Refuse a schema that cannot be used.

    Raises:
        ValueError: it is wrong, or refers to somewhere else.
    """
    try:
        _validator(json.dumps(schema, sort_keys=True))
    except ValueError as error:
        raise ValueError(str(error).partition("\n")[0][:200]) from None


def faults(value: Any, schema: dict[str, Any]) -> list[str]:
    """Return what is wrong with `value`, at most `MAX_FAULTS` sentences; nothing when it fits.

    Raises:
        ValueError: the schema itself is wrong, or refers to somewhere else.
    """
    found = _validator(json.dumps(schema, sort_keys=True)).iter_errors(value)
    return [
        f"at {'/'.join(str(part) for part in fault.instance_path)[:200] or 'the top'}: {fault.message[:200]}"
        for fault, _ in zip(found, range(MAX_FAULTS), strict=False)
    ]


@lru_cache(maxsize=1_024)
def _validator(schema: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(json.loads(schema), retriever=_refuse)


def _refuse(uri: str) -> Any:
    raise ValueError(f"a schema may not refer to {uri[:100]!r}: nothing is fetched")
