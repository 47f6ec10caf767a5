"""The OpenAPI document, generated from the route table and the models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from aegis_protocol import __version__
from aegis_protocol.errors import ErrorReply
from pydantic import BaseModel, RootModel
from pydantic.json_schema import models_json_schema

from aegis_control.http.route import Route

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_MEDIA: Final = {
    "/metrics": "text/plain",
    "/signaling/{job_id}/events": "text/event-stream",
    "/events": "text/event-stream",
    "/openapi.json": "application/json",
}


class Document(RootModel[dict[str, Any]]):
    """An OpenAPI document."""


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document (OpenAPI 3.1) of `routes`."""
    schemas, definitions = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Aegis control", "version": __version__, "license": _LICENSE},
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


_LICENSE: Final = {"name": "Apache-2.0", "identifier": "Apache-2.0"}


def _schemas(
    routes: Sequence[Route],
) -> tuple[dict[type[BaseModel], dict[str, Any]], dict[str, Any]]:
    used: dict[type[BaseModel], None] = {ErrorReply: None}
    for route in routes:
        for model in _models(route):
            used[model] = None
    found, top = models_json_schema(
        [(model, "validation") for model in used],
        ref_template="#/components/schemas/{model}",
    )
    return {model: found[model, "validation"] for model in used}, top["$defs"]


def _models(route: Route) -> Iterable[type[BaseModel]]:
    if route.takes is not None:
        yield route.takes
    yield from (model for model in route.gives.values() if model is not None)


def _operation(route: Route, schemas: dict[type[BaseModel], dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}{re.sub(r'[^A-Za-z0-9]+', '_', route.path)}",
        "responses": {
            **{
                str(int(status)): _response(
                    route, None if model is None else schemas[model], status.phrase
                )
                for status, model in route.gives.items()
            },
            "default": _response(route, schemas[ErrorReply], "An error"),
        },
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [
        {"name": q.name, "in": "query", "description": q.words, "schema": dict(q.schema)}
        for q in route.queries
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.takes is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[route.takes]}},
        }
    if route.role is not None:
        operation["security"] = [{"bearer": []}, {"apiKey": []}]
        operation["description"] = f"Needs the role `{route.role}` or a higher one."
    return operation


def _response(route: Route, schema: dict[str, Any] | None, words: str) -> dict[str, Any]:
    if schema is not None:
        return {"description": words, "content": {"application/json": {"schema": schema}}}
    media = _MEDIA.get(route.path)
    return {"description": words} | ({"content": {media: {}}} if media else {})
