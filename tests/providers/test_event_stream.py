from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.event_stream import MAX_EVENT_BYTES, MAX_STRAY_BYTES, Event, EventStream, EventTooLong


def events_of(*pieces: bytes) -> list[Event]:
    stream = EventStream()
    return [event for piece in pieces for event in stream.feed(piece)] + stream.end()


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        pytest.param(b"data: a\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")], id="line feeds"),
        pytest.param(
            b"data: a\r\n\r\ndata: b\r\n\r\n", [(b"", b"a"), (b"", b"b")], id="carriage returns and line feeds"
        ),
        pytest.param(b"data: a\r\rdata: b\r\r", [(b"", b"a"), (b"", b"b")], id="carriage returns"),
        pytest.param(b"data:a\n\n", [(b"", b"a")], id="no space"),
        pytest.param(b"data:  a\n\n", [(b"", b" a")], id="one space is the field's, the second the value's"),
        pytest.param(b": ping\n\n:\n\ndata: a\n\n: bye\n\n", [(b"", b"a")], id="comments"),
        pytest.param(b"id: 7\nretry: 3\nevent: error\ndata: a\n\n", [(b"error", b"a")], id="other fields"),
        pytest.param(b"event: x\n\ndata: a\n\n", [(b"", b"a")], id="a name without data"),
        pytest.param(b"data: a\ndata: b\n\n", [(b"", b"a\nb")], id="data of two lines"),
        pytest.param(
            b'data: {"a":1}\ndata: {"b":2}\ndata: [DONE]\n',
            [(b"", b'{"a":1}'), (b"", b'{"b":2}'), (b"", b"[DONE]")],
            id="no blank lines",
        ),
        pytest.param(b"data: a", [(b"", b"a")], id="no end of line"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")], id="byte order mark"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_events_come_out_however_the_bytes_are_cut(octets: bytes, expected: list[tuple[bytes, bytes]]) -> None:
    assert events_of(octets) == expected
    assert events_of(*(octets[at : at + 1] for at in range(len(octets)))) == expected
    assert events_of(b"", *(octets[at : at + 3] for at in range(0, len(octets), 3)), b"") == expected


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"data: x", b"\n", b"\r", b"\r\n", b"event: e\n", b":"])))
def test_cuts_never_matter(pieces: list[bytes]) -> None:
    octets = b"".join(pieces)
    assert events_of(*pieces) == events_of(octets) == events_of(*(bytes([octet]) for octet in octets))


def test_what_is_no_event_stream_is_kept_in_part() -> None:
    stream = EventStream()
    assert stream.feed(b"<html>\n" * 10_000) == []
    assert MAX_STRAY_BYTES <= len(stream.stray) <= MAX_STRAY_BYTES + len(b"<html>\n")


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        pytest.param(b"data: ", b"x" * 65_536, id="one line"),
        pytest.param(b"data: x\ndata: ", b"x" * 65_536, id="a second line"),
        pytest.param(b"", b"data: xxxxxx\n" * 10_000, id="short lines"),
        pytest.param(b"", b"x" * 65_536, id="no field"),
    ],
)
def test_an_endless_event_is_refused(begin: bytes, more: bytes) -> None:
    stream = EventStream()
    stream.feed(begin)
    with pytest.raises(EventTooLong):
        feed_for_ever(stream, more)


def feed_for_ever(stream: EventStream, more: bytes) -> None:
    for _ in range(100 * MAX_EVENT_BYTES // len(more)):
        stream.feed(more)
