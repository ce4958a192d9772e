from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from agent_exec.contract.completion import Usage
from agent_exec.errors import (
    ContextTooLong,
    ProviderAuth,
    ProviderError,
    ProviderOverloaded,
    ProviderProtocol,
    ProviderRateLimited,
)
from providers import chat_stream
from providers.call_assembly import MAX_ARGUMENTS_CHARS, MAX_CALLS
from providers.chat_stream import MAX_OUTPUT_CHARS, ChatStream
from providers.failure import TRANSPORT_KINDS, Failures
from providers.price import Tariff
from providers.provider import Delta, Finished, Reasoning, Text
from tests.providers.wire_server import KEY, call_piece, chunk, event, text_turn, tool_turn, usage

DONE = b"data: [DONE]\n\n"
STOP = event(chunk(reason="stop"))
TARIFF = Tariff("openai", provider_id="openai")


def stream(**options: Any) -> ChatStream:
    ids = itertools.count(1)
    return ChatStream(
        model="gpt-4o",
        prompt_chars=options.pop("prompt_chars", 40),
        failures=Failures("openai", kinds=TRANSPORT_KINDS, secret=SecretStr(KEY)),
        tariff=options.pop("tariff", TARIFF),
        new_id=lambda: f"made_{next(ids)}",
    )


def deltas_of(*pieces: bytes) -> list[Delta]:
    chat = stream()
    return [delta for piece in pieces for delta in chat.feed(piece)] + chat.end()


def finished(*pieces: bytes) -> Finished:
    last = deltas_of(*pieces)[-1]
    assert isinstance(last, Finished)
    return last


def calls_of(*deltas: dict[str, Any], reason: str = "tool_calls") -> list[tuple[str, str, str]]:
    end = finished(*(event(chunk(delta)) for delta in deltas), event(chunk(reason=reason)))
    return [(call.id, call.name, call.arguments) for call in end.tool_calls]


def by_octet(octets: bytes) -> list[bytes]:
    return [octets[at : at + 1] for at in range(len(octets))]


class TestText:
    def test_a_turn_of_text(self) -> None:
        assert deltas_of(text_turn("Hel", "lo ", "wörld 🌍")) == [
            Text("Hel"),
            Text("lo "),
            Text("wörld 🌍"),
            Finished(
                reason="stop",
                tool_calls=(),
                usage=Usage(prompt_tokens=20, completion_tokens=7, total_tokens=27, cost_usd=0.00012),
                model="gpt-4o-2024-11-20",
            ),
        ]

    def test_a_character_may_be_cut_between_packets(self) -> None:
        octets = b"data: " + json.dumps(chunk({"content": "né 🌍"}), ensure_ascii=False).encode() + b"\n\n" + STOP
        assert deltas_of(*by_octet(octets))[0] == Text("né 🌍")

    def test_a_character_may_be_cut_between_chunks(self) -> None:
        halves = [event(chunk({"content": half})) for half in ("a\ud83c", "\udf0d b", "\udf0d", "z\ud83c")]
        assert [delta.text for delta in deltas_of(*halves, STOP) if isinstance(delta, Text)] == ["a", "🌍 b", "�", "z"]

    @pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
    def test_reasoning_is_no_text(self, field: str) -> None:
        both = event(chunk({"content": "so", field: "hmm"}))
        assert deltas_of(both, STOP)[:-1] == [Reasoning("hmm"), Text("so")]

    def test_reasoning_under_both_names_is_given_once(self) -> None:
        assert deltas_of(event(chunk({"reasoning": "hmm", "reasoning_content": "hmm"})), STOP)[:-1] == [
            Reasoning("hmm")
        ]

    def test_content_may_be_a_list_of_parts(self) -> None:
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hmm"}, 7]}
        octets = event(chunk({"content": [thinking, {"type": "text", "text": "so"}, None]}))
        assert deltas_of(octets, STOP)[:-1] == [Reasoning("hmm"), Text("so")]

    def test_a_refusal_is_text_and_no_success(self) -> None:
        *said, end = deltas_of(event(chunk({"refusal": "I will not."})), STOP)
        assert said == [Text("I will not.")]
        assert isinstance(end, Finished)
        assert end.reason == "content_filter"

    @pytest.mark.parametrize(
        ("said", "ours"),
        [
            ("stop", "stop"),
            ("eos", "stop"),
            ("tool_calls", "stop"),
            ("length", "length"),
            ("max_tokens", "length"),
            ("content_filter", "content_filter"),
        ],
    )
    def test_reasons(self, said: str, ours: str) -> None:
        assert finished(event(chunk({"content": "a"})), event(chunk(reason=said))).reason == ours

    def test_text_may_come_with_the_reason(self) -> None:
        assert deltas_of(event(chunk({"content": "a"}, reason="stop")))[0] == Text("a")


