"""The JSON schema of a model folder, written from the code: `python -m tasks.folder_schema`.

It describes manifest.json with the parameters of each task, and under `$defs` also goldens.json and files of tasks.
"""

import json
import sys
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter

from tasks import task_names, task_type
from tasks.contract import Task
from tasks.goldens import Golden
from tasks.manifest import GOLDENS, Manifest

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def folder_schema() -> dict[str, Any]:
    """Return the schema as JSON values."""
    schema = Manifest.model_json_schema(ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = schema.pop("$defs", {})
    definitions[GOLDENS] = _nested(TypeAdapter(list[Golden]).json_schema(ref_template="#/$defs/{model}"), definitions)
    cases = []
    for name in task_names():
        task = task_type(name)
        definitions |= _task_definitions(name, task, definitions)
        parameters = {"$ref": f"#/$defs/{name}"}
        cases.append(
            {
                "if": {"properties": {"task": {"const": name}}},
                "then": {"properties": {"parameters": parameters}},
            }
        )
    schema["properties"]["task"]["enum"] = list(task_names())
    return {"$schema": _DRAFT, **schema, "allOf": cases, "$defs": dict(sorted(definitions.items()))}


def _task_definitions(name: str, task: type[Task], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of a task's parameters and of its JSON files."""
    whole = _nested(TypeAdapter(task).json_schema(ref_template="#/$defs/{model}"), definitions)
    properties: dict[str, Any] = whole["properties"]
    found = {
        f"{name}/{file}": {**properties[field], "title": f"{file} of {name}"}
        for field, file in task.files.items()
        if file.endswith(".json") and properties[field].get("type") != "string"
    }
    properties = {field: values for field, values in properties.items() if field not in task.files}
    stored = {item.name for item in fields(task)} - set(task.files)
    whole["required"] = [field for field in whole.get("required", []) if field in stored]
    return {**found, name: {**whole, "properties": properties, "title": f"Parameters of {name}"}}


def _nested(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Move the definitions of a schema to those of the whole."""
    definitions |= schema.pop("$defs", {})
    return schema


if __name__ == "__main__":
    sys.stdout.write(json.dumps(folder_schema(), indent=1, ensure_ascii=False) + "\n")
