"""The JSON schema of model folders, docs/model-folder.schema.json, is that of the code."""

import json
import re
from pathlib import Path

import pytest

from tasks import task_names, task_type
from tasks.folder_schema import folder_schema
from tasks.manifest import Manifest, read_manifest

ROOT = Path(__file__).parents[2]
MODELS = sorted(path.parent for path in (ROOT / "models").glob("*/*/manifest.json"))
DOCUMENT = (ROOT / "docs" / "model-folders.md").read_text("utf-8")


def test_the_committed_schema_is_current() -> None:
    committed = json.loads((ROOT / "docs" / "model-folder.schema.json").read_text("utf-8"))

    assert committed == folder_schema(), "run python -m tasks.folder_schema > docs/model-folder.schema.json"


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.parent.name)
def test_the_schema_knows_every_field_of_the_shipped_manifests(folder: Path) -> None:
    schema, manifest = folder_schema(), read_manifest(folder)
    parameters = schema["$defs"][manifest.task]

    assert set(manifest.model_dump(mode="json")) == set(schema["properties"])
    assert set(parameters["required"]) <= set(manifest.parameters) <= set(parameters["properties"])


def test_every_reference_in_the_schema_is_defined() -> None:
    schema = folder_schema()

    references = set(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(schema)))
    assert references >= set(task_names())
    assert references <= set(schema["$defs"])


def test_the_document_explains_every_field_and_every_tensor() -> None:
    for field in Manifest.model_fields:
        assert f"`{field}`" in DOCUMENT, field
    for name in task_names():
        assert f"| {name} |" in DOCUMENT, name
        for file in task_type(name).files.values():
            assert file in DOCUMENT, file