class TestOddChunks:
    @pytest.mark.parametrize(
        "octets",
        [
            pytest.param(event({"choices": []}), id="no choices"),
            pytest.param(event({"choices": None}), id="choices null"),
            pytest.param(event({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}), id="Azure's filter"),
            pytest.param(event({"choices": [{"index": 0, "delta": None}]}), id="delta null"),
            pytest.param(event({"choices": [{"index": 0}]}), id="no delta"),
            pytest.param(event({"choices": [None, 7]}), id="choices that are none"),
            pytest.param(event(chunk({"content": None, "tool_calls": None})), id="all null"),
            pytest.param(event(chunk({"content": 7, "tool_calls": 7, "reasoning": {}})), id="other types"),
            pytest.param(event(chunk({"tool_calls": [None, {}, {"index": "0"}]})), id="calls without content"),
            pytest.param(event({}), id="empty object"),
            pytest.param(event({"type": "ping"}), id="an event we do not know"),
            pytest.param(b"event: ping\ndata: {}\n\n", id="a named event we do not know"),
            pytest.param(b"data:\n\n", id="no data"),
            pytest.param(b": keep-alive\n\n", id="comment"),
            pytest.param(b"event: x\nid: 1\nretry: 5\n\n", id="fields without data"),
            pytest.param(event(chunk({}, error=None, x_groq=None, usage=None)), id="nulls beside"),
            pytest.param(b'data: {"choices": [], "x": NaN}\n\n', id="not a number"),
            pytest.param(b'data: {"choices": [], "x": "\xff"}\n\n', id="not UTF-8"),
        ],
    )
    def test_what_says_nothing_is_passed_over(self, octets: bytes) -> None:
        plain = deltas_of(text_turn("a", "b"))
        assert deltas_of(octets + text_turn("a", "b")) == plain
        assert deltas_of(text_turn("a", "b").replace(STOP, octets + STOP)) == plain

    @pytest.mark.parametrize(
        "octets",
        [
            b"{",
            b"null",
            b"5",
            b"[]",
            b'"text"',
            b"oops",
            b"<html>",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"n":' + b"9" * 5_000 + b"}",
        ],
        ids=lambda octets: octets[:8].decode(),
    )
    def test_what_is_no_chunk_is_refused(self, octets: bytes) -> None:
        with pytest.raises(ProviderProtocol, match="not of the wire") as caught:
            deltas_of(b"data: " + octets + b"\n\n", text_turn("a"))
        assert len(str(caught.value)) < 400

    def test_nothing_counts_after_done(self) -> None:
        chat = stream()
        turn = text_turn("a")
        deltas = chat.feed(turn + DONE + turn + b"data: oops\n\n") + chat.feed(turn) + chat.end()
        assert deltas == deltas_of(turn)

    def test_done_may_be_missing(self) -> None:
        assert deltas_of(text_turn("a").removesuffix(DONE)) == deltas_of(text_turn("a"))
        assert deltas_of(text_turn("a").removesuffix(b"\n\n")) == deltas_of(text_turn("a"))

    @pytest.mark.parametrize("cut", [b"", event(chunk({"content": "a"})), event(chunk({"content": "a"})) + DONE])
    def test_an_early_end_is_no_answer(self, cut: bytes) -> None:
        with pytest.raises(ProviderProtocol, match="ended early"):
            deltas_of(cut)

    @pytest.mark.parametrize("page", [b"<html><body>Sign in</body></html>", b"just text", b'{"choices": []}'])
    def test_an_answer_that_is_no_stream_is_named(self, page: bytes) -> None:
        with pytest.raises(ProviderProtocol, match=r"no event stream: .{9}"):
            deltas_of(page)


