"""The scripted model: a conversation and the tools on offer → what it says next, word by word the same for the same input.

Owns the decision and the words. Does not know the wire, the pace or any provider. Pure.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, assert_never

from sandbox.chat_request import ChatMessage, ChatRequest, OfferedFunction, ToolChoice
from sandbox.corpus import PASSAGES, subject_words
from sandbox.form import fill
from sandbox.intents import PlannedCall, forced_call, wanted_calls

#: About the length of a real token: a short word with the space before it, a piece of a long one, a sign.
_PIECE = re.compile(r"\s?(?:[^\W\d_]{1,8}|\d{1,3}|[^\w\s]|\w)|\s")
_SENTENCE = re.compile(r"[^\n.!?]+(?:[.!?](?!\s|$)[^\n.!?]*)*[.!?]?")
_WORDS_WANTED = re.compile(r"\b(\d{1,5}) words\b", re.IGNORECASE)
_SUMMARY_WANTED = re.compile(r"\b(?:summar|shorten|in short|tl;?dr)", re.IGNORECASE)
_GREETING = re.compile(r"^\s*(?:hi|hello|hey|good (?:morning|evening|afternoon))\b", re.IGNORECASE)
#: A longer one would be a benchmark of this model.
MAX_WORDS = 20_000


@dataclass(frozen=True, slots=True)
class Answer:
    """The model speaks."""

    text: str


@dataclass(frozen=True, slots=True)
class Calls:
    """The model calls tools, at least one."""

    calls: tuple[PlannedCall, ...]


Turn = Answer | Calls


@dataclass(frozen=True, slots=True)
class _Result:
    """A call of the current question and what came back."""

    name: str
    arguments: Any
    content: Any


def next_turn(request: ChatRequest) -> Turn:
    """Return what the model does next. `tool_choice: required` calls a tool on every turn, as it does at OpenAI."""
    question = next((message.text for message in reversed(request.messages) if message.role == "user"), "")
    results = _results(request.messages)
    calls = _calls(request, question=question, results=results)
    if calls:
        return Calls(tuple(calls if request.parallel_tool_calls else calls[:1]))
    if request.schema is not None:
        told = " ".join([question, *(json.dumps(result.content, ensure_ascii=False) for result in results)])
        value = fill(request.schema, text=told) if request.schema else {"answer": _words(request, question, results)}
        return Answer(json.dumps(value, ensure_ascii=False))
    return Answer(_words(request, question, results))


def pieces(text: str) -> list[str]:
    """Return `text` cut into tokens; joined they are the text."""
    return _PIECE.findall(text)


def prompt_tokens(request: ChatRequest) -> int:
    """Return about how many tokens the model reads: four characters each, and a few a message."""
    said = sum(
        len(message.text)
        + sum(len(call.function.name) + len(call.function.arguments) for call in message.tool_calls or [])
        for message in request.messages
    )
    offered = sum(len(tool.function.name) + len(str(tool.function.parameters)) for tool in request.tools)
    return (said + offered) // 4 + 4 * len(request.messages)


def _calls(request: ChatRequest, *, question: str, results: Sequence[_Result]) -> list[PlannedCall]:
    offered = [tool.function for tool in request.tools]
    if not offered or request.tool_choice == "none":
        return []
    if isinstance(request.tool_choice, ToolChoice):
        offered = [function for function in offered if function.name == request.tool_choice.function.name]
        return wanted_calls(question, offered=offered) or [forced_call(offered[0], question=question)]
    made = {(result.name, _canonical(result.arguments)) for result in results}
    wanted = wanted_calls(question, offered=offered)
    due = [call for call in wanted if (call.name, _canonical(_parsed(call.arguments))) not in made]
    if request.tool_choice == "required":
        return due or [_first_choice(offered, question)]
    return due


def _first_choice(offered: Sequence[OfferedFunction], question: str) -> PlannedCall:
    return next(iter(wanted_calls(question, offered=offered)), forced_call(offered[0], question=question))


def _results(messages: Sequence[ChatMessage]) -> list[_Result]:
    """Return the calls since the last user message, with their results."""
    asked: dict[str, tuple[str, str]] = {}
    results: list[_Result] = []
    for message in messages:
        match message.role:
            case "user":
                asked, results = {}, []
            case "assistant":
                asked |= {call.id: (call.function.name, call.function.arguments) for call in message.tool_calls or []}
            case "tool":
                name, arguments = asked[message.tool_call_id or ""]
                results.append(_Result(name, _parsed(arguments), _parsed(message.text)))
            case "system" | "developer":
                pass
            case _ as never:
                assert_never(never)
    return results


def _words(request: ChatRequest, question: str, results: Sequence[_Result]) -> str:
    if results:
        return " ".join(_sentence(result) for result in results)
    if wanted := _WORDS_WANTED.search(question):
        return _passage_of(min(int(wanted[1]), MAX_WORDS), seed=question)
    if _SUMMARY_WANTED.search(question):
        return _summary(question, _background(request.messages))
    if found := _quote(question, _background(request.messages)):
        return f"From what I have here: {found}"
    if _GREETING.match(question):
        return "Hello! Ask me for a sum, the time in a city, a conversion of units, or what the handbook says."
    return (
        f'You said: "{_shortened(question)}" I am a scripted model without an opinion on that; I can work out sums, tell'
        " the time in a city, convert units, look things up in the handbook and quote what I am given."
    )


def _sentence(result: _Result) -> str:
    content, arguments = result.content, result.arguments
    match result.name, content:
        case _, {"error": {"message": str(message)}}:
            return f"{_spoken(result.name).capitalize()} did not work: {message.rstrip('.')}."
        case "calculator", {"expression": str(expression), "value": value}:
            return f"{expression} is {value}."
        case "clock", {"city": str(city), "time": str(time), "date": str(date), "weekday": str(weekday)}:
            return f"In {city} it is {time} on {weekday}, {date}."
        case "convert_units", {
            "value": value,
            "from_unit": str(source),
            "to_unit": str(target),
            "result": result_value,
        }:
            return f"{_plain(value)} {source} are {_plain(result_value)} {target}."
        case "search_documents", {"documents": [{"title": str(title), "text": str(text)}, *_]}:
            return f"The handbook says under {title}: {text}"
        case "search_documents", {"documents": []}:
            return f"The handbook says nothing about {_argument(arguments, 'query')}."
        case ("send_note" | "publish_note") as name, {"delivered_to": str(recipient)}:
            return f"The note to {recipient} is {'sent' if name == 'send_note' else 'published'}."
        case "slow", {"slept_s": seconds}:
            return f"I waited {_plain(seconds)} seconds."
        case name, str(text) if name.startswith("ask_"):
            return f"{name.removeprefix('ask_').replace('_', ' ').capitalize()} says: {text}"
        case name, _:
            return f"{_spoken(name).capitalize()} answered: {_said(content)}."


def _spoken(name: str) -> str:
    return "the tool " + name.replace("_", " ")


def _argument(arguments: Any, name: str) -> str:
    return str(arguments.get(name, "that")) if isinstance(arguments, dict) else "that"


def _plain(number: Any) -> str:
    return f"{number:.6g}" if isinstance(number, float) else str(number)


def _said(content: Any) -> str:
    match content:
        case dict():
            return ", ".join(f"{name.replace('_', ' ')} {_said(value)}" for name, value in content.items())
        case list():
            return ", ".join(_said(value) for value in content)
        case _:
            return str(content).rstrip(".")


def _background(messages: Sequence[ChatMessage]) -> list[str]:
    """Return the sentences that stand before the question: prompt, documents, history. Headings and labels are left out."""
    last = max((place for place, message in enumerate(messages) if message.role == "user"), default=0)
    said = [message.text for message in messages[:last] if message.role in ("system", "developer", "user")]
    # The agent's own prompt comes first: it is how to behave, and nothing to quote.
    if messages and messages[0].role in ("system", "developer"):
        said = said[1:] if not _is_material(messages[0].text) else said
    return [sentence for text in said for sentence in _sentences(text)]


def _is_material(text: str) -> bool:
    return text.startswith(("Documents", "Context"))


def _sentences(text: str) -> list[str]:
    found = (sentence.strip() for sentence in _SENTENCE.findall(text))
    return [sentence for sentence in found if len(sentence.split()) > 2 and not sentence.endswith((":", "]"))]


def _quote(question: str, background: Sequence[str]) -> str | None:
    """Return the one or two sentences that share most with the question."""
    asked = subject_words(question)
    scored = [(len(asked & subject_words(sentence)), -place, sentence) for place, sentence in enumerate(background)]
    best = sorted((entry for entry in scored if entry[0]), reverse=True)[:2]
    return " ".join(sentence for _, _, sentence in sorted(best, key=lambda entry: -entry[1])) or None


def _summary(question: str, background: Sequence[str]) -> str:
    """Return the first sentence of the matter, and the one that holds most of its frequent words."""
    _, _, given = question.partition(":") if ":" in question else ("", "", question.partition("\n")[2])
    sentences = _sentences(given) or list(background)
    if not sentences:
        return "There is nothing here to sum up yet: give me the text after a colon."
    frequent = Counter(word for sentence in sentences for word in subject_words(sentence))
    rest = sentences[1:]
    second = max(rest, key=lambda sentence: sum(frequent[word] for word in subject_words(sentence)), default="")
    return " ".join(filter(None, (sentences[0], second)))


def _passage_of(words: int, *, seed: str) -> str:
    """Return `words` words of the handbook, from a place that the seed decides."""
    text = " ".join(passage.text for passage in PASSAGES).split()
    start = int.from_bytes(blake2b(seed.encode(), digest_size=4).digest(), "big") % len(text)
    chosen = [text[(start + place) % len(text)] for place in range(words)]
    return " ".join(chosen).rstrip(".,:;") + "." if chosen else ""


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else text[:119].rstrip() + "…"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
