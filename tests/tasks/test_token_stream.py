"""The text that a stream keeps, and how a process tells what all its streams have gathered; one alone is in test_step.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.exceptions import ResponseError

from agent_exec.errors import StorageUnavailable
from agent_exec.ledger.ledger import Hold, StepRef
from agent_exec.store import Store
from tasks import token_stream
from tasks.pace import MAX_EVENTS, WIDENS_FROM
from tasks.token_stream import Teller, TokenStream


class Log:
    """A store that notes what it is told, and answers as the test says."""

    def __init__(self, answers: Sequence[Exception | None] = ()) -> None:
        self.calls: list[list[tuple[str, int, str]]] = []
        self.answers = list(answers)
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def run(self, call: Any) -> list[str]:
        parts = call.args[1:]
        pieces = [(parts[at + 1], parts[at + 4], parts[at + 5]) for at in range(0, len(parts), 6)]
        self.calls.append(pieces)
        await self.may_answer.wait()
        if "broken" in [name for name, _, _ in pieces]:
            raise ResponseError("WRONGTYPE")
        if self.answers and (error := self.answers.pop(0)) is not None:
            raise error
        return ["told"] * len(pieces)

    insist = run

    async def told(self, count: int) -> None:
        """Wait for so many calls."""
        while len(self.calls) < count:
            await asyncio.sleep(0)


def streams(log: Any, *names: str, flush_ms: int = 1, flush_bytes: int = 4_096) -> list[TokenStream]:
    """Return streams of one process, each of an execution of that name."""
    teller = Teller(log, flush_ms=flush_ms, flush_bytes=flush_bytes)
    return [TokenStream(teller, Hold(StepRef("acme", name, "completion.1"), 1)) for name in names]


def said(token: str) -> str:
    """Return the event of a token."""
    return f'{{"token":"{token}","is_final":false}}'


@pytest.mark.parametrize(
    "tokens",
    [["Hello", " ", "Lima"], ["¿Qué", " tal", "? 晴れ"], ["\ud83d", "\ude00"], ["half a pair: \ud83d"], []],
    ids=ascii,
)
async def test_the_text_is_the_tokens_joined(tokens: list[str]) -> None:
    store = Store("redis://127.0.0.1:1")  # which is not asked: the stream is stopped before it tells
    [stream] = streams(store, "one", flush_ms=60_000)
    for token in tokens:
        await stream.put(token)
    assert stream.text == "".join(tokens)
    assert await stream.rest() == stream.text
    await store.aclose()


async def test_all_streams_of_a_process_are_told_in_one_call() -> None:
    log = Log()
    one, two = streams(log, "one", "two")
    for stream in (one, two, one):
        await stream.put("a")
    await log.told(1)
    assert log.calls == [[("one", 1, said("aa")), ("two", 1, said("a"))]]


async def test_no_call_tells_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_stream, "AT_ONCE", 2)
    log = Log()
    for stream in streams(log, "one", "two", "three"):
        await stream.put("a")
    await log.told(2)
    assert [len(call) for call in log.calls] == [2, 1]


async def test_what_got_no_answer_is_told_again_under_its_number_with_nothing_added() -> None:
    log = Log([StorageUnavailable("away")])
    [stream] = streams(log, "one")
    await stream.put("a")
    await log.told(1)
    await stream.put("b")
    await log.told(3)
    assert log.calls == [[("one", 1, said("a"))]] * 2 + [[("one", 2, said("b"))]]


async def test_a_fault_of_one_execution_is_nobody_elses() -> None:
    log = Log()
    one, broken, two = streams(log, "one", "broken", "two")
    for stream in (one, broken, two):
        await stream.put("a")
    await log.told(4)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for stream in (one, two):
        await stream.put("b")
    with pytest.raises(ResponseError):
        await broken.put("b")
    await log.told(5)
    assert log.calls[4] == [("one", 2, said("b")), ("two", 2, said("b"))]


async def test_a_caller_that_is_cancelled_while_the_log_is_slow_takes_nobody_along() -> None:
    log = Log()
    log.may_answer.clear()
    one, two = streams(log, "one", "two", flush_bytes=1)
    waiting = [asyncio.create_task(stream.put("a")) for stream in (one, two)]
    await log.told(1)
    waiting[0].cancel()
    log.may_answer.set()
    await waiting[1]
    assert waiting[0].cancelled()
    assert [call[0][:2] for call in log.calls] == [("one", 1), ("two", 1)]
    assert await one.rest() == await two.rest() == ""


async def test_a_later_attempts_tokens_say_so() -> None:
    teller = Teller(Log(), flush_ms=1, flush_bytes=4_096)  # type: ignore[arg-type]  # it is asked nothing
    stream = TokenStream(teller, Hold(StepRef("acme", "one", "completion.1"), 3))
    assert stream.event("a", is_final=True).json == '{"token":"a","is_final":true,"attempt":3}'


async def test_a_token_after_a_pause_is_told_at_once_and_those_behind_it_together() -> None:
    log = Log()
    [stream] = streams(log, "one", flush_ms=60_000)
    await stream.put("a")
    await log.told(1)
    for token in "bcd":
        await stream.put(token)
        await asyncio.sleep(0)
    assert log.calls == [[("one", 1, said("a"))]]
    assert await stream.rest() == "bcd"


@pytest.mark.parametrize("flush_ms", [0, 1])
async def test_past_a_number_of_events_text_is_gathered_longer(monkeypatch: pytest.MonkeyPatch, flush_ms: int) -> None:
    after_s = [0.001]
    monkeypatch.setattr(token_stream, "flush_after_s", lambda events, flush_ms: after_s[0])
    log: Any = Log()
    teller = Teller(log, flush_ms=flush_ms, flush_bytes=2)
    stream = TokenStream(teller, Hold(StepRef("acme", "one", "completion.1"), 1), events=WIDENS_FROM - 1)
    await stream.put("ab")
    await log.told(1)  # the last one at the usual pace
    after_s[0] = 60.0
    await stream.put("cd")
    await stream.put("ef")
    assert len(log.calls) == 1, "nor do many bytes make it sooner"
    after_s[0] = 0.0
    await stream.put("g")
    await log.told(2)
    assert log.calls[1] == [("one", 2, said("cdefg"))]


async def test_at_the_cap_text_is_told_with_the_end_of_its_step_alone() -> None:
    log: Any = Log()
    teller = Teller(log, flush_ms=0, flush_bytes=1)
    stream = TokenStream(teller, Hold(StepRef("acme", "one", "completion.1"), 1), events=MAX_EVENTS)
    for token in "abc":
        await stream.put(token)
    assert (log.calls, await stream.rest()) == ([], "abc")