class TestToolCalls:
    def test_a_turn_with_a_call(self) -> None:
        end = finished(tool_turn())
        assert end.reason == "tool_calls"
        assert [call.model_dump() for call in end.tool_calls] == [
            {"id": "call_1", "name": "get_weather", "arguments": '{"city": "Lima"}'}
        ]

    def test_calls_side_by_side(self) -> None:
        assert calls_of(
            call_piece(0, "", id="a", name="f"),
            call_piece(1, "", id="b", name="g"),
            call_piece(0, '{"x"'),
            call_piece(1, "{}"),
            call_piece(0, ":1}"),
        ) == [("a", "f", '{"x":1}'), ("b", "g", "{}")]

    def test_without_an_index_an_id_or_a_name_begins_a_call(self) -> None:
        assert calls_of(
            call_piece(None, '{"x"', id="a", name="f"),
            call_piece(None, ":1}"),
            call_piece(None, "{", id="b", name="f"),
            call_piece(None, "}"),
            call_piece(None, "{}", name="g"),
        ) == [("a", "f", '{"x":1}'), ("b", "f", "{}"), ("made_1", "g", "{}")]

    def test_without_an_index_an_id_goes_on_with_its_call(self) -> None:
        assert calls_of(
            call_piece(None, "{", id="a", name="f"),
            call_piece(None, "{", id="b", name="g"),
            call_piece(None, "}", id="a"),
            call_piece(None, "}", id="b"),
        ) == [("a", "f", "{}"), ("b", "g", "{}")]

    def test_every_call_at_index_0(self) -> None:
        assert calls_of(
            call_piece(0, '{"x":1}', id="a", name="f"),
            call_piece(0, '{"x":', id="b", name="f"),
            call_piece(0, "2}"),
        ) == [("a", "f", '{"x":1}'), ("b", "f", '{"x":2}')]

    def test_every_call_at_index_0_and_no_ids(self) -> None:
        assert calls_of(
            call_piece(0, '{"x":1}', name="f"), call_piece(0, '{"x":2}', name="f"), call_piece(0, "{}", name="g")
        ) == [("made_1", "f", '{"x":1}'), ("made_2", "f", '{"x":2}'), ("made_3", "g", "{}")]

    def test_every_call_at_index_0_and_under_one_id(self) -> None:
        assert calls_of(call_piece(0, "{}", id="a", name="f"), call_piece(0, "{}", id="a", name="g")) == [
            ("a", "f", "{}"),
            ("made_1", "g", "{}"),
        ]

    def test_id_and_name_repeated_with_every_piece(self) -> None:
        pieces = ['{"a":', "{", '"b":1}', "}"]
        assert calls_of(*(call_piece(0, piece, id="a", name="f") for piece in pieces)) == [("a", "f", '{"a":{"b":1}}')]

    def test_a_new_id_with_every_piece_and_no_name(self) -> None:
        assert calls_of(
            call_piece(0, "{", id="a", name="f"), call_piece(0, '"x":', id="b"), call_piece(0, "1}", id="c")
        ) == [("a", "f", '{"x":1}')]

    def test_a_late_id_and_a_late_name(self) -> None:
        assert calls_of(call_piece(0, "{"), call_piece(0, "", id="a"), call_piece(0, "}", name="f")) == [
            ("a", "f", "{}")
        ]

    @pytest.mark.parametrize("identity", ["", " ", "a b", "é", "x" * 201, None])
    def test_an_id_of_no_use_is_replaced(self, identity: str | None) -> None:
        assert calls_of(call_piece(0, "{}", id=identity, name="f")) == [("made_1", "f", "{}")]

    def test_a_repeated_id_is_replaced(self) -> None:
        assert calls_of(call_piece(0, "{}", id="a", name="f"), call_piece(1, "{}", id="a", name="f")) == [
            ("a", "f", "{}"),
            ("made_1", "f", "{}"),
        ]

    def test_a_number_as_id(self) -> None:
        assert calls_of({"tool_calls": [{"index": 0, "id": 7, "function": {"name": "f", "arguments": "{}"}}]}) == [
            ("7", "f", "{}")
        ]

    @pytest.mark.parametrize("arguments", [{"x": 1}, [1], {}, {"né": "🌍"}])
    def test_arguments_as_an_object(self, arguments: Any) -> None:
        [(_, _, written)] = calls_of(call_piece(0, arguments, id="a", name="f"))
        assert json.loads(written) == arguments

    @pytest.mark.parametrize("arguments", ["", None])
    def test_no_arguments_are_an_empty_object(self, arguments: str | None) -> None:
        assert calls_of(call_piece(0, arguments, id="a", name="f")) == [("a", "f", "{}")]

    def test_arguments_that_are_no_json_are_the_model_s(self) -> None:
        assert calls_of(call_piece(0, "city=Lima", id="a", name="f")) == [("a", "f", "city=Lima")]

    def test_a_character_of_the_arguments_may_be_cut_between_chunks(self) -> None:
        pieces = [call_piece(0, '{"x":"\ud83c', id="a", name="f"), call_piece(0, '\udf0d"}')]
        assert calls_of(*pieces) == [("a", "f", '{"x":"🌍"}')]

    def test_a_call_without_name_and_arguments_is_none(self) -> None:
        assert calls_of(call_piece(0, "", id="a")) == []

    def test_a_call_without_a_name_is_the_model_s(self) -> None:
        assert calls_of(call_piece(0, "{}", id="a")) == [("a", "", "{}")]

    @pytest.mark.parametrize(("said", "ours"), [("stop", "tool_calls"), ("length", "length"), ("content_filter",) * 2])
    def test_calls_decide_what_a_stop_is(self, said: str, ours: str) -> None:
        call = event(chunk(call_piece(0, "{}", id="a", name="f")))
        assert finished(call, event(chunk(reason=said))).reason == ours


