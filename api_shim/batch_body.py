"""The body of a batch, read as it comes: JSON, or a request a line.

Owns how it is cut into requests, each of which is checked by itself and kept as it will be stored, so that of 64 MB no more
is in memory than that, and other requests are answered meanwhile. Does not know what becomes of a batch.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NoReturn

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from agent_exec.batches import item
from agent_exec.contract.batch import MAX_ITEMS, BatchRequest
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.model import MAX_BODY_BYTES
from agent_exec.errors import CallbackUrlInvalid, InvalidMessage
from api_shim.body import JSON, check_json, check_type
from api_shim.problem import MAX_COMPLAINTS, Refused, complaints_of, printable

LINES = ("application/jsonl", "application/x-ndjson")
MEDIA_TYPES = (JSON, *LINES)
#: Others have their turn after this long: a request of the usual size takes 0.1 ms.
HOLD_S = 0.005
_TOO_LONG = f"A request has at most {MAX_BODY_BYTES} bytes."
_NONE = InvalidMessage("The batch has no requests.", complaints=[("requests", "There are none.")])
_TOO_MANY = InvalidMessage(
    f"A batch has at most {MAX_ITEMS} requests.", complaints=[("requests", "There are too many.")]
)
#: Finds where a value ends; what it is is another's to say.
_FINDER = json.JSONDecoder(parse_int=len, parse_float=len)
_SPACES = re.compile(r"[ \t\r\n]*")
#: Stands for the requests where all but they are checked.
_SOME = ExecutionRequest(agent_id="a", query="q")


class Batch:
    """What has been read: the items as they are stored, a fingerprint of them, and who is told the end."""

    def __init__(self, admit: Callable[[ExecutionRequest], None]) -> None:
        """Begin with none; `admit` refuses a request for what no model can see."""
        self.items: list[str] = []
        self.fingerprint = item.Fingerprint()
        self.callback_url: str | None = None
        self._admit = admit
        self._wrong: list[tuple[str, str]] = []
        self._count = 0
        self._held_since_s = time.perf_counter()

    async def breathe(self) -> None:
        """Let others have their turn, if they have waited."""
        if time.perf_counter() - self._held_since_s > HOLD_S:
            await asyncio.sleep(0)
            self._held_since_s = time.perf_counter()

    async def take(self, text: bytes, *, place: str) -> None:
        """Take one request, which stands at `place`.

        Raises:
            InvalidMessage: there are too many requests, or so many wrong ones that no more is said of them.
        """
        self._count += 1
        if self._count > MAX_ITEMS:
            raise _TOO_MANY
        if len(text) > MAX_BODY_BYTES:
            self.found(place, _TOO_LONG)
            self.check()
        try:
            check_json(text)
            await self.breathe()
            request = ExecutionRequest.model_validate_json(text)
            self._admit(request)
        except ValidationError as error:
            self._wrong += [(f"{place}.{field}", said) for field, said in complaints_of(error)]
        except (Refused, InvalidMessage, CallbackUrlInvalid) as error:
            self._wrong.append((place, str(error)))
        else:
            if not self._wrong:
                self.items.append(item.stored(request))
                self.fingerprint.add(self.items[-1])
        if len(self._wrong) >= MAX_COMPLAINTS:
            self.check()
        await self.breathe()

    def found(self, place: str, what: str) -> None:
        """Note something wrong beside the requests."""
        self._wrong.append((place, what))

    def check(self) -> None:
        """Check that all that was read may be stored.

        Raises:
            InvalidMessage: says what is wrong, as far as it was read.
        """
        if self._wrong:
            wrong = self._wrong[:MAX_COMPLAINTS]
            said = "; ".join(f"{place}: {what.rstrip('.')}" for place, what in wrong)
            raise InvalidMessage(f"The batch breaks the contract: {said}. Nothing was stored.", complaints=wrong)
        if not self._count:
            raise _NONE


async def read_batch(
    request: Request, *, admit: Callable[[ExecutionRequest], None], max_bytes: int, timeout_s: float
) -> Batch:
    """Read and check a batch; each megabyte of it has to come within `timeout_s`.

    Raises:
        Refused: not JSON by its type or its text, too large, or too slow.
        InvalidMessage: names what is wrong, by line or by the request's index, and by field.
    """
    media_type = check_type(request, *MEDIA_TYPES)
    batch = Batch(admit)
    async with aclosing(_pieces(request, max_bytes=max_bytes, timeout_s=timeout_s)) as pieces:
        await (_read_lines(pieces, batch) if media_type in LINES else _JsonReader(pieces, batch).read())
    batch.check()
    return batch


async def _pieces(request: Request, *, max_bytes: int, timeout_s: float) -> AsyncGenerator[bytes]:
    too_large = Refused("body_too_large", f"A batch has at most {max_bytes} bytes.")
    if int(request.headers.get("content-length", "0")) > max_bytes:  # the server has checked that it is a number
        raise too_large
    began_s, size = asyncio.get_running_loop().time(), 0
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout_at(began_s + timeout_s * (1 + size / MAX_BODY_BYTES)):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            late = f"Each megabyte of the body has to come within {timeout_s:g} s."
            raise Refused("body_timeout", late, headers={"Connection": "close"}) from None
        except ClientDisconnect:
            raise Refused("invalid_json", "The connection ended within the body.") from None
        size += len(piece)
        if size > max_bytes:
            raise too_large
        yield piece


async def _read_lines(pieces: AsyncIterator[bytes], batch: Batch) -> None:
    number, rest = 0, b""
    async for piece in pieces:
        await batch.breathe()
        *lines, rest = (rest + piece).split(b"\n")
        for number, line in enumerate(lines, start=number + 1):  # noqa: B020 it goes on counting
            await _take_line(line, number, batch)
        if len(rest) > MAX_BODY_BYTES:
            break
    await _take_line(rest, number + 1, batch)


async def _take_line(line: bytes, number: int, batch: Batch) -> None:
    if line.strip():
        await batch.take(line, place=f"line {number}")


class _JsonReader:
    """Reads `{"requests": […], …}` without holding all of it."""

    def __init__(self, pieces: AsyncIterator[bytes], batch: Batch) -> None:
        self._pieces = pieces
        self._batch = batch
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._passed = 0  # characters before the text that is held
        self._is_whole = False

    async def read(self) -> None:
        """Read all of it."""
        beside: dict[str, Any] = {}
        await self._expect("{")
        while await self._goes_on("}", behind=len(beside)):
            name = await self._name()
            if name in beside:
                raise InvalidMessage(f"The body gives '{name}' twice in one object.")
            if name == "requests" and await self._next() == "[":
                self._at += 1
                index = 0
                while await self._goes_on("]", behind=index):
                    await self._batch.take((await self._value()).encode(), place=f"requests.{index}")
                    index += 1
                beside[name] = [_SOME]  # they have been checked
            else:
                text = await self._value()
                check_json(text.encode())
                beside[name] = json.loads(text)
        if await self._next():
            self._refuse()
        try:
            self._batch.callback_url = BatchRequest.model_validate(beside).callback_url
        except ValidationError as error:
            for field, wrong in complaints_of(error):
                self._batch.found(field, wrong)

    async def _goes_on(self, end: str, *, behind: int) -> bool:
        """Step to the next member of an object or a list, `behind` so many; False where it ends, and behind its end."""
        if await self._next() == "," and behind:
            self._at += 1
            if await self._next() != end:
                return True
            self._refuse()
        if self._char() != end:
            if behind:
                self._refuse()
            return True
        self._at += 1
        return False

    async def _name(self) -> str:
        """Read the name of a member, and step behind its colon."""
        if self._char() != '"':
            self._refuse()
        name: str = json.loads(await self._value())
        if name not in BatchRequest.model_fields:
            self._batch.found(printable(name), "Extra inputs are not permitted")
            self._batch.check()
        await self._expect(":")
        return name

    async def _value(self) -> str:
        """Return the text of the value that begins here, and step behind it."""
        await self._next()
        while True:
            try:
                _, end = _FINDER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._is_whole:
                    self._refuse(error.pos)
            except RecursionError:
                raise InvalidMessage("The body is nested too deep.") from None
            else:
                if end < len(self._text) or self._is_whole:  # else a number may go on
                    found, self._at = self._text[self._at : end], end
                    return found
            held = len(self._text) - self._at
            if held > MAX_BODY_BYTES:
                raise InvalidMessage(f"Behind character {self._passed + self._at}: {_TOO_LONG}")
            while not self._is_whole and len(self._text) - self._at < 2 * held:
                await self._more()

    async def _expect(self, char: str) -> None:
        if await self._next() != char:
            self._refuse()
        self._at += 1

    async def _next(self) -> str:
        """Step over spaces; return the character that is there then, '' at the end."""
        while True:
            self._at = _SPACES.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self._at < len(self._text) or self._is_whole:
                return self._char()
            await self._more()

    def _char(self) -> str:
        return self._text[self._at : self._at + 1]

    async def _more(self) -> None:
        """Read on; forget what has been taken."""
        await self._batch.breathe()
        piece = await anext(self._pieces, None)
        try:
            text = self._decoder.decode(piece or b"", final=piece is None)
        except UnicodeDecodeError as error:
            raise Refused("invalid_json", f"The body is not UTF-8: {error.reason}.") from None
        self._is_whole = piece is None
        self._passed += self._at
        self._text, self._at = self._text[self._at :] + text, 0

    def _refuse(self, at: int | None = None) -> NoReturn:
        place = self._passed + (self._at if at is None else at)
        raise Refused("invalid_json", f"The body is not UTF-8 JSON at character {place}.")
