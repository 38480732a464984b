"""The OpenAPI document: each model's endpoint has the types of its task and a working example."""

import json
import re
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.http.background import SharedCall
from service.models.model import Model
from service.models.repository import Repository
from tasks.contract import Task
from tasks.manifest import Manifest

_ERRORS = {
    "400": "The body is empty or malformed",
    "404": "Unknown model",
    "406": "The model has none of the representations that the Accept header lists",
    "413": "The body or the input (image, text, table) exceeds a limit",
    "415": "The model does not accept this content type",
    "422": "The request is well formed but invalid",
    "500": "The model or the server failed on this input",
    "503": "Overloaded: the deadline cannot be met, or too many requests are in progress (with Retry-After); or the "
    "device is out of memory, not responding or failed; or the model is not being served",
    "504": "The request's deadline passed",
}
_FORM_OPTIONS = "A form may also have the other fields of the JSON body, each as a field of its own."
_BINARY = {"type": "string", "format": "binary"}
_REQUEST_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "timeout_ms": (
        {"type": "number", "exclusiveMinimum": 0},
        "Deadline for the answer, in milliseconds. A request that cannot meet it is rejected immediately.",
    ),
    "priority": (
        {"type": "string", "enum": ["high", "normal", "low"]},
        "The target response time is divided by 8 for high and multiplied by 8 for low priority.",
    ),
}


class ErrorDetail(BaseModel):
    """One problem with a request."""

    where: str
    reason: str
    message: str


class ErrorSummary(BaseModel):
    """An error: a code from a closed set, and a message that says what went wrong."""

    code: str
    message: str
    details: list[ErrorDetail] | None = None


class FailedInput(BaseModel):
    """One of several inputs that could not be answered."""

    error: ErrorSummary


class ErrorBody(ErrorSummary):
    """An error, and the id of the request that it belongs to."""

    request_id: str


class ErrorResponse(BaseModel):
    """The format of all errors."""

    error: ErrorBody


_Served = tuple[tuple[Manifest, bool], ...]
"""The served versions, and whether each is the default of its model."""


class OpenApiDocument:
    """The document as JSON, built in a thread when the served models have changed."""

    def __init__(self, app: FastAPI, repository: Repository, open_paths: re.Pattern[str] | None = None) -> None:
        """`open_paths` are those that need no API key; None if no path does."""
        self._app = app
        self._repository = repository
        self._open_paths = open_paths
        self._build_shared = SharedCall(lambda: self._build)
        self._served: _Served | None = None
        self._content = b""

    async def respond(self, request: Request) -> Response:
        """Answer a request for the document."""
        if self._served != self._served_now():
            self._served, self._content = await self._build_shared()
        return Response(self._content, media_type="application/json")

    def _served_now(self) -> _Served:
        repository = self._repository
        return tuple(
            (model.manifest, repository.default_of(model.manifest.name) is model)
            for model in repository.served_models()
        )

    def _build(self) -> tuple[_Served, bytes]:
        served = self._served_now()  # Before the document: if they change meanwhile, it is built again.
        document = build_openapi(self._app, self._repository)
        if self._open_paths is not None:
            _require_api_key(document, self._open_paths)
        return served, json.dumps(document, ensure_ascii=False).encode()


def build_openapi(app: FastAPI, repository: Repository) -> dict[str, Any]:
    """Return the OpenAPI document of the models that are being served."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    for kind in (ErrorResponse, FailedInput):
        _add_schema(schemas, kind, "", mode="serialization")
    _replace_fastapi_errors(document, schemas)
    for model in repository.served_models():
        name = model.manifest.name
        if repository.default_of(name) is model:
            document["paths"][f"/v1/models/{name}/predict"] = {"post": _operation(model, schemas)}
        by_version = _operation(model, schemas) | {"deprecated": False}
        by_version["operationId"] += f"_{model.manifest.version}"
        by_version["summary"] += f" (version {model.manifest.version})"
        document["paths"][f"/v1/models/{name}/versions/{model.manifest.version}/predict"] = {"post": by_version}
    return document


def _require_api_key(document: dict[str, Any], open_paths: re.Pattern[str]) -> None:
    """Document that all other paths need an API key; the documentation page then has a button to enter one."""
    scheme = {"type": "http", "scheme": "bearer", "description": "An API key of the file of --api-keys-file."}
    document["components"].setdefault("securitySchemes", {})["ApiKey"] = scheme
    document["security"] = [{"ApiKey": []}]
    for path, item in document["paths"].items():
        for operation in item.values():
            if open_paths.fullmatch(path):
                operation.setdefault("security", [])
            else:
                operation["responses"].setdefault("401", _error_response("The API key is missing or wrong"))


def _replace_fastapi_errors(document: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Remove FastAPI's own error format, which this service never sends."""
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            responses = operation["responses"]
            if "HTTPValidationError" in str(responses.get("422")):
                del responses["422"]
                responses["404"] = _error_response(_ERRORS["404"])
            if path.startswith("/v1/models/{") and method == "get":
                responses["503"] = _error_response("The model is not being served")


