"""Which tools a question asks for, and with what arguments.

Owns the reading of questions. Does not know the wire, nor what the tools answer. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from pydantic import JsonValue

from sandbox.chat_request import OfferedFunction
from sandbox.corpus import subject_words
from sandbox.form import fill
from sandbox.places import UnknownPlace, zone_of
from sandbox.units import BadUnit, unit

_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = r"(?:degrees? )?([A-Za-z°]+(?:/[hs])?)"
_CONVERSION = re.compile(rf"(-?{_NUMBER})\s*{_UNIT}\s+(?:in|to|into|as)\s+{_UNIT}")
_CONVERSION_ASKED = re.compile(
    rf"how many {_UNIT}(?: are| is)?(?: there)?(?: in)? ({_NUMBER})\s*{_UNIT}", re.IGNORECASE
)
_PERCENT = re.compile(rf"({_NUMBER})\s*(?:%|percent)\s+of\s+({_NUMBER})", re.IGNORECASE)
_ROOT = re.compile(rf"square root of ({_NUMBER})", re.IGNORECASE)
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_WORDED_SIGNS = (
    (re.compile(r"\s(?:times|multiplied by)\s(?=[\d(])|×|·|(?<=\d)\sx\s(?=\d)", re.IGNORECASE), "*"),
    (re.compile(r"\sdivided by\s(?=[\d(])|÷", re.IGNORECASE), "/"),
    (re.compile(r"\splus\s(?=[\d(])", re.IGNORECASE), "+"),
    (re.compile(r"\sminus\s(?=[\d(])|\s\u2212\s", re.IGNORECASE), "-"),
    (re.compile(r"\sto the power of\s(?=[\d(])", re.IGNORECASE), "^"),
)
# A sign is a minus only between spaces, or every range and telephone number would be a sum.
_SIGN = r"(?:\s*(?:\*\*|//|[*/+^])\s*|\s+-\s+)"
_TERM = r"(?:(?:sqrt|abs|round)?\(\s*)*-?\d+(?:,\d{3})*(?:\.\d+)?(?:\s*\))*"
_ARITHMETIC = re.compile(rf"{_TERM}(?:{_SIGN}{_TERM})+")
_CITY = r"[A-Z][\w'’-]*(?:[ _][A-Z][\w'’-]*)*(?:/[A-Z]\w*)?"
_TIME_IN = re.compile(
    rf"\b(?:time|clock|hour|date)\b[^.?!]*?\bin\s+({_CITY}(?:\s*(?:,|and|or|&)\s*(?:(?:and|in)\s+)*{_CITY})*)"
)
_TIME_IN_LOWER = re.compile(r"\btime\b[^.?!]*?\bin ([a-z]{3,})")
_TIME = re.compile(r"\bwhat(?:'s| is)?(?: the)? (?:current )?(?:time|date|day)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[^.?!]+")
_SEARCH = re.compile(r"\b(?:handbook|documents?|polic(?:y|ies)|guidelines?|look up|search for)\b", re.IGNORECASE)
_CLAUSE_END = re.compile(
    r"\0+|,?\s*\b(?:and|then|also),?\s+(?=(?:what|how|tell|give|convert|calculate|which)\b)", re.IGNORECASE
)
_SEARCH_SUBJECTS = (
    re.compile(r"\b(?:about|on|for|up)\s+(.+)", re.IGNORECASE),
    re.compile(r"\bsays?\s+(.+)", re.IGNORECASE),
)
_NOTE = re.compile(
    r"\b(send|publish) (?:a |the )?note (?:to |for )([\w@.-]+)(?: saying| that says|:| with the text)?\s+(.+)",
    re.IGNORECASE,
)
_WAIT = re.compile(rf"\b(?:wait|sleep|be slow)\w*(?: for)? ({_NUMBER}) ?s(?:ec\w*)?\b", re.IGNORECASE)
#: Words of tools' names that say nothing about when one is meant.
_EMPTY_TOOL_WORDS = frozenset(
    {"call", "tool", "list", "make", "find", "fetch", "create", "lookup", "with", "from", "data"}
)

#: Nobody asks for tools further on, and patterns over a whole book take their time.
_READ_CHARS = 4_000

Arguments = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A tool to call; `arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class _Found:
    start: int
    end: int
    tool: str
    arguments: Arguments


def wanted_calls(question: str, *, offered: Sequence[OfferedFunction]) -> list[PlannedCall]:
    """Return the calls of offered tools that `question` asks for, in its order, each once."""
    names = {function.name for function in offered}
    found: list[_Found] = []
    left = question[:_READ_CHARS]
    for find in _READERS:
        for hit in list(find(left)):
            # What one reader understood is blank to the next: the 20 of "20 km in miles" is nobody's sum.
            left = left[: hit.start] + "\0" * (hit.end - hit.start) + left[hit.end :]
            found.append(hit)
    calls = [
        PlannedCall(hit.tool, json.dumps(hit.arguments, ensure_ascii=False))
        for hit in sorted(found, key=lambda hit: hit.start)
        if hit.tool in names
    ]
    calls += [
        forced_call(function, question=question)
        for function in offered
        if function.name not in _KNOWN and _is_meant(function, question)
    ]
    return list(dict.fromkeys(calls))


def forced_call(function: OfferedFunction, *, question: str) -> PlannedCall:
    """Return a call whose arguments fit the tool's schema, made of the question's words."""
    arguments = fill({"type": "object", **function.parameters}, text=question)
    return PlannedCall(function.name, json.dumps(arguments, ensure_ascii=False))


def _conversions(text: str) -> Iterator[_Found]:
    for match in _CONVERSION.finditer(text):
        if (found := _conversion(match, value=match[1], source=match[2], target=match[3])) is not None:
            yield found
    for match in _CONVERSION_ASKED.finditer(text):
        if (found := _conversion(match, value=match[2], source=match[3], target=match[1])) is not None:
            yield found


def _conversion(match: re.Match[str], *, value: str, source: str, target: str) -> _Found | None:
    with suppress(BadUnit):
        if unit(source).dimension == unit(target).dimension:
            arguments: Arguments = {"value": float(value), "from_unit": source, "to_unit": target}
            return _Found(match.start(), match.end(), "convert_units", arguments)
    return None


def _waits(text: str) -> Iterator[_Found]:
    for match in _WAIT.finditer(text):
        yield _Found(match.start(), match.end(), "slow", {"seconds": min(float(match[1]), 30.0)})


def _notes(text: str) -> Iterator[_Found]:
    for match in _NOTE.finditer(text):
        arguments: Arguments = {"recipient": match[2].rstrip(":"), "text": match[3].strip(" .\"'").replace("\0", "")}
        yield _Found(match.start(), match.end(), f"{match[1].lower()}_note", arguments)


def _sums(text: str) -> Iterator[_Found]:
    for match in _PERCENT.finditer(text):
        yield _Found(match.start(), match.end(), "calculator", {"expression": f"{match[1]} / 100 * {match[2]}"})
        text = text[: match.start()] + "\0" * (match.end() - match.start()) + text[match.end() :]
    for match in _ROOT.finditer(text):
        yield _Found(match.start(), match.end(), "calculator", {"expression": f"sqrt({match[1]})"})
    # What is written another way keeps its length, so that positions stay those of the question.
    written = _ISO_DATE.sub("XXXX-XX-XX", text)
    for worded, sign in _WORDED_SIGNS:
        written = worded.sub(partial(_as_sign, sign), written)
    for match in _ARITHMETIC.finditer(written):
        expression = _balanced(" ".join(match[0].replace(",", "").split()))
        yield _Found(match.start(), match.end(), "calculator", {"expression": expression})


def _as_sign(sign: str, words: re.Match[str]) -> str:
    return sign.center(len(words[0]))


def _balanced(expression: str) -> str:
    """Drop the brackets that the sentence opened or closed around the sum."""
    while expression.count("(") > expression.count(")") and expression.startswith("("):
        expression = expression[1:].strip()
    while expression.count(")") > expression.count("(") and expression.endswith(")"):
        expression = expression[:-1].strip()
    return expression


def _clocks(text: str) -> Iterator[_Found]:
    told = False
    for match in _TIME_IN.finditer(text):
        for city in re.finditer(_CITY, match[1]):
            told = True
            yield _Found(match.start() + city.start(), match.end(), "clock", {"city": city[0].replace("_", " ")})
    if not told and (lower := _TIME_IN_LOWER.search(text)):
        with suppress(UnknownPlace):
            zone_of(lower[1])
            told = True
            yield _Found(lower.start(), lower.end(), "clock", {"city": lower[1].capitalize()})
    if not told and (plain := _TIME.search(text)):
        yield _Found(plain.start(), plain.end(), "clock", {"city": "UTC"})


def _searches(text: str) -> Iterator[_Found]:
    for sentence in _SENTENCE.finditer(text):
        for clause in _CLAUSE_END.split(sentence[0]):
            if _SEARCH.search(clause):
                start = sentence.start() + sentence[0].index(clause)
                yield _Found(start, start + len(clause), "search_documents", {"query": _subject(clause)})


def _subject(clause: str) -> str:
    subjects = (found[1] for pattern in _SEARCH_SUBJECTS if (found := pattern.search(clause)))
    return next(filter(subject_words, subjects), clause).strip(" ,;:\n")


_READERS: tuple[Callable[[str], Iterator[_Found]], ...] = (_waits, _notes, _conversions, _sums, _clocks, _searches)
_KNOWN = frozenset({"calculator", "clock", "convert_units", "search_documents", "send_note", "publish_note", "slow"})


def _is_meant(function: OfferedFunction, question: str) -> bool:
    """Whether a word of the tool's name is in the question; so a tool of anybody's is called when it is spoken of."""
    words = {word for word in re.split(r"[_\W]+", function.name.lower()) if len(word) >= 4} - _EMPTY_TOOL_WORDS
    return bool(subject_words(" ".join(words)) & subject_words(question))
