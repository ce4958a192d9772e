"""JSON against a JSON Schema: a structured answer, and the arguments of a tool call. Pure.

Owns validation without a remote reference and without a slow pattern. Does not know what a value is for.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import jsonschema_rs

from agent_exec.errors import OutputInvalid

#: How many faults of a value are told; more do not help a model to mend them.
MAX_FAULTS = 5


def parse_structured(text: str, schema: dict[str, Any] | None) -> Any:
    """Return the value that an answer's text holds, or None where the agent asks for no structure.

    Raises:
        OutputInvalid: the text is no JSON, or not of the schema.
    """
    if schema is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        raise OutputInvalid("The model answered with text where the agent's response_format asks for JSON.") from None
    wrong = faults(value, schema)
    if wrong:
        raise OutputInvalid(f"The model's answer does not fit the agent's response_format: {'; '.join(wrong)}.")
    return value


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
