"""A process of the service that dies at a point: `python -m tests.service.crashing POINT MODULE [argument…]`.

Owns the points, and the dying. The module runs as it does under `python -m` (`agent-exec` is the command of that name), and
nothing of it is changed: everything that it does to Redis, to a provider or to a neighbour passes through a few functions,
and these are watched.

A point is `before:EFFECT` or `after:EFFECT`, and `@2` behind it means the second time. An effect is a script by its folder
and name, and, where one is meant, the kind of step that it is about: `ledger.record:completion`, `broker.ack:plain`.
Or it is a request: `agent_management.get`, `tool_registry.post`, `callback.post`,
`provider.stream` with `provider.head` for its beginning. After a script means that it has taken effect, and that nobody has
seen its reply.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from agent_exec.broker import fair_queue
from agent_exec.script import Call, Script
from agent_exec.store import BlockingStore, Store

ROOT = Path(__file__).parent.parent.parent
#: Every script, by the digest that its calls bear.
SCRIPTS = {
    Script.load(path).sha: f"{path.parent.parent.name}.{path.stem}"
    for package in ("agent_exec", "notifier", "providers")
    for path in (ROOT / package).rglob("lua/*.lua")
    if not path.name.startswith("_")
}
#: What a worker's broker does on connections of its own, beside the store.
OF_THE_BROKER = ("ack", "pop", "renew")
#: What looks for due work, and is an effect where there was some.
TAKING_UP = ("ledger.due", "batches.due", "schedules.due")

_KIND = re.compile(r"(?:^|\.)(prompt|operation|completion|tool_call)(?:\.|$)|^(plain)-")
#: Where a ledger's script has the step's name, a push the tag, and a settlement the deliveries.
_NAMED_WITHIN = 3


class Point:
    """Where to die."""

    def __init__(self, text: str) -> None:
        """Read a point."""
        self.text = text
        self.side, _, rest = text.partition(":")
        self.effect, _, nth = rest.partition("@")
        self._left = int(nth or 1)

    def reached(self, side: str, effect: str) -> bool:
        """Say whether this is the moment; asked once for every effect on either side."""
        if side != self.side or not f"{effect}:".startswith(f"{self.effect}:"):
            return False
        self._left -= 1
        return self._left == 0

    def at(self, side: str, effect: str) -> None:
        """Die if this is the moment."""
        if self.reached(side, effect):
            self.die()

    def die(self) -> NoReturn:
        """Die as under a power cut."""
        os.write(2, f"\ndied {self.text}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(1)

    def cut(self, calls: Sequence[Call[Any]]) -> int | None:
        """Return how many of these calls, which travel together, still reach Redis; None for all, and life goes on."""
        for index, call in enumerate(calls):
            effect = effect_of(call)
            if self.reached("before", effect):
                return index
            if effect not in TAKING_UP and self.reached("after", effect):
                return index + 1
        return None

    def had_something(self, call: Call[Any], reply: Any) -> None:
        """Taking up due work is an effect when there was some."""
        effect = effect_of(call)
        if effect in TAKING_UP:
            due = call.parse(reply)
            if (due.hints or due.ends) if effect == "ledger.due" else due:
                self.at("after", effect)


def effect_of(call: Call[Any]) -> str:
    """Return the name of what a call does."""
    script = SCRIPTS[call.script.sha]
    kinds = [found[1] or found[2] for text in call.args[:_NAMED_WITHIN] if (found := _KIND.search(str(text)))]
    return ":".join([script, *kinds[:1]])


def watch(point: Point) -> None:
    """Have this process die at the point."""
    _watch_stores(point)
    if point.effect.startswith("broker."):
        _watch_broker(point)
    elif point.effect.startswith("provider."):
        _watch_providers(point)
    elif point.effect == "callback.post":
        _watch_egress(point)
    elif not point.effect.startswith(("ledger.", "notifier.", "callbacks.", "batches.", "schedules.")):
        _watch_neighbours(point)


def _watch_stores(point: Point) -> None:
    replies, blocking_replies = Store._replies, BlockingStore._replies

    async def watched(self: Store, calls: list[Call[Any]]) -> list[Any]:
        cut = point.cut(calls)
        answers = await replies(self, calls[:cut]) if cut != 0 else []
        if cut is not None:
            point.die()
        for call, answer in zip(calls, answers, strict=True):
            point.had_something(call, answer)
        return answers

    def watched_blocking(self: BlockingStore, calls: Sequence[Call[Any]]) -> list[Any]:
        cut = point.cut(calls)
        answers = blocking_replies(self, calls[:cut]) if cut != 0 else []
        if cut is not None:
            point.die()
        return answers

    Store._replies, BlockingStore._replies = watched, watched_blocking  # type: ignore[method-assign]


def _watch_broker(point: Point) -> None:
    ack = fair_queue.ack

    def watched(make: Callable[..., Call[Any]]) -> Callable[..., Call[Any]]:
        @functools.wraps(make)
        def call_that_is_watched(*args: Any, **options: Any) -> Call[Any]:
            call = make(*args, **options)
            effect = effect_of(call)
            settled = [effect_of(ack([delivery])) for delivery in options.get("done", ())]
            for one in settled:
                point.at("before", one)

            def parse(reply: Any) -> Any:
                for one in settled:
                    point.at("after", one)
                parsed = call.parse(reply)
                if isinstance(parsed, fair_queue.Delivery):
                    point.at("after", f"{effect}:{_kind(parsed.delivery)}")
                elif make.__name__ != "pop":
                    point.at("after", effect)
                return parsed

            point.at("before", effect)
            return dataclasses.replace(call, parse=parse)

        return call_that_is_watched

    for name in OF_THE_BROKER:
        setattr(fair_queue, name, watched(getattr(fair_queue, name)))


def _kind(delivery: str) -> str:
    found = _KIND.search(delivery)
    return "" if found is None else found[1] or found[2]


def _watch_providers(point: Point) -> None:
    from providers.chat_provider import ChatCall

    enter, leave = ChatCall.__aenter__, ChatCall.__aexit__

    async def entered(self: ChatCall) -> Any:
        point.at("before", "provider.stream")
        deltas = await enter(self)
        point.at("after", "provider.head")
        return deltas

    async def left(self: ChatCall, *error: Any) -> None:
        await leave(self, *error)
        if error[0] is None:
            point.at("after", "provider.stream")

    ChatCall.__aenter__, ChatCall.__aexit__ = entered, left  # type: ignore[method-assign]


def _watch_neighbours(point: Point) -> None:
    from tasks.neighbours.http import Neighbour

    ask = Neighbour.ask

    @functools.wraps(ask)
    async def watched(self: Neighbour, method: str, path: str, **options: Any) -> Any:
        effect = f"{self.name.lower().replace(' ', '_')}.{method.lower()}"
        point.at("before", effect)
        answer = await ask(self, method, path, **options)
        point.at("after", effect)
        return answer

    Neighbour.ask = watched  # type: ignore[method-assign]


def _watch_egress(point: Point) -> None:
    from notifier.egress import Egress

    post = Egress.post

    @functools.wraps(post)
    async def watched(self: Egress, url: str, **options: Any) -> Any:
        point.at("before", "callback.post")
        answer = await post(self, url, **options)
        point.at("after", "callback.post")
        return answer

    Egress.post = watched  # type: ignore[method-assign]


def main() -> None:
    """Run a module until the point is reached."""
    point, module, *arguments = sys.argv[1:]
    watch(Point(point))
    sys.argv = [module, *arguments]
    if module == "agent-exec":
        from agent_exec.cli import main as agent_exec

        agent_exec()
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
