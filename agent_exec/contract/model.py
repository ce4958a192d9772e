"""The kinds of value that every model of the contract is made of: ids, bounded text, bounded JSON.

Owns the patterns and sizes. Does not know what any of them is used for.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler, JsonValue
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, to_json

#: A message, an HTTP body: one megabyte (faults S36).
MAX_BODY_BYTES = 1_000_000
MAX_QUERY_CHARS = 256_000
MAX_HISTORY_MESSAGES = 200
MAX_TOOLS = 128
MAX_TOOL_NAME_CHARS = 64
MAX_SCHEMA_BYTES = 64_000
MAX_TEMPLATE_CHARS = 64_000
#: Deeper JSON than this is an attack on somebody's recursion.
MAX_JSON_DEPTH = 32

#: Tenants and agents are parts of queue names and keys, so they hold nothing that Redis, kombu or a glob would read.
ID_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
OPAQUE_ID_PATTERN = r"^[\x21-\x7e]+$"
EXECUTION_ID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


def _plain(value: JsonValue) -> JsonValue:
    """Refuse what is nested too deep, and the numbers that JSON does not have."""
    level: list[JsonValue] = [value]
    for _ in range(MAX_JSON_DEPTH):
        if any(isinstance(node, float) and not math.isfinite(node) for node in level):
            raise ValueError("a number that is not finite")
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return value
    raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")


def _small_schema(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if len(to_json(value)) > MAX_SCHEMA_BYTES:
        raise ValueError(f"a JSON Schema larger than {MAX_SCHEMA_BYTES} bytes")
    return value


def absent(value: object) -> bool:
    """Say whether a field that few have is to be left out: for `exclude_if`."""
    return value is None


TenantId = Annotated[str, Field(pattern=ID_PATTERN, examples=["acme"])]
AgentId = Annotated[str, Field(pattern=ID_PATTERN, examples=["weather-desk"])]
ExecutionId = Annotated[str, Field(pattern=EXECUTION_ID_PATTERN, examples=["6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"])]
#: Ids that neighbours give and we only carry: task, conversation, session, workflow, tool call.
OpaqueId = Annotated[str, Field(min_length=1, max_length=200, pattern=OPAQUE_ID_PATTERN)]
ToolName = Annotated[str, Field(pattern=rf"^[a-zA-Z0-9_-]{{1,{MAX_TOOL_NAME_CHARS}}}$", examples=["get_weather"])]
ModelName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]
Priority = Annotated[int, Field(ge=0, le=9, description="9 is the most urgent")]

Json = Annotated[JsonValue, AfterValidator(_plain)]
JsonObject = Annotated[dict[str, JsonValue], AfterValidator(_plain)]
JsonSchema = Annotated[dict[str, JsonValue], AfterValidator(_plain), AfterValidator(_small_schema)]
Scalar = str | int | float | bool | None


class NoOtherKeys:
    """Marks a dict whose keys have a pattern: its JSON Schema says that there are no others, too, as pydantic's does not."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema."""
        return {**handler(schema), "additionalProperties": False}


class ContractModel(BaseModel):
    """Strict: no coercion, no unknown field, no NaN; frozen once made."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