class TestBounds:
    def test_an_answer_too_long_is_cut(self) -> None:
        *said, end = deltas_of(*[event(chunk({"content": "x" * 300_000}))] * 8)
        assert sum(len(delta.text) for delta in said if isinstance(delta, Text)) == MAX_OUTPUT_CHARS
        assert isinstance(end, Finished)
        assert (end.reason, end.truncated, end.usage_estimated) == ("length", True, True)
        assert end.usage.completion_tokens == MAX_OUTPUT_CHARS // 4

    def test_thinking_counts(self) -> None:
        deltas = deltas_of(
            *[event(chunk({"reasoning": "x" * 300_000, "content": "y" * 300_000, "refusal": "z" * 300_000}))] * 8
        )
        assert sum(len(delta.text) for delta in deltas if not isinstance(delta, Finished)) == MAX_OUTPUT_CHARS
        assert [isinstance(delta, Finished) for delta in deltas].count(True) == 1

    def test_arguments_too_long_are_cut(self) -> None:
        end = finished(*[event(chunk(call_piece(0, "x" * 100_000, id="a", name="f")))] * 4)
        assert (end.reason, end.truncated) == ("length", True)
        assert [len(call.arguments) for call in end.tool_calls] == [MAX_ARGUMENTS_CHARS]

    def test_arguments_of_many_calls_count_together(self) -> None:
        end = finished(*(event(chunk(call_piece(n, "x" * 250_000, id=str(n), name="f"))) for n in range(20)))
        assert (end.reason, end.truncated, len(end.tool_calls)) == ("length", True, 9)

    def test_too_many_calls_are_cut(self) -> None:
        pieces = [call_piece(n, "{}", id=str(n), name="f")["tool_calls"][0] for n in range(1_000)]
        end = finished(event(chunk({"tool_calls": pieces})))
        assert (end.reason, end.truncated, len(end.tool_calls)) == ("length", True, MAX_CALLS)

    def test_an_endless_stream_of_nothing_is_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(chat_stream, "MAX_STREAM_BYTES", 10_000)
        chat = stream()
        deltas = [delta for _ in range(1_000) for delta in chat.feed(b": nothing\n\n")]
        assert [delta.truncated for delta in deltas if isinstance(delta, Finished)] == [True]

    def test_an_endless_event_is_refused(self) -> None:
        with pytest.raises(ProviderProtocol, match="an event of more than"):
            deltas_of(b"data: ", *[b"x" * 1_000_000] * 3)

    def test_the_end_of_an_endless_event_is_refused(self) -> None:
        half = b"data: " + b"x" * 1_500_000
        with pytest.raises(ProviderProtocol, match="an event of more than"):
            deltas_of(half + b"\n" + half)

    def test_a_model_s_name_of_no_use_is_ours(self) -> None:
        assert finished(event(chunk(reason="stop") | {"model": "my model"})).model == "gpt-4o"
        assert finished(event(chunk(reason="stop") | {"model": "x" * 300})).model == "gpt-4o"


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "ours"),
        [
            ({"message": "The server had an error", "type": "server_error", "code": None}, ProviderOverloaded),
            ({"message": "Slow down", "code": "rate_limit_exceeded"}, ProviderRateLimited),
            ({"message": "Too long", "code": "context_length_exceeded"}, ContextTooLong),
            ({"message": "Pay", "type": "insufficient_quota"}, ProviderAuth),
            ({"message": "Upstream", "code": 429}, ProviderRateLimited),
            ({"message": "Upstream", "code": "502"}, ProviderOverloaded),
            ({"message": "Failed to call a function", "code": "tool_use_failed"}, ProviderProtocol),
            ("out of memory", ProviderOverloaded),
            (True, ProviderOverloaded),
            (["?"], ProviderOverloaded),
        ],
    )
    def test_an_error_within_the_stream(self, error: Any, ours: type[ProviderError]) -> None:
        with pytest.raises(ours) as caught:
            deltas_of(event(chunk({"content": "a"})), event({"error": error}), STOP)
        assert type(caught.value) is ours
        assert caught.value.provider == "openai"

    def test_an_event_named_error(self) -> None:
        with pytest.raises(ProviderRateLimited, match="Slow down"):
            deltas_of(b'event: error\ndata: {"code": "too_many_requests", "message": "Slow down"}\n\n')

    def test_an_object_named_error(self) -> None:
        with pytest.raises(ProviderAuth, match="Who are you"):
            deltas_of(event({"object": "error", "message": "Who are you", "code": 401}))

    def test_groq_s_error(self) -> None:
        with pytest.raises(ProviderOverloaded, match="over_capacity"):
            deltas_of(event(chunk({}, x_groq={"id": "req_1", "error": "over_capacity"})))

    @pytest.mark.parametrize("reason", ["error", "abort"])
    def test_a_reason_that_is_an_error(self, reason: str) -> None:
        with pytest.raises(ProviderOverloaded, match=f"finish_reason {reason}"):
            deltas_of(event(chunk({"content": "a"})), event(chunk(reason=reason)), DONE)

    def test_an_error_in_place_of_a_stream(self) -> None:
        with pytest.raises(ProviderRateLimited, match="Slow down"):
            deltas_of(json.dumps({"error": {"code": 429, "message": "Slow down"}}, indent=2).encode())


