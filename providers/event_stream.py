"""Server-sent events: bytes in any portions → events.

Owns lines, fields, and what real servers get wrong about them. Does not know what the events say. No I/O.
Source: WHATWG HTML, "Server-sent events", 9.2.6 "Interpreting an event stream".
"""

from __future__ import annotations

from typing import NamedTuple

#: One event. A tool call may come whole in one: 256,000 characters of arguments, most of them escaped as `\\uXXXX`.
MAX_EVENT_BYTES = 2_097_152
#: Of an answer that is no event stream, as much as it takes to say what it is.
MAX_STRAY_BYTES = 4_096

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLong(ValueError):
    """One event is longer than MAX_EVENT_BYTES."""


class Event(NamedTuple):
    """One event; `name` is empty for an unnamed one."""

    name: bytes
    data: bytes


class EventStream:
    """Splits one stream. Keeps at most one event in memory."""

    def __init__(self) -> None:
        """Start before the first byte."""
        self._tail = bytearray()
        self._after_cr = False
        self._at_start = True
        self._name = b""
        self._data: list[bytes] = []
        self._data_bytes = 0
        #: The first lines that are no field of an event stream.
        self.stray = bytearray()

    def feed(self, piece: bytes) -> list[Event]:
        """Return the events that `piece` completes.

        Raises:
            EventTooLong: one event passes MAX_EVENT_BYTES.
        """
        if not piece:
            return []
        if piece.startswith(b"data: {") and piece.endswith(b"}\n\n") and self._is_between_events:
            only = piece[6:-2]
            # One event, as most servers send each by itself.
            if len(only) <= MAX_EVENT_BYTES and b"\n" not in only and b"\r" not in only:
                return [Event(b"", only)]
        if self._after_cr:
            piece = piece.removeprefix(b"\n")
        self._after_cr = piece.endswith(b"\r")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = piece.split(b"\n")
        events: list[Event] = []
        if lines and self._tail:
            lines[0] = bytes(self._tail) + lines[0]
            self._tail.clear()
        for line in lines:
            self._line(line, events)
        self._tail += rest
        if len(self._tail) > MAX_EVENT_BYTES:
            raise EventTooLong
        return events

    @property
    def _is_between_events(self) -> bool:
        return not (self._at_start or self._tail or self._data or self._name or self._after_cr)

    def end(self) -> list[Event]:
        """Return what the last bytes hold: servers leave out the blank line that the standard asks for."""
        events: list[Event] = []
        self._line(bytes(self._tail), events)
        self._tail.clear()
        self._dispatch(events)
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            self._dispatch(events)
        elif line.startswith(b"data:"):
            self._add_data(line[6:] if line[5:6] == b" " else line[5:], events)
        elif line.startswith(b"event:"):
            self._name = line[6:].strip()
        elif line.startswith(b"error:"):  # llama.cpp, for years: the event's name in the place of `data`
            self._add_data(line[6:].strip(), events)
            self._name = b"error"
        elif not line.startswith((b":", b"id:", b"retry:")) and len(self.stray) < MAX_STRAY_BYTES:
            self.stray += line[:MAX_STRAY_BYTES] + b"\n"

    def _add_data(self, data: bytes, events: list[Event]) -> None:
        if self._data and self._data[-1].endswith(b"}") and data.startswith((b"{", b"[DONE]")):
            # The blank line between two events is missing: no JSON text goes on like this.
            self._dispatch(events)
        self._data.append(data)
        self._data_bytes += len(data)
        if self._data_bytes > MAX_EVENT_BYTES:
            raise EventTooLong

    def _dispatch(self, events: list[Event]) -> None:
        if self._data:
            events.append(Event(self._name, self._data[0] if len(self._data) == 1 else b"\n".join(self._data)))
            self._data = []
            self._data_bytes = 0
        self._name = b""