def _operation(model: Model, schemas: dict[str, Any]) -> dict[str, Any]:
    manifest, task = model.manifest, model.task
    request = _add_schema(schemas, task.request_type, f"{manifest.name}_", mode="validation")
    fields = schemas[f"{manifest.name}_{task.request_type.__name__}"].setdefault("properties", {})
    for name, (schema, description) in _REQUEST_OPTIONS.items():
        fields.setdefault(name, schema | {"description": description})
    answer: dict[str, Any] = _add_schema(schemas, task.answer_type, f"{manifest.name}_", mode="serialization")
    if task.upload is not None and task.upload.several:
        fields[task.upload.field] = _one_or_several(fields[task.upload.field])
        answer = _answer_to_one_or_several(answer)
    errors = {status: _error_response(text) for status, text in _ERRORS.items()}
    return {
        "tags": [manifest.name],
        "summary": manifest.title,
        "operationId": f"predict_{manifest.name}",
        "parameters": [*_header_parameters(), *_option_parameters(model)],
        "requestBody": {
            "required": True,
            "description": _FORM_OPTIONS if task.upload else "",
            "content": _body_content(model, request),
        },
        "responses": {"200": _answer_response(model, answer)} | errors,
    }


def _one_or_several(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an input, or of a list of inputs that are each answered for itself."""
    return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}


def _answer_to_one_or_several(answer: dict[str, Any]) -> dict[str, Any]:
    item = {"anyOf": [answer, {"$ref": "#/components/schemas/FailedInput"}]}
    description = (
        "The answers to a list of inputs, in their order: for each an answer or an error. The status is 200 even if "
        "every input failed."
    )
    several = {
        "type": "object",
        "required": ["answers"],
        "properties": {"answers": {"type": "array", "items": item, "description": description}},
    }
    return {"anyOf": [answer, several]}


def _body_content(model: Model, request: dict[str, str]) -> dict[str, Any]:
    """Return the bodies that the model takes. The documentation page shows the first one.

    For images that is the form: it has a button that selects a file, and in JSON an image is thousands of characters.
    """
    as_json: dict[str, Any] = {"application/json": {"schema": request, "example": dict(model.example)}}
    upload = model.task.upload
    if upload is None:
        return as_json
    # Without options: Swagger UI sends a value that it makes up for each field of a form, such as a deadline of 1 ms.
    file = _one_or_several(_BINARY) if upload.several else _BINARY
    schema = {"type": "object", "required": [upload.field], "properties": {upload.field: file}}
    as_form: dict[str, Any] = {"multipart/form-data": {"schema": schema}}
    as_file = {media_type: {"schema": _BINARY} for media_type in upload.media_types}
    return as_form | as_json | as_file if model.task.decodes_files else as_json | as_form | as_file


def _option_parameters(model: Model) -> list[dict[str, Any]]:
    """Document the fields other than the upload as query parameters, for bodies that are only a file."""
    parameters = []
    for name, schema in _option_schemas(model.task).items():
        text = f"{schema.pop('description', '')} Must not also be set in the body.".lstrip()
        parameters.append({"name": name, "in": "query", "required": False, "schema": schema, "description": text})
    return parameters


def _option_schemas(task: Task) -> dict[str, dict[str, Any]]:
    """Return the schemas of what can be set beside an upload, in the query or a form: request options, task fields."""
    options = {name: schema | {"description": text} for name, (schema, text) in _REQUEST_OPTIONS.items()}
    if task.upload is None:
        return options
    fields: dict[str, dict[str, Any]] = task.request_type.model_json_schema()["properties"]
    del fields[task.upload.field]
    for schema in fields.values():
        # Swagger UI would send the default even if it is set elsewhere, which is an error.
        schema.pop("default", None)
    return options | fields


def _header_parameters() -> list[dict[str, Any]]:
    """Document the headers that set request options; headers are known before the body is read."""
    return [
        {"name": header, "in": "header", "required": False, "schema": schema, "description": description}
        for header, (schema, description) in zip(
            ("X-Request-Timeout-Ms", "X-Request-Priority"), _REQUEST_OPTIONS.values(), strict=True
        )
    ]


def _answer_response(model: Model, answer: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for representation in model.task.representations:
        content[representation.media_type] = {"schema": answer if representation.file is None else _BINARY}
    content["application/json"]["example"] = model.example_answer
    return {
        "description": "The answer",
        "headers": {
            "Server-Timing": {
                "schema": {"type": "string"},
                "description": "Time spent in each stage, in ms.",
            },
            "X-Model": {"schema": {"type": "string"}, "description": "Name and version of the model that answered."},
        },
        "content": content,
    }


def _error_response(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/ErrorResponse"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _add_schema(schemas: dict[str, Any], kind: type[BaseModel], prefix: str, *, mode: Any) -> dict[str, str]:
    """Add a type and the types it contains, with a prefix: types of the same name differ between models."""
    template = "#/components/schemas/" + prefix + "{model}"
    schema = kind.model_json_schema(ref_template=template, mode=mode)
    for name, part in schema.pop("$defs", {}).items():
        schemas[prefix + name] = part
    schemas[prefix + kind.__name__] = schema
    return {"$ref": template.format(model=kind.__name__)}
