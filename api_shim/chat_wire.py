"""The wire of OpenAI's Chat Completions, as an agent answers on it. Pure.

Owns what is taken of a request and what an execution comes to there: an answer, chunks of one, or an error. Does not know
HTTP, nor how events are followed. An agent is more than a model: its instructions and its tools are its own. So a caller's
`system` messages are shown to the model as what the caller says, tools are run here and not named in the answer, and what
cannot be kept is refused.

Source: OpenAI, "API Reference", Chat Completions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, assert_never

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError

from agent_exec.contract.agent import AgentOverrides
from agent_exec.contract.completion import Usage
from agent_exec.contract.event import EventName
from agent_exec.contract.execution import ErrorDetail, ExecutionRequest, FinalResponse
from agent_exec.contract.message import Context, HistoryMessage, Metadata
from agent_exec.contract.model import (
    MAX_HISTORY_MESSAGES,
    MAX_QUERY_CHARS,
    AgentId,
    ContractModel,
    Json,
    JsonSchema,
    OpaqueId,
)
from agent_exec.contract.tool import ToolCall
from agent_exec.errors import InvalidMessage
from agent_exec.events import LoggedEvent
from api_shim.problem import ErrorForm, Problem, Refused, breach

#: Where a caller's instructions stand in the context of an execution.
INSTRUCTIONS = "instructions_of_the_caller"
#: OpenAI's clients send a request again by its status, unless this says otherwise.
SHOULD_RETRY = "X-Should-Retry"
#: Between the texts of two turns, where an agent says something before it calls tools.
GAP = "\n\n"

Text = Annotated[str, Field(max_length=MAX_QUERY_CHARS)]


class TextPart(ContractModel):
    """A piece of text."""

    type: Literal["text"]
    text: Text


def _kind(content: object) -> str:
    """Say which kind of content is meant, so that a complaint is about that kind."""
    return "parts" if isinstance(content, list) else "text"


Content = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[TextPart], Field(min_length=1, max_length=100), Tag("parts")],
    Discriminator(_kind),
]


class InstructionMessage(ContractModel):
    """What the caller would have the model do. It stands behind the agent's own instructions."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(ContractModel):
    """What the user says; the last message is one."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(ContractModel):
    """The function of an earlier call."""

    name: Annotated[str, Field(max_length=256)]
    arguments: Annotated[str, Field(max_length=256_000)]


class MadeCall(ContractModel):
    """A call that an earlier answer made."""

    id: OpaqueId
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(ContractModel):
    """An earlier answer. Clients give back what they got, with fields that say nothing here."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[MadeCall], Field(max_length=64)] | None = None


class ToolMessage(ContractModel):
    """What came of an earlier call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: OpaqueId


ChatMessage = Annotated[InstructionMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class TextFormat(ContractModel):
    """The answer is text, or what the agent's configuration says."""

    type: Literal["text"]


class JsonFormat(ContractModel):
    """The answer is a JSON object."""

    type: Literal["json_object"]


class NamedSchema(ContractModel):
    """A schema with its name."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=4_096)] | None = None
    schema_: Annotated[JsonSchema, Field(alias="schema")]
    strict: bool | None = None


class SchemaFormat(ContractModel):
    """The answer is JSON of this schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class StreamOptions(ContractModel):
    """Of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatMetadata(ContractModel):
    """The caller's own ids; they come back on the execution and its frames."""

    conversation_id: OpaqueId | None = None
    session_id: OpaqueId | None = None
    workflow_id: OpaqueId | None = None
    global_task_id: OpaqueId | None = None


