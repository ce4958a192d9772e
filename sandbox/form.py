"""A value that fits a JSON Schema, with words and numbers of a text in the places they seem to belong to.

Owns the guesses. Does not know whether it fills in the arguments of a tool or a whole answer. Of JSON Schema it knows what
structured output and tools use; `pattern` is met from words of the text and a few stock values, or not at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue

#: A schema that refers to itself is cut off here: below, only what is required is filled in.
_OPTIONAL_DEPTH = 4
#: Patterns over a whole book take their time.
_READ_CHARS = 8_000
_NAME = r"[A-Z][\w'-]+(?: [A-Z][\w'-]+)*"
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")
_URL = re.compile(r"https?://\S+")
_NUMBER = re.compile(r"(?<![\w.@-])-?\d+(?:\.\d+)?(?![\w@])")
_PLACE = re.compile(rf"\b(?:in|at|from|to|near|for)\s+({_NAME})")
_PERSON = re.compile(
    rf"\b(?:[Mm]y name is|[Ii] am|I'm|by|from|to|for|[Cc]ustomer:?)\s+({_NAME})|\b([A-Z]\w+ [A-Z]\w+)\b"
)

_BY_FORMAT: Mapping[str, tuple[re.Pattern[str] | None, str]] = {
    "email": (_EMAIL, "ada@example.com"),
    "date": (_DATE, "2026-01-01"),
    "date-time": (None, "2026-01-01T00:00:00Z"),
    "time": (None, "00:00:00Z"),
    "uri": (_URL, "https://example.com/"),
    "uuid": (None, "00000000-0000-4000-8000-000000000000"),
    "ipv4": (None, "192.0.2.1"),
}
#: By what a property is called, where its schema does not say.
_BY_NAME: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    (("email", "mail"), _EMAIL),
    (("url", "link"), _URL),
    (("date", "day", "due"), _DATE),
    (("city", "place", "location", "country", "town", "destination"), _PLACE),
    (("name", "customer", "person", "author", "recipient", "user"), _PERSON),
)
_STOCK = ("A", "a", "0", "A1", "a1", "ABC", "abc", "abc-1", "ABC-123", "0000", "00000", "2026-01-01", "+4700000000")


def fill(schema: Mapping[str, Any], *, text: str) -> JsonValue:
    """Return a value that fits `schema`, made of `text`; the same for the same two."""
    return _Form(schema, text[:_READ_CHARS]).value(schema, name="", depth=0)


class _Form:
    def __init__(self, root: Mapping[str, Any], text: str) -> None:
        self._root = root
        self._text = text
        self._numbers: Iterator[str] = iter(_NUMBER.findall(_DATE.sub(" ", _EMAIL.sub(" ", text))))

    def value(self, schema: Any, *, name: str, depth: int) -> JsonValue:
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]  # type: ignore[no-any-return]  # JSON from the request
        if "enum" in schema:
            return self._choice(schema["enum"])
        match _kind(schema):
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, name, depth)
            case "string":
                return self._string(schema, name)
            case "integer":
                return int(self._number(schema, step=1))
            case "number":
                return self._number(schema, step=schema.get("multipleOf"))
            case "boolean":
                return True
            case _:
                return None

    def _resolved(self, schema: Any) -> dict[str, Any]:
        """Follow `$ref`, take the first alternative that is not null, and lay `allOf` together."""
        if not isinstance(schema, Mapping):
            return {}
        merged = dict(schema)
        if isinstance(reference := merged.pop("$ref", None), str):
            target: Any = self._root
            for part in reference.removeprefix("#").strip("/").split("/"):
                target = target.get(part, {}) if part and isinstance(target, Mapping) else target
            merged = {**self._resolved(target), **merged}
        for part in merged.pop("allOf", []):
            resolved = self._resolved(part)
            both = {**merged.get("properties", {}), **resolved.get("properties", {})}
            required = [*merged.get("required", []), *resolved.get("required", [])]
            merged = {**merged, **resolved} | ({"properties": both, "required": required} if both else {})
        for keyword in ("anyOf", "oneOf"):
            options = [self._resolved(option) for option in merged.pop(keyword, [])]
            merged |= next((option for option in options if option.get("type") != "null"), {})
        return merged

    def _choice(self, options: list[JsonValue]) -> JsonValue:
        said = self._text.lower()
        named = (option for option in options if isinstance(option, str) and option and option.lower() in said)
        return next(named, options[0] if options else None)

    def _object(self, schema: Mapping[str, Any], depth: int) -> JsonValue:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = schema.get("required", [])
        wanted = [name for name in properties if depth < _OPTIONAL_DEPTH or name in required]
        wanted += [name for name in required if name not in properties]
        return {
            name: self.value(properties.get(name, {"type": "string"}), name=name, depth=depth + 1) for name in wanted
        }

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> JsonValue:
        first = schema.get("prefixItems", [])
        count = max(int(schema.get("minItems", 0)), len(first) or (1 if depth < _OPTIONAL_DEPTH else 0))
        count = min(count, int(schema.get("maxItems", count)))
        items: list[JsonValue] = []
        for place in range(count):
            kind = first[place] if place < len(first) else schema.get("items", {"type": "string"})
            item = self.value(kind, name=name.removesuffix("s"), depth=depth + 1)
            items.append(self._different(item, place, kind) if item in items else item)
        return items

    def _different(self, item: JsonValue, place: int, schema: Any) -> JsonValue:
        options = self._resolved(schema).get("enum")
        match item:
            case _ if options:
                return options[place % len(options)]  # type: ignore[no-any-return]  # JSON from the request
            case str():
                return f"{item} {place + 1}"
            case int() | float() if not isinstance(item, bool):
                return item + place
            case _:
                return item

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        text = self._words_for(schema, name)
        if pattern := schema.get("pattern"):
            rule = re.compile(pattern)
            text = next((word for word in (text, *self._text.split(), *_STOCK) if rule.search(word)), text)
        shortest, longest = int(schema.get("minLength", 0)), int(schema.get("maxLength", len(text)))
        return text.ljust(shortest, "-")[: max(longest, shortest)]

    def _words_for(self, schema: Mapping[str, Any], name: str) -> str:
        if schema.get("format") in _BY_FORMAT:
            pattern, otherwise = _BY_FORMAT[schema["format"]]
            found = pattern.search(self._text) if pattern else None
            return found[0] if found else otherwise
        called = name.lower()
        if (
            labelled := re.search(rf"\b{re.escape(called)}\s*[:=]\s*([^,;\n]+)", self._text, re.IGNORECASE)
            if called
            else None
        ):
            return labelled[1].strip()
        for names, pattern in _BY_NAME:
            if any(part in called for part in names) and (found := pattern.search(self._text)):
                return next((group for group in found.groups() if group), found[0])
        return self._text.strip() or "nothing said"

    def _number(self, schema: Mapping[str, Any], *, step: float | None) -> float:
        given = next(self._numbers, None)
        number = float(given) if given is not None else 1.0
        lowest = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
        highest = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
        grain = step or 1
        if number < lowest or number == schema.get("exclusiveMinimum"):
            number = lowest + (grain if lowest == schema.get("exclusiveMinimum") else 0)
        if number > highest or number == schema.get("exclusiveMaximum"):
            number = highest - (grain if highest == schema.get("exclusiveMaximum") else 0)
        if step:
            number = round(number / step) * step
            number += step if number < lowest else -step if number > highest else 0
        return number


def _kind(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if isinstance(kind, str):
        return kind
    if "properties" in schema or "required" in schema:
        return "object"
    return "array" if "items" in schema else "string"
