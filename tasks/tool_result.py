"""What becomes of a tool's answer before anybody sees it: cut to a size, and without what looks like a credential. Pure.

Owns both. A result is material and nothing else: whatever it says, no text in it is followed, and no address in it fetched.
Does not know who reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from pydantic import JsonValue


def cut(result: JsonValue, *, max_chars: int) -> JsonValue:
    """Return the result, or where its text is longer than `max_chars`, the text's beginning and a mark that says so."""
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    if len(text) <= max_chars:
        return result
    return f"{text[:max_chars]}\n[cut here: these are {max_chars} of {len(text)} characters]"


def struck(result: JsonValue, strike: Callable[[str], str]) -> JsonValue:
    """Return the result with each text in it as `strike` returns it; the names of its fields too."""
    match result:
        case str():
            return strike(result)
        case list():
            return [struck(item, strike) for item in result]
        case dict():
            return {strike(name): struck(value, strike) for name, value in result.items()}
        case _:
            return result