def _no_number(value: object) -> object:
    """Refuse 0, which is false to Python."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


Tokens = Annotated[int, Field(ge=1, le=1_000_000)]


class ChatRequest(ContractModel):
    """A chat, and who is to answer. What is not listed is refused."""

    model: Annotated[AgentId, Field(description="the id of the agent")]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_HISTORY_MESSAGES + 1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_completion_tokens: Annotated[Tokens | None, Field(description="of each turn")] = None
    max_tokens: Annotated[Tokens | None, Field(description="the same, under its old name")] = None
    parallel_tool_calls: bool | None = None
    response_format: Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] | None = None
    metadata: ChatMetadata | None = None
    # Taken, and without effect on an answer.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: bool | None = None
    # Taken where they ask for nothing, as clients do that send all they know.
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Annotated[Literal[False], BeforeValidator(_no_number)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, Json], Field(max_length=0)] | None = None
    stop: Annotated[list[str], Field(max_length=0)] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    tools: Annotated[list[Json], Field(max_length=0)] | None = None
    tool_choice: Literal["auto"] | None = None

    @property
    def wants_json(self) -> bool:
        """Whether the answer is to be JSON."""
        return isinstance(self.response_format, JsonFormat | SchemaFormat)


#: Why a parameter is taken only where it asks for nothing.
UNSUPPORTED = {
    "n": "One request has one answer.",
    "top_p": "An agent's sampling is set by its temperature alone.",
    "frequency_penalty": "An agent's sampling is set by its temperature alone.",
    "presence_penalty": "An agent's sampling is set by its temperature alone.",
    "logprobs": "Probabilities of tokens are not kept.",
    "top_logprobs": "Probabilities of tokens are not kept.",
    "logit_bias": "An agent's sampling is set by its temperature alone.",
    "stop": "An agent's answer ends where its model ends it.",
    "modalities": "Agents answer with text.",
    "service_tier": "How urgent a tenant's work is follows from its plan.",
    "tools": "An agent's tools are in its configuration, and are run here.",
    "tool_choice": "An agent's tools are in its configuration, and are run here.",
    "model": "The model is the id of an agent: 1–63 characters of a-z, 0-9, '_' and '-'.",
}


def work_of(request: ChatRequest) -> ExecutionRequest:
    """Return the execution that a chat asks for.

    Raises:
        InvalidMessage: the messages are not a conversation that a user goes on with.
    """
    said = [message for message in request.messages if not isinstance(message, InstructionMessage)]
    instructions = [_text(message.content) for message in request.messages if isinstance(message, InstructionMessage)]
    if not said or not isinstance(said[-1], UserMessage) or not (query := _text(said[-1].content)):
        wrong = "the last message has to be one of the user's, with text in it"
        raise InvalidMessage(f"The body breaks the contract: messages: {wrong}.", complaints=[("messages", wrong)])
    try:
        return ExecutionRequest(
            agent_id=request.model,
            query=query,
            agent_config=_overrides(request),
            context=Context.model_validate(
                {
                    "history": [_earlier(message) for message in said[:-1]],
                    **({INSTRUCTIONS: instructions} if instructions else {}),
                }
            ),
            metadata=Metadata(**(request.metadata or ChatMetadata()).model_dump(exclude_none=True)),
        )
    except ValidationError as error:
        raise breach(error, where="messages") from None


def _overrides(request: ChatRequest) -> AgentOverrides:
    given = {
        "temperature": request.temperature,
        "max_output_tokens": request.max_completion_tokens or request.max_tokens,
        "parallel_tool_calls": request.parallel_tool_calls,
        "response_format": _schema(request.response_format),
    }
    return AgentOverrides.model_validate({name: value for name, value in given.items() if value is not None})


def _schema(asked: TextFormat | JsonFormat | SchemaFormat | None) -> dict[str, Any] | None:
    match asked:
        case None | TextFormat():
            return None
        case JsonFormat():
            return {"type": "object"}
        case SchemaFormat(json_schema=named):
            return named.schema_
        case other:
            assert_never(other)


def _earlier(message: UserMessage | AssistantMessage | ToolMessage | InstructionMessage) -> HistoryMessage:
    match message:
        case UserMessage(content=content):
            return HistoryMessage(role="user", content=_text(content))
        case AssistantMessage(content=content, tool_calls=made):
            calls = [
                ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments) for call in made or ()
            ]
            return HistoryMessage(role="assistant", content=_text(content or ""), tool_calls=calls)
        case ToolMessage(content=content, tool_call_id=call_id):
            return HistoryMessage(role="tool", content=_text(content), tool_call_id=call_id)
        case InstructionMessage():
            raise AssertionError("instructions are no history")
        case other:
            assert_never(other)


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


class AnswerMessage(ContractModel):
    """What the agent says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class AnswerChoice(ContractModel):
    """The one answer."""

    index: Literal[0] = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatUsage(ContractModel):
    """Tokens of all turns."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(ContractModel):
    """The answer of an agent; `id` names its execution."""

    id: Annotated[str, Field(description="`chatcmpl-` and the id of the execution")]
    object: Literal["chat.completion"] = "chat.completion"
    created: Annotated[int, Field(description="seconds since 1970")]
    model: Annotated[str, Field(description="the id of the agent")]
    choices: list[AnswerChoice]
    usage: ChatUsage


class ChatFault(ContractModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str


class ChatError(ContractModel):
    """The body of every answer that is an error."""

    error: ChatFault


def completion_of(response: FinalResponse) -> ChatCompletion:
    """Return the answer that a completed execution comes to."""
    return ChatCompletion(
        id=_id(response.execution_id),
        created=int(response.created_at.timestamp()),
        model=response.agent_id,
        choices=[AnswerChoice(message=AnswerMessage(content=response.output.text), finish_reason=_reason(response))],
        usage=_usage(response.usage),
    )


def _id(execution_id: str) -> str:
    return f"chatcmpl-{execution_id}"


def _reason(response: FinalResponse) -> Literal["stop", "length"]:
    return "length" if response.finish_reason == "length" else "stop"


def _usage(usage: Usage) -> ChatUsage:
    return ChatUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )


class Failed(Exception):
    """The execution has failed; `error` says why."""

    def __init__(self, error: ErrorDetail) -> None:
        """Keep why."""
        super().__init__(error.message)
        self.error = error


class StreamedAnswer:
    """An answer in chunks, as far as it was told.

    What a client was sent cannot be taken back. So where a turn begins anew, what the client has of it is waited for; it
    goes on from there, or if the turn is told differently now, the stream ends in an error. With `whole`, nothing is told
    before all of it is known to hold: an answer in JSON is of no use in parts.
    """

    def __init__(self, execution_id: str, agent_id: str, *, whole: bool, with_usage: bool) -> None:
        """Begin with nothing told."""
        self._head = {"id": _id(execution_id), "object": "chat.completion.chunk", "created": 0, "model": agent_id}
        self._whole = whole
        self._with_usage = with_usage
        self._has_begun = False
        self._turn = 0
        self._step = ""
        self._gap = ""
        #: Of the present turn: what its present attempt has said, and what of it the client has.
        self._said = ""
        self._told = ""
        self.is_over = False

    def tell(self, events: Sequence[LoggedEvent]) -> str:
        """Return the server-sent events that these events come to; `is_over` once nothing follows.

        Raises:
            Refused: what was told does not hold.
            Failed: the execution has failed.
        """
        sent = "".join(self._chunks_of(event) for event in events)
        return sent if self.is_over else sent + self._flush()

    def _chunks_of(self, event: LoggedEvent) -> str:
        match event.name:
            case EventName.STARTED:
                self._head["created"] = event.at_ms // 1000
            case EventName.TOKEN:
                self._said += json.loads(event.json)["token"]
            case EventName.STEP_RESTARTED:
                if json.loads(event.json)["step"] == self._step:
                    self._said = ""
            case EventName.PROGRESS:
                said = json.loads(event.json)
                if said["stage"] == "thinking":
                    return self._think(said)
            case EventName.COMPLETED:
                return self._end(FinalResponse.model_validate(json.loads(event.json)["response"]))
            case EventName.FAILED:
                raise Failed(ErrorDetail.model_validate(json.loads(event.json)["error"]))
        return ""

    def _think(self, said: Mapping[str, Any]) -> str:
        """A turn begins, if it is not the present one that begins anew."""
        self._step = said["step"]
        if said["turn"] == self._turn:
            return ""
        self._turn = said["turn"]
        if "repair" in said["detail"]:  # the turn before has to be said again, in another form
            self._said = ""
        sent = self._flush()
        self._check_told()
        self._gap = self._gap or (GAP if self._told else "")
        self._said = self._told = ""
        return sent

    def _flush(self) -> str:
        """Tell what was said, as far as it goes on from what was told."""
        if self._whole or len(self._said) <= len(self._told):
            return ""
        if not self._said.startswith(self._told):
            self._check_told()
        more, gap = self._said[len(self._told) :], "" if self._told else self._gap
        self._told = self._said
        return self._chunk({"content": gap + more})

    def _check_told(self) -> None:
        if not self._said.startswith(self._told):
            raise Refused(
                "answer_restarted",
                "What was streamed of this answer is void: it was begun anew, and goes on differently. Send the request "
                "again; with the same Idempotency-Key it is the same execution, whose answer is kept.",
            )

    def _end(self, response: FinalResponse) -> str:
        self._said, self._whole = response.output.text, False
        sent = self._flush()
        self._check_told()
        sent += self._chunk({}, finish_reason=_reason(response))
        if self._with_usage:
            sent += _event({**self._head, "choices": [], "usage": _usage(response.usage).model_dump()})
        self.is_over = True
        return f"{sent}data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], *, finish_reason: str | None = None) -> str:
        if not self._has_begun:
            self._has_begun = True
            delta = {"role": "assistant", "content": "", **delta}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event({**self._head, "choices": [choice], **({"usage": None} if self._with_usage else {})})


def error_event(body: BaseModel) -> bytes:
    """Return the server-sent event that ends a stream which cannot go on."""
    return _event(body.model_dump()).encode()


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


#: The status for the code of a failed execution. Its provider and its neighbours are behind a gateway, seen from here.
STATUS_OF_FAILURE = {
    "agent_not_found": 404,
    "budget_exceeded": 429,
    "cancelled": 409,
    "content_filtered": 400,
    "context_too_long": 400,
    "limit_exceeded": 400,
    "prompt_invalid": 400,
    "provider_rate_limited": 429,
    "provider_timeout": 504,
    "step_timed_out": 504,
    "tenant_not_found": 404,
    "timed_out": 504,
    "internal_error": 500,
    "step_poisoned": 500,
}
BAD_GATEWAY = 502
#: Codes that clients of OpenAI know under another name.
KNOWN_AS = {"context_too_long": "context_length_exceeded"}

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_SERVER_ERROR = 500


def failure_of(error: ErrorDetail) -> tuple[int, ChatError, Mapping[str, str]]:
    """Return the status, the body and the headers that a failed execution comes to.

    What could be tried again was: sent once more, it would be a new execution, and paid again.
    """
    status = STATUS_OF_FAILURE.get(error.code, BAD_GATEWAY)
    return status, _fault(status, KNOWN_AS.get(error.code, error.code), error.message), {SHOULD_RETRY: "false"}


def _worded(problem: Problem) -> tuple[int, ChatError, Mapping[str, str]]:
    status = 400 if problem.code == InvalidMessage.code else problem.status
    return status, _body_of(problem, status), {SHOULD_RETRY: "true" if problem.retryable else "false"}


def _body_of(problem: Problem, status: int) -> ChatError:
    if not problem.errors:
        return _fault(status, problem.code, problem.detail)
    place = problem.errors[0].field
    name = place.partition(".")[0]
    if name not in ChatRequest.model_fields:
        return _fault(status, "unsupported_parameter", f"'{name}' is not supported here.", param=name)
    if name in UNSUPPORTED:
        return _fault(status, "unsupported_value", f"'{name}': {UNSUPPORTED[name]}", param=name)
    return _fault(status, problem.code, problem.detail, param=place)


def _fault(status: int, code: str, message: str, *, param: str | None = None) -> ChatError:
    kind = "server_error" if status >= _SERVER_ERROR else _TYPES.get(status, "invalid_request_error")
    return ChatError(error=ChatFault(message=message, type=kind, param=param, code=code))


#: How this wire words a problem.
ERRORS = ErrorForm("application/json", ChatError, _worded)
