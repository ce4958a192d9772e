"""The ledgers outside, asked over HTTP: what the provider, the tools and the orchestrator have seen.

Owns the form of the sandbox's journals. Does not know what should be in them.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import httpx

from chaos.evidence import CANARY, Callback, Notice, ProviderCall, ToolCall
from sandbox.supervised import Failed

#: What a request's prompt begins with, so that the provider's journal tells whose a call was.
MARK = re.compile(r"mark-\d+")
_CANARIES = re.compile(rf"{CANARY}[a-z0-9]+")
#: How long one look at the frames waits for the first.
LONG_POLL_S = 1.0


class Neighbours:
    """The sandbox at one address."""

    def __init__(self, url: str) -> None:
        """Take the address; nothing connects before the first question."""
        self.url = url
        #: Where callbacks are taken; behind it comes whose they are.
        self.hooks_url = f"{url}/receiver/hooks"
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def expect(self, *, agent_id: str, prompts: Mapping[str, str]) -> None:
        """Have Agent Management know tenants, each with an agent of its own prompt, a tool that reads and one that acts."""
        for tenant_id, prompt in prompts.items():
            self._post("/management/_tenants", {"tenant_id": tenant_id, "plan": "pro"})
            agent = {
                "tenant_id": tenant_id,
                "agent_id": agent_id,
                "system_prompt": prompt,
                "tools": ["calculator", "send_note"],
            }
            self._post("/management/_agents", agent)

    def close_sockets(self) -> None:
        """Have the orchestrator drop whoever is connected, and take them again."""
        self._post("/orchestrator/_mode", {"refuse": 503})
        self._post("/orchestrator/_mode", {})

    def calls(self, worker_of_key: Mapping[str, str]) -> tuple[ProviderCall, ...]:
        """Return L-prov."""
        return tuple(
            ProviderCall(
                mark=_mark_in(call["question"]),
                turn=call["turn"],
                worker=worker_of_key.get(call["key_fingerprint"], call["key_fingerprint"]),
                at_ms=call["at_ms"],
                ended_at_ms=call["ended_at_ms"],
                outcome=call["outcome"],
                canaries=tuple(call["canaries"]),
            )
            for call in self._whole_journal("/openai/journal")["calls"]
        )

    def tool_calls(self) -> tuple[tuple[ToolCall, ...], Mapping[str, int]]:
        """Return L-tool, and how often each key took effect."""
        journal = self._whole_journal("/registry/journal")
        calls = tuple(
            ToolCall(
                tenant_id=call["tenant_id"],
                execution_id=call["execution_id"],
                tool=call["tool"],
                tool_call_id=call["tool_call_id"],
                key=call["idempotency_key"] or "",
                at_ms=call["at_ms"],
                canaries=tuple(call["canaries"]),
            )
            for call in journal["calls"]
        )
        return calls, journal["effects"]

    def callbacks(self) -> tuple[Callback, ...]:
        """Return L-hook."""
        return tuple(
            Callback(
                tenant_id=arrival["path"],
                execution_id=arrival["webhook_id"],
                at_ms=arrival["received_at_ms"],
                digest=arrival["body_sha256"],
                canaries=tuple(arrival["canaries"]),
                fault=arrival["fault"],
            )
            for arrival in self._whole_journal("/receiver/callbacks", of="callbacks")["callbacks"]
        )

    def frames(self, after: int) -> tuple[int, list[Notice]]:
        """Return L-orch past `after`, and where it ends now; waits a moment for the first."""
        answer = self._get("/orchestrator/frames", after=after, wait_s=LONG_POLL_S)
        last = max((frame["number"] for frame in answer["frames"]), default=after)
        return last, [_notice(frame) for frame in answer["frames"]]

    def _whole_journal(self, path: str, *, of: str = "calls") -> Any:
        journal = self._get(path)
        if journal["last"] != len(journal[of]):
            raise Failed(
                f"{path} has forgotten its oldest {of}: run fewer executions, or raise sandbox/journal.py's bound."
            )
        return journal

    def _get(self, path: str, **parameters: Any) -> Any:
        return self._http.get(path, params=parameters).raise_for_status().json()

    def _post(self, path: str, body: Any) -> None:
        self._http.post(path, json=body).raise_for_status()


class Watcher:
    """L-orch, gathered while the service runs: the sandbox keeps the last frames alone."""

    def __init__(self, neighbours: Neighbours) -> None:
        """Take whom to ask."""
        self.notices: list[Notice] = []
        #: The executions whose terminal event has arrived.
        self.ended: set[str] = set()
        self.changed = threading.Condition()
        self._neighbours = neighbours
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take what has arrived so far, and no more."""
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        last = 0
        while True:
            stopping = self._stopping.is_set()
            try:
                last, notices = self._neighbours.frames(last)
            except httpx.TransportError:  # they end only with everything else
                time.sleep(LONG_POLL_S)
                continue
            self.notices += notices
            ended = {one.execution_id for one in notices if one.event in _TERMINAL}
            if ended:
                with self.changed:
                    self.ended |= ended
                    self.changed.notify_all()
            if stopping and not notices:
                return


_TERMINAL = ("agent_execution_completed", "agent_execution_failed")


def canaries_of(text: str) -> tuple[str, ...]:
    """Return the canaries in a text."""
    return tuple(sorted(set(_CANARIES.findall(text))))


def frame_digest(frame: Any) -> str:
    """Return the digest of a frame, blind to the order of its fields."""
    return blake2b(json.dumps(frame, sort_keys=True).encode(), digest_size=8).hexdigest()


def _mark_in(question: str) -> str:
    found = MARK.search(question)
    return found[0] if found else question


def _notice(arrival: Mapping[str, Any]) -> Notice:
    frame = arrival["frame"]
    if arrival["fault"] is not None:
        frame = frame if isinstance(frame, dict) else {}
    return Notice(
        execution_id=str(frame.get("execution_id", "")),
        tenant_id=str(frame.get("tenant_id", "")),
        event_id=str(frame.get("event_id", "")),
        sequence=int(frame.get("sequence", 0)),
        event=str(frame.get("event", "")),
        at_ms=arrival["received_at_ms"],
        digest=frame_digest(frame),
        canaries=canaries_of(json.dumps(frame)),
        fault=arrival["fault"],
    )