class TestUsage:
    def usage_of(self, report: Any, *, said: str = "x" * 40) -> tuple[tuple[int, int, int], bool]:
        end = finished(event(chunk({"content": said})), STOP, event({"choices": [], "usage": report}), DONE)
        assert end.usage.cost_usd is not None
        return (end.usage.prompt_tokens, end.usage.completion_tokens, end.usage.total_tokens), end.usage_estimated

    @pytest.mark.parametrize(
        ("report", "counts", "estimated"),
        [
            pytest.param(
                {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17}, (9, 8, 17), False, id="given"
            ),
            pytest.param({"prompt_tokens": 9, "completion_tokens": 8}, (9, 8, 17), False, id="no total"),
            pytest.param(
                {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 30},
                (9, 8, 30),
                False,
                id="thoughts in the total alone",
            ),
            pytest.param({"prompt_tokens": 9.0, "completion_tokens": 8.0}, (9, 8, 17), False, id="floats"),
            pytest.param(None, (10, 10, 20), True, id="missing"),
            pytest.param([], (10, 10, 20), True, id="no object"),
            pytest.param({"prompt_tokens": "9", "completion_tokens": True}, (10, 10, 20), True, id="no numbers"),
            pytest.param(
                {"prompt_tokens": -9, "completion_tokens": -8, "total_tokens": -17}, (10, 10, 20), True, id="negative"
            ),
            pytest.param(
                {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9},
                (9, 10, 19),
                True,
                id="none for an answer",
            ),
            pytest.param(
                {"prompt_tokens": 10**12, "completion_tokens": 8}, (10_000_000, 8, 10_000_008), True, id="absurd"
            ),
        ],
    )
    def test_counts(self, report: Any, counts: tuple[int, int, int], estimated: bool) -> None:
        """B50, F37."""
        assert self.usage_of(report) == (counts, estimated)

    def test_cached_tokens_are_cheaper(self) -> None:
        def cost_usd(cached: int) -> float | None:
            counts = {
                "prompt_tokens": 1_000,
                "completion_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": cached},
            }
            return finished(STOP, event({"choices": [], "usage": counts})).usage.cost_usd

        assert cost_usd(-5) == cost_usd(0) == pytest.approx(0.00257)
        assert cost_usd(500) == pytest.approx(0.001945)
        assert cost_usd(1_000) == cost_usd(2_000)

    def test_groq_s_place(self) -> None:
        counts = {"queue_time": 0.1, "prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17}
        end = finished(
            event(chunk({"content": "a"})), event(chunk(reason="stop", x_groq={"id": "req_1", "usage": counts}))
        )
        assert (end.usage.total_tokens, end.usage_estimated) == (17, False)

    def test_the_last_report_counts(self) -> None:
        running = [event(chunk({"content": "a"}, usage=usage(20, n)["usage"])) for n in (1, 2, 3)]
        assert finished(*running, STOP).usage.completion_tokens == 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
odd_function = st.fixed_dictionaries({}, optional={"name": json_values, "arguments": json_values})
odd_call = json_values | st.fixed_dictionaries(
    {}, optional={"index": json_values, "id": json_values, "function": odd_function | json_values}
)
odd_delta = st.fixed_dictionaries(
    {},
    optional={
        "content": json_values | st.text(),
        "reasoning": json_values,
        "refusal": json_values,
        "tool_calls": json_values | st.lists(odd_call, max_size=3),
    },
)
odd_choice = st.fixed_dictionaries(
    {}, optional={"delta": json_values | odd_delta, "finish_reason": json_values | st.just("stop")}
)
odd_chunk = json_values | st.fixed_dictionaries(
    {},
    optional={
        "choices": json_values | st.lists(odd_choice | json_values, max_size=2),
        "usage": json_values
        | st.dictionaries(
            st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"]),
            json_values,
        ),
        "model": json_values,
        "error": json_values,
        "x_groq": json_values | st.fixed_dictionaries({}, optional={"usage": json_values, "error": json_values}),
    },
)


def outcome(*pieces: bytes) -> list[Delta] | str:
    try:
        deltas = deltas_of(*pieces)
    except ProviderError as error:
        return f"{error.code}: {error}"
    assert all(isinstance(delta, Finished) == (delta is deltas[-1]) for delta in deltas)
    for delta in deltas[:-1]:
        assert isinstance(delta, Text | Reasoning)
        assert delta.text.encode()
    return deltas


class TestAnyBytes:
    @given(st.data())
    def test_cuts_never_matter(self, draw: st.DataObject) -> None:
        octets = text_turn("wörld 🌍", "b") if draw.draw(st.booleans()) else tool_turn()
        octets = octets.replace(b"\n", draw.draw(st.sampled_from([b"\n", b"\r\n", b"\r"])))
        cuts = sorted(draw.draw(st.sets(st.integers(0, len(octets)), max_size=40)))
        pieces = [octets[start:end] for start, end in itertools.pairwise([0, *cuts, len(octets)])]
        assert deltas_of(*pieces) == deltas_of(octets) == deltas_of(*by_octet(octets))

    @given(
        st.lists(
            st.binary(max_size=40) | st.sampled_from([b"data: ", b"\n\n", b"[DONE]", b'{"choices":[', b"]}", b"\r"])
        )
    )
    def test_garbage_is_refused_and_never_crashes(self, pieces: list[bytes]) -> None:
        assert isinstance(outcome(*pieces), str)

    @given(st.lists(odd_chunk, max_size=6), st.sampled_from([b"", STOP, STOP + DONE]))
    @example([{"choices": [{"delta": {"content": "\ud83c"}}, {}]}], STOP)
    @example([{"error": {"code": 10**30, "message": "\ud83c"}}], STOP)
    def test_odd_chunks_never_crash(self, chunks: list[Any], end: bytes) -> None:
        octets = b"".join(map(event, chunks)) + end
        assert repr(outcome(octets)) == repr(outcome(*by_octet(octets)))
