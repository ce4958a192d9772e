"""A batch's body, cut anywhere: what it means, or what is wrong with it and where; and it holds nobody up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from agent_exec.batches import item
from agent_exec.contract.batch import MAX_ITEMS
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.model import MAX_BODY_BYTES
from agent_exec.errors import CallbackUrlInvalid, InvalidMessage
from api_shim.batch_body import MEDIA_TYPES, Batch, read_batch
from api_shim.problem import Refused

JSON, JSONL, _ = MEDIA_TYPES
ASKED = {"agent_id": "desk", "query": "6 * 7?"}
LARGEST = 64_000_000


async def read(
    pieces: Sequence[bytes], media_type: str = JSON, *, max_bytes: int = LARGEST, timeout_s: float = 5
) -> Batch:
    left = [*pieces]

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left) or timeout_s < 1}

    def admit(request: ExecutionRequest) -> None:
        if request.callback_url is not None and not request.callback_url.startswith("https"):
            raise CallbackUrlInvalid("A callback goes by https alone here.")

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", media_type.encode())]}
    return await read_batch(Request(scope, receive), admit=admit, max_bytes=max_bytes, timeout_s=timeout_s)


def cut(text: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


QUERIES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
REQUESTS = st.lists(
    st.fixed_dictionaries(
        {"agent_id": st.just("desk"), "query": QUERIES},
        optional={
            "priority": st.integers(0, 9),
            "deadline_s": st.sampled_from([1, 0.5, 1e3]),
            "context": st.fixed_dictionaries({"note": st.recursive(QUERIES | st.integers(), st.lists, max_leaves=4)}),
        },
    ),
    min_size=1,
    max_size=5,
)
PLACES = st.lists(st.integers(0, 10_000), max_size=12)


@settings(deadline=None)
@given(REQUESTS, PLACES, st.booleans(), st.sampled_from([None, 1]), st.sampled_from(["", "before", "behind"]))
def test_a_body_means_the_same_wherever_it_is_cut(
    requests: list[dict[str, Any]], places: list[int], is_ascii: bool, indent: int | None, told: str
) -> None:
    url = {"callback_url": "https://receiver.example/ü"}
    asked = {**(url if told == "before" else {}), "requests": requests, **(url if told == "behind" else {})}
    body = json.dumps(asked, ensure_ascii=is_ascii, indent=indent).encode()
    as_json = asyncio.run(read(cut(body, places)))
    lines = "\r\n".join(json.dumps(one, ensure_ascii=is_ascii) for one in requests).encode()
    as_lines = asyncio.run(read(cut(lines + b"\n\n" * len(places), places), JSONL))
    whole = [ExecutionRequest.model_validate_json(json.dumps(one)) for one in requests]
    assert as_json.items == as_lines.items == [item.stored(one) for one in whole]
    assert as_json.callback_url == (url["callback_url"] if told else None)
    same = {one.fingerprint.digest(callback_url=None) for one in (as_json, as_lines)}
    assert len(same) == 1
    assert as_json.fingerprint.digest(callback_url="https://receiver.example/") not in same


SHARDS = st.sampled_from(
    [
        *(
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b",",
            b'"requests"',
            b'"callback_url"',
            b'"https://a.b"',
            b" ",
            b"1",
            b"-",
            b'"',
        ),
        *(b"\\", json.dumps(ASKED).encode(), b"null", b"NaN", b"\xff", b"\xc3", b"\n"),
    ]
)


@settings(deadline=None, max_examples=400)
@given(st.lists(SHARDS, max_size=14).map(b"".join), PLACES, st.sampled_from(MEDIA_TYPES))
def test_any_body_is_a_batch_or_a_stated_error(body: bytes, places: list[int], media_type: str) -> None:
    try:
        batch = asyncio.run(read(cut(body, places), media_type))
    except (Refused, InvalidMessage):
        return
    text = body.decode()
    asked = (
        json.loads(text)["requests"]
        if media_type == JSON
        else [json.loads(line) for line in text.split("\n") if line.strip()]
    )
    assert [json.loads(one) for one in batch.items] == asked


def wrong(body: bytes, media_type: str = JSON) -> list[tuple[str, str]]:
    with pytest.raises(InvalidMessage) as refused:
        asyncio.run(read([body], media_type))
    assert "Nothing was stored" in str(refused.value) or len(refused.value.complaints) <= 1
    return list(refused.value.complaints)


def test_what_is_wrong_is_told_by_line_and_field() -> None:
    lines = [json.dumps(ASKED)] * 4
    lines[1] = json.dumps({**ASKED, "priority": 10, "surprise": 1})
    lines[2] = "no json"
    lines.append(json.dumps({**ASKED, "callback_url": "http://receiver.example"}))
    lines.append('{"agent_id": "desk", "agent_id": "desk", "query": "?"}')
    told = wrong("\n".join(lines).encode(), JSONL)
    assert [place for place, _ in told] == ["line 2.priority", "line 2.surprise", "line 3", "line 5", "line 6"]
    assert "not UTF-8 JSON at character 0" in told[2][1]
    assert "https" in told[3][1]
    assert "twice" in told[4][1]


def test_what_is_wrong_is_told_by_index_and_field() -> None:
    asked = [ASKED, {**ASKED, "priority": 10}, 7, {}]
    told = wrong(json.dumps({"requests": asked, "callback_url": 7}).encode())
    assert [place for place, _ in told] == [
        "requests.1.priority",
        "requests.2.",
        "requests.3.agent_id",
        "requests.3.query",
        "callback_url",
    ]


def test_of_many_wrong_ones_the_first_ten_are_told() -> None:
    told = wrong(b"{}\n" * 1_000, JSONL)
    assert len(told) == 10
    assert told[-1][0] == "line 5.query"


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"{}", "requests"),
        (b'{"requests": []}', "requests"),
        (b'{"requests": 7}', "requests"),
        (b'{"requests": [{"agent_id": "desk", "query": "?"}], "surprise": {"deep": [1]}}', "surprise"),
        (json.dumps({"requests": [ASKED] * (MAX_ITEMS + 1)}).encode(), "requests"),
        (b'{"requests": [' + b"[" * 100_000, None),
        (b'{"requests": [' + json.dumps(ASKED).encode() + b'], "requests": []}', None),
    ],
)
def test_a_body_that_is_no_batch_is_told(body: bytes, place: str | None) -> None:
    assert [field for field, _ in wrong(body)] == ([] if place is None else [place])


@pytest.mark.parametrize(("body", "place"), [(b"", "requests"), (b"\n \n", "requests")])
def test_no_lines_are_no_batch(body: bytes, place: str) -> None:
    assert wrong(body, JSONL) == [(place, "There are none.")]


def test_a_line_of_over_a_megabyte_is_none() -> None:
    long = json.dumps({**ASKED, "context": {"note": "x" * MAX_BODY_BYTES}}).encode()
    said = f"A request has at most {MAX_BODY_BYTES} bytes."
    assert wrong(long + b"\n", JSONL) == [("line 1", said)]
    assert wrong(b'{"requests": [' + long + b"]}") == [("requests.0", said)]
    with pytest.raises(InvalidMessage, match="Behind character 14: A request has at most"):
        asyncio.run(read(cut(b'{"requests": ["' + b"x" * 9_000_000, range(0, 9_000_000, 64_000))))


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"", "character 0"),
        (b"[]", "character 0"),
        (b'{"requests": [{]}', "character 15"),
        (b'{"requests": [1 2]}', "character 16"),
        (b'{"requests": [], }', "character 17"),
        (b'{"requests": [],', "character 16"),
        (b'{"requests": [{}, ]}', "character 18"),
        (b'{"requests" []}', "character 12"),
        (b"{requests: []}", "character 1"),
        (b'{"requests": [] "callback_url": null}', "character 16"),
        (b'{"callback_url": null} {}', "character 23"),
        (b'{"requests": ["\xff"]}', "UTF-8"),
        (b'{"callback_url": "\xc3', "UTF-8"),
    ],
)
def test_what_is_no_json_is_told_by_its_place(body: bytes, where: str) -> None:
    for pieces in ([body], [body[index : index + 1] for index in range(len(body))] or [b""]):
        with pytest.raises(Refused) as refused:
            asyncio.run(read(pieces))
        assert refused.value.code == "invalid_json"
        assert where in str(refused.value)


def test_a_body_that_is_too_large_or_too_slow_is_refused() -> None:
    line = json.dumps(ASKED).encode() + b"\n"
    for problem, reading in (
        ("body_too_large", read([line] * 10, JSONL, max_bytes=9 * len(line))),
        ("body_timeout", read([line], JSONL, timeout_s=0.05)),
        ("unsupported_media_type", read([line], "text/csv")),
    ):
        with pytest.raises(Refused) as refused:
            asyncio.run(reading)
        assert refused.value.code == problem


@pytest.mark.parametrize("media_type", [JSON, JSONL])
async def test_ten_thousand_requests_hold_nobody_up(media_type: str) -> None:
    asked = [{**ASKED, "query": f"What is {index} * 7? " + "x" * 200} for index in range(MAX_ITEMS)]
    lines = "".join(json.dumps(one) + "\n" for one in asked)
    body = (json.dumps({"requests": asked}) if media_type == JSON else lines).encode()
    held_s: list[float] = []

    async def watch() -> None:
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(0)
            held_s.append(time.perf_counter() - began_s)

    watching = asyncio.create_task(watch())
    batch = await read(cut(body, range(0, len(body), 65_536)), media_type)
    watching.cancel()
    assert len(batch.items) == MAX_ITEMS
    held_s.sort()
    assert held_s[-3] < 0.05, "twice 5 ms and a noisy machine"
