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
from api_shim import problem
from api_shim.operation import Operation

#: What a path may name, and how it looks.
_IN_PATH = {"execution_id": EXECUTION_ID_PATTERN, "tenant_id": ID_PATTERN, "tool_call_id": OPAQUE_ID_PATTERN}
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
    paths: dict[str, dict[str, Any]] = {}
    for operation in described:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, schemas)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Agent Execution Service",
            "version": "1",
            "description": "Submit executions of agents, follow their events, cancel them. The tenant is the API key's.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"api_key": {"type": "http", "scheme": "bearer", "bearerFormat": "aek_<id>_<secret>"}},
        },
    }


def _models(operations: Sequence[Operation]) -> list[tuple[type[BaseModel], JsonSchemaMode]]:
    """Return each model once; bodies as they are taken, answers as they are given."""
    taken = [operation.body for operation in operations if operation.body is not None]
    given = [model for operation in operations for model in operation.answers.values() if not isinstance(model, str)]
    wanted: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {}
    for model in taken:
        wanted[model, "validation"] = None
    given += [problem.Problem, Frame]
    for model in given:
        wanted[model, "serialization"] = None
    return list(wanted)


def _described(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.function.__name__,
        "summary": inspect.getdoc(operation.function),
        "parameters": [*_in_path(operation), *_beside_body(operation)],
        "responses": _responses(operation, schemas),
        "security": [] if operation.role is None else [{"api_key": []}],
    }
    if operation.body is not None:
        schema = schemas[operation.body, "validation"]
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _in_path(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": pattern}}
        for name, pattern in _IN_PATH.items()
        if f"{{{name}}}" in operation.path
    ]


def _beside_body(operation: Operation) -> list[dict[str, Any]]:
    headers = operation.parameters.headers()
    properties = operation.parameters.model_json_schema().get("properties", {})
    return [
        {
            "name": name,
            "in": "header" if name in headers else "query",
            "required": False,
            "description": schema.pop("description", ""),
            "schema": _without_null(schema),
        }
        for name, schema in properties.items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter that is there: what may be left out is not sent as null."""
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return choices[0] if len(choices) == 1 else {name: part for name, part in schema.items() if name != "title"}


def _responses(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in operation.answers.items():
        if isinstance(answer, str):
            content: dict[str, Any] = {answer: {"schema": {"type": "string"}}}
        else:
            content = {"application/json": {"schema": schemas[answer, "serialization"]}}
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    told = {problem.MEDIA_TYPE: {"schema": schemas[problem.Problem, "serialization"]}}
    for status in operation.errors:
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": told}
    return responses
