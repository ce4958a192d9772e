"""The OpenAPI 3.1 document, made from the table of operations.

Owns the document. Does not know any operation by name. WebSockets have no place in OpenAPI: they are in docs/contract.md.

Source: OpenAPI Specification 3.1.1.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent_exec.contract.event import Frame
from agent_exec.contract.model import EXECUTION_ID_PATTERN, ID_PATTERN, OPAQUE_ID_PATTERN
from api_shim import event_stream, examples
from api_shim.operation import OWNED_IDS, Operation
from api_shim.problem import ErrorForm, sample

#: What a path may name, and how it looks.
_IN_PATH = {
    **dict.fromkeys(OWNED_IDS, EXECUTION_ID_PATTERN),
    "tenant_id": ID_PATTERN,
    "tool_call_id": OPAQUE_ID_PATTERN,
}
#: The headers that an answer may bear, and what they say.
_HEADERS = {
    "ETag": "the tag of this answer, for If-None-Match",
    "Location": "the path of what was made",
    "Preference-Applied": "the preference that was honoured",
    "Retry-After": "seconds after which the request may be sent again",
    "WWW-Authenticate": "how to say who asks",
    "X-Should-Retry": "whether the same request may succeed a little later",
    "X-Request-Id": "the request's own, if it had one of 1–64 letters, digits, `.`, `_`, `-`; it is on its lines in our log",
}
_REF = "#/components/schemas/{model}"
_Schemas = Mapping[Any, dict[str, Any]]  # (model, mode) → its schema


def route(operations: Sequence[Operation]) -> Route:
    """Return the route of the document, which is made once, when it is first asked for."""
    text = ""

    async def answer(request: Request) -> Response:
        nonlocal text
        request.state.route = "/openapi.json"
        text = text or json.dumps(document(operations))
        return Response(text, media_type="application/json")

    return Route("/openapi.json", answer, methods=["GET"])


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the document as JSON values."""
    described = [operation for operation in operations if operation.method != "WEBSOCKET"]
    schemas, definitions = models_json_schema(_models(described), ref_template=_REF)
    followers = {_name(one): one for one in described if _path_parameters(one) == ["execution_id"]}
    paths: dict[str, dict[str, Any]] = {}
    for operation in described:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, schemas, followers)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Agent Execution Service",
            "version": "1",
            "description": "Submit executions of agents, follow their events, cancel them. The tenant is the credential's.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "headers": {name: {"description": said, "schema": {"type": "string"}} for name, said in _HEADERS.items()},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "an API key, `aek_<id>_<secret>`, or a token (JWT)",
                }
            },
        },
    }


def _models(operations: Sequence[Operation]) -> list[tuple[type[BaseModel], JsonSchemaMode]]:
    """Return each model once; bodies as they are taken, answers as they are given."""
    wanted: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(Frame, "serialization"): None}
    for operation in operations:
        if operation.body is not None:
            wanted[operation.body, "validation"] = None
        wanted[operation.form.body, "serialization"] = None
        for status in operation.answers:
            for answer in operation.forms(status):
                if not isinstance(answer, str):
                    wanted[answer, "serialization"] = None
    return list(wanted)


def _name(operation: Operation) -> str:
    return operation.function.__name__


def _described(operation: Operation, schemas: _Schemas, followers: Mapping[str, Operation]) -> dict[str, Any]:
    summary, _, description = (inspect.getdoc(operation.function) or "").partition("\n\n")
    described: dict[str, Any] = {
        "operationId": _name(operation),
        "summary": summary.replace("\n", " "),
        "tags": [operation.path.strip("/").removeprefix("v1/").partition("/")[0]],
        "parameters": [*_in_path(operation), *_beside_body(operation)],
        "responses": {**_answers(operation, schemas, followers), **_errors(operation, schemas)},
        "security": [] if operation.role is None else [{"bearer": []}],
    }
    if description:
        described["description"] = description
    if operation.body is not None:
        content = _content(operation.body, schemas[operation.body, "validation"], is_body=True)
        for media_type in operation.reads[1:]:
            example = examples.OF_TEXT[operation.path, media_type]
            content[media_type] = {"schema": {"type": "string"}, "example": example}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _path_parameters(operation: Operation) -> list[str]:
    return [name for name in _IN_PATH if f"{{{name}}}" in operation.path]


def _in_path(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": _IN_PATH[name]}}
        for name in _path_parameters(operation)
    ]


def _beside_body(operation: Operation) -> list[dict[str, Any]]:
    headers = operation.taken.headers()
    whole = operation.taken.model_json_schema()
    return [
        {
            "name": name,
            "in": "header" if name in headers else "query",
            "required": name in whole.get("required", ()),
            "description": schema.pop("description", ""),
            "schema": _without_null(schema),
        }
        for name, schema in whole.get("properties", {}).items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter that is there: what may be left out is not sent as null."""
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return choices[0] if len(choices) == 1 else {name: part for name, part in schema.items() if name != "title"}


def _answers(operation: Operation, schemas: _Schemas, followers: Mapping[str, Operation]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status in operation.answers:
        response: dict[str, Any] = {
            "description": HTTPStatus(status).phrase,
            "headers": _headers(operation.headers.get(status, ())),
        }
        for answer in operation.forms(status):
            if isinstance(answer, str):
                example = examples.OF_TEXT[operation.path, answer]
                # A schema of events would be one of each event (3.2 says how), not of the text.
                schema = {} if answer == event_stream.MEDIA_TYPE else {"schema": {"type": "string"}}
                content = {answer: {**schema, "example": example}}
            else:
                content = _content(answer, schemas[answer, "serialization"])
                if "execution_id" in answer.model_fields and not _path_parameters(operation):
                    response["links"] = {name: _link(name) for name in followers}
            response.setdefault("content", {}).update(content)
        responses[str(status)] = response
    return responses


def _link(name: str) -> dict[str, Any]:
    return {"operationId": name, "parameters": {"execution_id": "$response.body#/execution_id"}}


def _content(model: type[BaseModel], schema: dict[str, Any], *, is_body: bool = False) -> dict[str, Any]:
    example = examples.OF_MODEL[model].model_dump(mode="json", exclude_unset=is_body)
    return {"application/json": {"schema": schema, "example": example}}


def _headers(names: Sequence[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in dict.fromkeys([*names, "X-Request-Id"])}


def _errors(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    form: ErrorForm = operation.form
    responses: dict[str, Any] = {}
    for error in operation.errors:
        problem, headers = sample(error)
        status, body, further = form.of(problem)
        response = responses.setdefault(
            str(status),
            {
                "description": HTTPStatus(status).phrase,
                "headers": {},
                "content": {form.media_type: {"schema": schemas[form.body, "serialization"], "examples": {}}},
            },
        )
        response["headers"] |= _headers([*headers, *further])
        response["content"][form.media_type]["examples"][problem.code] = {
            "summary": problem.title,
            "value": body.model_dump(mode="json"),
        }
    return responses
