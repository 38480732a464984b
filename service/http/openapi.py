"""The description of the interface, with each model's endpoint typed by its task and an example that works."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.models.repository import Model, Repository

_ERRORS = {
    "400": "The body is empty or malformed",
    "404": "There is no such model",
    "406": "The answer has none of the representations that the Accept header names",
    "413": "The body, the picture or the table is too large",
    "415": "The content type is none that the model reads",
    "422": "The request is well formed, and cannot be answered",
    "500": "The model or the server failed on this input",
    "503": "The answer would come too late, or as many requests as are accepted are under way, with Retry-After; the "
    "device has no memory for this one, or hangs, or has failed; or the model is not served",
    "504": "The request's time ran out",
}


_BINARY = {"type": "string", "format": "binary"}


_WISHES: dict[str, tuple[dict[str, Any], str]] = {
    "timeout_ms": (
        {"type": "number", "exclusiveMinimum": 0},
        "How long the answer is of use, in milliseconds. A request that cannot be answered in time is refused at once.",
    ),
    "priority": (
        {"type": "string", "enum": ["high", "normal", "low"]},
        "High ones are due in an eighth of the usual time, low ones in eight times as much.",
    ),
}


class ErrorDetail(BaseModel):
    """One thing wrong with a request."""

    where: str
    reason: str
    message: str


class ErrorBody(BaseModel):
    """What went wrong, as a code from a closed set and as a sentence."""

    code: str
    message: str
    details: list[ErrorDetail] | None = None
    request_id: str


class ErrorResponse(BaseModel):
    """The one shape of every error."""

    error: ErrorBody


def describe_interface(app: FastAPI, repository: Repository) -> dict[str, Any]:
    """The OpenAPI document; made anew each time, since models come and go."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    _add_schema(schemas, ErrorResponse, "", mode="serialization")
    _correct_errors(document, schemas)
    for model in repository.served():
        name = model.manifest.name
        document["paths"].setdefault(f"/v1/models/{name}/predict", {"post": _operation(model, schemas)})
        by_version = _operation(model, schemas) | {"deprecated": False}
        by_version["operationId"] += f"_{model.manifest.version}"
        by_version["summary"] += f", version {model.manifest.version}"
        document["paths"][f"/v1/models/{name}/versions/{model.manifest.version}/predict"] = {"post": by_version}
    return document


def _correct_errors(document: dict[str, Any], schemas: dict[str, Any]) -> None:
    """FastAPI documents errors of its own shape, which this service never sends."""
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, item in document["paths"].items():
        for operation in item.values():
            if operation["responses"].pop("422", None):
                operation["responses"]["404"] = _error_response(_ERRORS["404"])
            if path.startswith("/v1/models/{"):
                operation["responses"]["503"] = _error_response("The model is not served")


def _operation(model: Model, schemas: dict[str, Any]) -> dict[str, Any]:
    manifest, task = model.manifest, model.task
    request = _add_schema(schemas, task.request_type, f"{manifest.name}_", mode="validation")
    fields = schemas[f"{manifest.name}_{task.request_type.__name__}"].setdefault("properties", {})
    for name, (schema, description) in _WISHES.items():
        fields.setdefault(name, schema | {"description": description})
    answer = _add_schema(schemas, task.answer_type, f"{manifest.name}_", mode="serialization")
    errors = {status: _error_response(text) for status, text in _ERRORS.items()}
    return {
        "tags": [manifest.name],
        "summary": manifest.title,
        "operationId": f"predict_{manifest.name}",
        "parameters": [*_header_parameters(), *_option_parameters(model)],
        "requestBody": {"required": True, "content": _body_content(model, request)},
        "responses": {"200": _answer_response(model, answer)} | errors,
    }


def _body_content(model: Model, request: dict[str, str]) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": request, "example": dict(model.example)}}
    if upload := model.task.upload:
        content["multipart/form-data"] = {
            "schema": {
                "type": "object",
                "required": [upload.field],
                "properties": {upload.field: _BINARY} | {name: schema for name, (schema, _) in _WISHES.items()},
            }
        }
        content |= {media_type: {"schema": _BINARY} for media_type in upload.media_types}
    return content


def _option_parameters(model: Model) -> list[dict[str, Any]]:
    """The fields beside the upload may also stand in the address, for bodies that have no place for them."""
    upload = model.task.upload
    options = [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": description}
        for name, (schema, description) in _WISHES.items()
    ]
    if upload is None:
        return options
    properties = model.task.request_type.model_json_schema()["properties"]
    for schema in properties.values():
        # Swagger UI would send a default along with a body that says otherwise, which is an error.
        schema.pop("default", None)
    return options + [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": "Not with a JSON body that has it.",
        }
        for name, schema in properties.items()
        if name != upload.field
    ]


def _header_parameters() -> list[dict[str, Any]]:
    """What may also stand in the body or the address; in a header it is known before anything else is read."""
    return [
        {"name": header, "in": "header", "required": False, "schema": schema, "description": description}
        for header, (schema, description) in zip(
            ("X-Request-Timeout-Ms", "X-Request-Priority"), _WISHES.values(), strict=True
        )
    ]


def _answer_response(model: Model, answer: dict[str, str]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for representation in model.task.representations:
        content[representation.media_type] = {"schema": answer if representation.file is None else _BINARY}
    content["application/json"]["example"] = model.example_answer
    return {
        "description": "The answer",
        "headers": {
            "Server-Timing": {"schema": {"type": "string"}, "description": "Where the time went, in milliseconds."},
            "X-Model": {"schema": {"type": "string"}, "description": "Name and version of the model that answered."},
        },
        "content": content,
    }


def _error_response(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/ErrorResponse"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _add_schema(schemas: dict[str, Any], kind: type[BaseModel], prefix: str, *, mode: Any) -> dict[str, str]:
    """Adds a type and those it is made of, under names of their own; two models' rows are not the same."""
    template = "#/components/schemas/" + prefix + "{model}"
    schema = kind.model_json_schema(ref_template=template, mode=mode)
    for name, part in schema.pop("$defs", {}).items():
        schemas[prefix + name] = part
    schemas[prefix + kind.__name__] = schema
    return {"$ref": template.format(model=kind.__name__)}
