"""What is handed to Celery, and what becomes a dead letter instead."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_exec.broker.envelope import Malformed, open_envelope
from agent_exec.broker.fair_queue import Delivery
from agent_exec.hint import Hint

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def message(**changes: Any) -> dict[str, Any]:
    """A good message; a change's key is a path, `headers.eta`."""
    wire: dict[str, Any] = json.loads(
        Hint(tenant_id="t", agent_id="a", execution_id="e", step="prompt", priority=3).message()
    )
    for path, value in changes.items():
        *parents, name = path.split(".")
        at = wire
        for parent in parents:
            at = at[parent]
        at[name] = value
    return wire


def body(content: Any) -> str:
    return base64.b64encode(json.dumps(content).encode()).decode()


def opened(raw: bytes | str, earlier: int = 0) -> dict[str, Any] | Malformed:
    text = raw.encode() if isinstance(raw, str) else raw
    delivery = Delivery(delivery="t#1", queue="agent_execution:t", message=text, earlier_deliveries=earlier)
    return open_envelope(delivery, now=NOW)


def test_a_good_message_is_opened() -> None:
    wire = opened(json.dumps(message()))
    assert isinstance(wire, dict)
    assert wire["properties"]["delivery_tag"] == "t#1"
    assert wire["properties"]["delivery_info"] == {"exchange": "", "routing_key": "agent_execution:t"}
    assert "redelivered" not in wire["headers"]


def test_a_redelivery_says_so() -> None:
    wire = opened(json.dumps(message()), earlier=2)
    assert isinstance(wire, dict)
    assert wire["headers"]["redelivered"] is True
    assert wire["properties"]["delivery_info"]["redelivery_count"] == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"headers.expires": "2026-01-01T00:00:01"},
        {"headers.expires": "2026-01-01T01:00:01+01:00"},
        {"headers.timelimit": [30, 20.5]},
        {"headers.group": None, "headers.shadow": "x"},
        {"properties.body_encoding": "utf-8", "body": "[[], {}, {}]"},
        {"body": body([[], {}, {"callbacks": [{"task": "x"}], "chain": [], "chord": {"task": "y"}, "errbacks": None}])},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_celery_may_send(changes: dict[str, Any]) -> None:
    assert isinstance(opened(json.dumps(message(**changes))), dict)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "the message is not JSON"),
        ("null", "the message is null and not an object"),
        ("[]", "the message is of type list"),
        (b"\xff\xfe", "the message is not JSON: UnicodeDecodeError"),
        ("[" * 100_000, "the message is not JSON: RecursionError"),
        ('{"__type__": "datetime", "__value__": 5}', "the message is not JSON: TypeError"),
        ("{}", "its properties are null"),
        ('{"properties": {}}', "its headers are null"),
    ],
)
def test_what_is_no_message(raw: bytes | str, reason: str) -> None:
    wrong = opened(raw)
    assert isinstance(wrong, Malformed)
    assert wrong.reason.startswith(reason)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("properties", [], "its properties are of type list"),
        ("properties.delivery_info", 5, "its delivery_info is not an object"),
        ("properties.correlation_id", 5, "its correlation_id is of type int"),
        ("properties.reply_to", {}, "its reply_to is of type dict"),
        ("properties.body_encoding", "rot13", "its body_encoding is neither"),
        ("headers", None, "its headers are null"),
        ("headers.task", None, "its header 'task' is missing"),
        ("headers.task", "", "its header 'task' is missing"),
        ("headers.id", 5, "its header 'id' is missing or no string"),
        ("headers.root_id", 5, "its header 'root_id' is of type int"),
        ("headers.retries", -5, "its header 'retries' is not a number from 0 on"),
        ("headers.retries", True, "its header 'retries' is not a number from 0 on"),
        ("headers.eta", "9999-01-01T00:00:00", "it has an eta or a countdown"),
        ("headers.expires", "2026-01-01T00:00:00", "it expired before its turn came"),
        ("headers.expires", "soon", "its header 'expires' is no ISO date"),
        ("headers.expires", 5, "its header 'expires' is no ISO date"),
        ("headers.timelimit", 5, "its header 'timelimit' is not a pair"),
        ("headers.timelimit", [None, -1], "its header 'timelimit' is not a pair"),
        ("headers.timelimit", ["a", "b"], "its header 'timelimit' is not a pair"),
        ("headers.stamps", [], "its header 'stamps' is not an object"),
        ("headers.stamped_headers", {}, "its header 'stamped_headers' is not a list"),
        ("headers.compression", "application/x-gzip", "it is compressed"),
        ("content-type", "application/x-python-serialize", "its content type is 'application/x-python-serialize'"),
        ("content-type", "application/x-yaml", "its content type is 'application/x-yaml'"),
        ("content-type", None, "its content type is 'None'"),
        ("content-encoding", "binary", "its content encoding is not utf-8"),
        ("body", None, "its body is null"),
        ("body", [[], {}, {}], "its body is of type list"),
        ("body", "no base64!", "its body is not JSON in base64"),
        ("body", base64.b64encode(b"{").decode(), "its body is not JSON in base64"),
        ("body", body(None), "its body is not a list"),
        ("body", body([[], {}]), "its body is not a list"),
        ("body", body([{}, [], {}]), "its body is not a list"),
        ("body", body([[], {}, None]), "its body is not a list"),
        ("body", body([[], {"at": {"__type__": "uuid", "__value__": 5}}, {}]), "its body is not JSON in base64"),
        ("body", body([[], {}, {"callbacks": 5}]), "its option 'callbacks' is not a list of signatures"),
        ("body", body([[], {}, {"chain": [5]}]), "its option 'chain' is not a list of signatures"),
        ("body", body([[], {}, {"chord": {}}]), "its option 'chord' is not a signature"),
    ],
)
def test_what_celery_must_not_see(path: str, value: Any, reason: str) -> None:
    wrong = opened(json.dumps(message(**{path: value})))
    assert isinstance(wrong, Malformed)
    assert wrong.reason.startswith(reason)


@pytest.mark.parametrize("task", ["agent_exec.prompt", "agent_exec.execute"])
@pytest.mark.parametrize(("size", "allowed"), [(16_384, {"prompt", "execute"}), (16_385, {"execute"})])
def test_a_hint_is_small_and_a_request_may_be_large(task: str, size: int, allowed: set[str]) -> None:
    wire = message(**{"headers.task": task, "headers.argsrepr": ""})
    wire["headers"]["argsrepr"] = "x" * (size - len(json.dumps(wire)))
    wrong = opened(json.dumps(wire))
    if task.removeprefix("agent_exec.") in allowed:
        assert isinstance(wrong, dict)
    else:
        assert wrong == Malformed("has 16385 bytes; at most 16384 are taken")


def test_what_no_kind_of_message_may_be_is_not_decoded() -> None:
    assert opened("x" * 1_500_001) == Malformed("has 1500001 bytes; at most 1500000 are taken")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PATHS = [
    *(f"headers.{name}" for name in message()["headers"]),
    *(f"properties.{name}" for name in message()["properties"]),
]
PATHS += list(message())


@given(changes=st.dictionaries(st.sampled_from(PATHS), JSON, max_size=3), earlier=st.integers(0, 3))
def test_nothing_raises(changes: dict[str, Any], earlier: int) -> None:
    ordered = dict(sorted(changes.items(), key=lambda item: -item[0].count(".")))
    assert isinstance(opened(json.dumps(message(**ordered)), earlier), dict | Malformed)


@given(st.binary(max_size=50))
def test_no_bytes_raise(raw: bytes) -> None:
    assert isinstance(opened(raw), Malformed)
