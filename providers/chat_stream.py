"""The stream of one chat completion: bytes → deltas.

Owns what the chunks add up to: the text, the calls, the reason, the usage, and where an answer has to stop. Does not
know where bytes come from or how long they take. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from agent_exec.contract.completion import FinishReason, Usage
from agent_exec.contract.model import ModelName
from agent_exec.errors import ProviderProtocol
from providers.call_assembly import CallAssembly, whole_text
from providers.chunk import Chunk, MessagePart, UsageReport, read_chunk, read_object
from providers.event_stream import MAX_EVENT_BYTES, Event, EventStream, EventTooLong
from providers.failure import Failures
from providers.price import Tariff
from providers.provider import Delta, Finished, Reasoning, Spent, Text

#: Text, reasoning and arguments of one answer; two megabytes are what an execution may put out (faults S36, S37).
MAX_OUTPUT_CHARS = 2_000_000
#: A chunk carries some four characters in 300 bytes: past this, it is an endless stream of nothing.
MAX_STREAM_BYTES = 268_435_456
#: Where the provider counts no tokens. English and code come to about this.
CHARS_PER_TOKEN = 4
#: No tokenizer averages this over a whole answer, so a count below chars / 16 is none.
MAX_CHARS_PER_TOKEN = 16
#: What no context holds; the contract's `max_total_tokens` ends here.
MAX_TOKENS = 10_000_000

_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",  # Mistral
    "content_filter": "content_filter",
    "safety": "content_filter",
}
#: The server gave up, and says so where the reason belongs: OpenRouter, vLLM, Zhipu, DeepSeek.
_GAVE_UP = frozenset({"error", "abort", "network_error", "insufficient_system_resource"})

_model_name: TypeAdapter[str] = TypeAdapter(ModelName)


class ChatStream:
    """Decodes one answer. Keeps no text; what it keeps is bounded by the constants here and in call_assembly."""

    def __init__(
        self,
        *,
        model: str,
        prompt_chars: int,
        failures: Failures,
        tariff: Tariff,
        new_id: Callable[[], str] = lambda: f"call_{uuid4().hex}",
    ) -> None:
        """Take the model asked for, and the size of what it was asked, for a provider that counts no tokens."""
        self._model = model
        self._served_as = model
        self._prompt_chars = prompt_chars
        self._failures = failures
        self._tariff = tariff
        self._events = EventStream()
        self._calls = CallAssembly(new_id=new_id)
        self._reason = ""
        self._refused = False
        self._usage: UsageReport | None = None
        self._output_chars = 0
        self._stream_bytes = 0
        self._half_pair = ""
        #: How many there were.
        self.chunks = 0
        #: `Finished` was given; more bytes say nothing.
        self.finished = False
        #: We cut the answer; there may be any number of bytes left.
        self.truncated = False

    @property
    def begun(self) -> bool:
        """The model has said something, or the provider has counted."""
        return self.answered or self._usage is not None or self._output_chars > 0

    def spent(self) -> Spent:
        """Return what was used so far: as the provider counts, and where it does not, by the length of what was said."""
        usage, estimated = self._count()
        return Spent(usage, estimated)

    @property
    def answered(self) -> bool:
        """The model has stopped; at most its usage is still to come."""
        return self._reason != ""

    def feed(self, piece: bytes) -> list[Delta]:
        """Return the deltas that `piece` completes.

        Raises:
            ProviderError: the stream holds an error (retryable or not, as it says), or is none (ProviderProtocol).
        """
        if self.finished:
            return []
        self._stream_bytes += len(piece)
        try:
            events = self._events.feed(piece)
        except EventTooLong:
            raise self._protocol(f"an event of more than {MAX_EVENT_BYTES} bytes") from None
        deltas = self._read(events)
        if self._stream_bytes > MAX_STREAM_BYTES and not self.finished:
            deltas.append(self._finish(truncated=True))
        return deltas

    def end(self) -> list[Delta]:
        """Return the last deltas, when there are no more bytes.

        Raises:
            ProviderProtocol: the answer is not whole: no chunk gave a reason for its end.
        """
        if self.finished:
            return []
        try:
            events = self._events.end()
        except EventTooLong:
            raise self._protocol(f"an event of more than {MAX_EVENT_BYTES} bytes") from None
        deltas = self._read(events)
        if not self.finished:
            deltas.append(self._finish_whole())
        return deltas

    def _read(self, events: list[Event]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            if event.data.startswith(b"[DONE]"):
                deltas.append(self._finish_whole())
            elif event.data.strip():
                self._add(self._chunk(event), deltas)
            if self.finished:
                break
        return deltas

    def _chunk(self, event: Event) -> Chunk:
        self.chunks += 1
        try:
            chunk = read_chunk(event.data)
        except ValueError as error:
            shown = event.data[:100].decode("utf-8", "replace")
            raise self._protocol(f"an event that is no chunk, {error}: {shown}") from None
        if event.name == b"error" and not chunk.error:
            raise self._failures.of_answer(read_object(event.data), status=None)
        if chunk.error:
            raise self._failures.of_answer(chunk.error, status=None)
        if chunk.x_groq is not None and chunk.x_groq.error:
            raise self._failures.of_answer(chunk.x_groq.error, status=None)
        return chunk

    def _add(self, chunk: Chunk, deltas: list[Delta]) -> None:
        if chunk.usage is not None:
            self._usage = chunk.usage
        elif chunk.x_groq is not None and chunk.x_groq.usage is not None:
            self._usage = chunk.x_groq.usage
        if chunk.model:
            self._served_as = chunk.model
        if not chunk.choices:
            return
        choice = chunk.choices[0]
        if choice.delta is not None:
            self._add_message(choice.delta, deltas)
        if choice.finish_reason:
            self._reason = choice.finish_reason
            if self._reason in _GAVE_UP:
                raise self._failures.of_answer(f"finish_reason {self._reason}", status=None)

    def _add_message(self, part: MessagePart, deltas: list[Delta]) -> None:
        if thought := part.reasoning or part.reasoning_content:
            self._say(Reasoning, whole_text(thought), deltas)
        if part.content:
            self._say(Text, self._whole(part.content), deltas)
        if part.refusal:
            self._refused = True
            self._say(Text, self._whole(part.refusal), deltas)
        for call in part.tool_calls or ():
            self._output_chars += len(call.function.arguments or "") if call.function is not None else 0
            fits = self._calls.add(call)
            if not self.finished and (not fits or self._output_chars > MAX_OUTPUT_CHARS):
                deltas.append(self._finish(truncated=True))

    def _say(self, delta: type[Text | Reasoning], text: str, deltas: list[Delta]) -> None:
        if self.finished:
            return
        fitting = text[: MAX_OUTPUT_CHARS - self._output_chars]
        self._output_chars += len(fitting)
        if fitting:
            deltas.append(delta(fitting))
        if len(fitting) < len(text):
            deltas.append(self._finish(truncated=True))

    def _whole(self, text: str) -> str:
        """Return `text` without half a surrogate pair at its end, which the next piece completes."""
        if not self._half_pair and text.isascii():
            return text
        text = self._half_pair + text
        self._half_pair = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        return whole_text(text.removesuffix(self._half_pair) if self._half_pair else text)

    def _finish_whole(self) -> Finished:
        if self._reason:
            return self._finish()
        if self._events.stray:
            raise self._no_stream(bytes(self._events.stray))
        raise self._protocol("the stream ended early, with no finish_reason")

    def _no_stream(self, answer: bytes) -> Exception:
        try:
            body = read_object(answer)
        except ValueError:
            body = {}
        if body.get("error"):  # gateways answer 200 to a request that they refuse
            return self._failures.of_answer(body, status=None)
        return self._protocol(f"no event stream: {answer.decode('utf-8', 'replace')}")

    def _finish(self, *, truncated: bool = False) -> Finished:
        self.finished = True
        self.truncated = truncated
        calls = self._calls.calls()
        usage, estimated = self._count()
        reason = _REASONS.get(self._reason, "stop")
        if truncated:
            reason = "length"
        elif self._refused:
            reason = "content_filter"
        elif calls and reason == "stop":
            reason = "tool_calls"
        return Finished(
            reason=reason,
            tool_calls=calls,
            usage=usage,
            model=self._served_as if _is_model_name(self._served_as) else self._model,
            truncated=truncated,
            usage_estimated=estimated,
        )

    def _count(self) -> tuple[Usage, bool]:
        """Return the usage, and whether any of it is ours."""
        report = self._usage or UsageReport()
        prompt, completion = report.prompt_tokens, report.completion_tokens
        floor = self._output_chars // MAX_CHARS_PER_TOKEN
        prompt_tokens = _plausible(prompt, at_least=0, or_else=estimated_tokens(self._prompt_chars))
        completion_tokens = _plausible(completion, at_least=floor, or_else=estimated_tokens(self._output_chars))
        total = prompt_tokens + completion_tokens
        cached = report.prompt_tokens_details.cached_tokens if report.prompt_tokens_details is not None else None
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=max(total, _plausible(report.total_tokens, at_least=0, or_else=0)),
            cost_usd=self._tariff.cost_usd(
                self._model,
                served_as=self._served_as,
                prompt_tokens=prompt_tokens,
                cached_tokens=_plausible(cached, at_least=0, or_else=0),
                completion_tokens=completion_tokens,
            ),
        )
        return usage, (prompt_tokens, completion_tokens) != (prompt, completion)

    def _protocol(self, said: str) -> Exception:
        return self._failures.failure(ProviderProtocol, said)


def _plausible(reported: int | None, *, at_least: int, or_else: int) -> int:
    """Return `reported` within what can be; `or_else` where it cannot."""
    if reported is None or reported < at_least:
        return or_else
    return min(reported, MAX_TOKENS)


def estimated_tokens(chars: int) -> int:
    """Return about how many tokens a text of so many characters has."""
    return -(-chars // CHARS_PER_TOKEN)


def _is_model_name(text: str) -> bool:
    try:
        _model_name.validate_python(text)
    except ValidationError:
        return False
    return True
