"""Comparison of goldens, and the files of a model folder."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks._images import encode_image
from tasks.goldens import first_difference
from tasks.manifest import BrokenModel, read_manifest, verify_files
from tests.model_folders import publish
from tests.tiny.models import every_task, tiny
from tests.tiny.tabular import CREDIT, credit_graph

ANSWER = {"label": "cat", "probability": 0.9, "labels": [{"label": "cat", "probability": 0.9}], "seen": True}


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (ANSWER, None),
        (ANSWER | {"probability": 0.9005}, None),
        (ANSWER | {"probability": 0.91}, "answer.probability is 0.91, not 0.9"),
        (ANSWER | {"probability": float("nan")}, "answer.probability is nan, not 0.9"),
        (ANSWER | {"probability": "0.9"}, "answer.probability is '0.9', not 0.9"),
        (ANSWER | {"label": "dog"}, "answer.label is 'dog', not 'cat'"),
        (ANSWER | {"labels": []}, "answer.labels has a different shape"),
        (ANSWER | {"more": 1}, "answer has a different shape"),
        (ANSWER | {"seen": 1}, None),
        ({key: value for key, value in ANSWER.items() if key != "seen"} | {"sen": True}, "answer.seen is missing"),
    ],
)
def test_first_difference_is_described(actual: dict[str, Any], expected: str | None) -> None:
    assert first_difference(ANSWER, actual, 1e-3) == expected


def test_symlink_out_of_the_folder_is_rejected(tmp_path: Path) -> None:
    folder = publish(tmp_path, "credit", CREDIT, credit_graph())
    graph = folder / "model.onnx"
    graph.rename(tmp_path / "elsewhere.onnx")
    graph.symlink_to(tmp_path / "elsewhere.onnx")

    with pytest.raises(BrokenModel, match="outside the model's folder"):
        verify_files(folder, read_manifest(folder))


def test_images_in_answers_are_compared_by_their_pixels() -> None:
    levels = np.tile(np.arange(0, 200, dtype=np.uint8), (40, 1))

    def answer(pixels: np.ndarray) -> dict[str, Any]:
        return {"png": base64.b64encode(encode_image(pixels, "png")).decode()}

    assert first_difference(answer(levels), answer(levels + np.uint8(1)), 1e-3) is None
    assert first_difference(answer(levels), answer(levels[:, ::-1]), 1e-3) == "answer.png is a different image"
    assert first_difference(answer(levels), answer(levels[1:]), 1e-3) == "answer.png is a different image"
    damaged = {"png": "iVBORw0KGgo" + "A" * 50}
    assert first_difference(answer(levels), damaged, 1e-3) == "answer.png is a different image"


def test_masks_are_compared_by_the_fraction_of_differing_pixels() -> None:
    from tasks._masks import palette_png

    mask = np.zeros((20, 40), np.uint8)
    few, many = mask.copy(), mask.copy()
    few[0, :8], many[0, :9] = 1, 1  # Of 800 pixels: one hundredth, and more.

    def answer(pixels: np.ndarray) -> dict[str, Any]:
        return {"mask": base64.b64encode(palette_png(pixels, ((0, 0, 0), (1, 1, 1)))).decode()}

    assert first_difference(answer(mask), answer(few), 1e-3) is None
    assert first_difference(answer(mask), answer(many), 1e-3) == "answer.mask is a different image"


WITH_FILES = [name for name, task in every_task().items() if task.files]


def damage_file(folder: Path, name: str, damage: str) -> None:
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "not text":
        (folder / name).write_bytes(b"\xff\xfe\xfd")
    elif damage == "a folder":
        (folder / name).unlink()
        (folder / name).mkdir()
    elif damage == "not listed":
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["files"][name]
        (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", WITH_FILES)
class TestFilesOfATask:
    def test_files_are_stored_beside_the_manifest_which_has_their_hash(self, tmp_path: Path, name: str) -> None:
        task, graph = tiny(name)
        folder = publish(tmp_path, name, task, graph)
        manifest = read_manifest(folder)

        verify_files(folder, manifest)
        assert task == manifest.load_task(folder)
        assert set(task.files.values()) <= set(manifest.files)
        assert set(task.files).isdisjoint(manifest.parameters)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ("missing", "cannot be read: No such file"),
            ("not text", "is not UTF-8 text"),
            ("a folder", "cannot be read: Is a directory"),
            ("not listed", "The manifest does not list"),
        ],
    )
    def test_error_names_an_unusable_file(self, tmp_path: Path, name: str, damage: str, message: str) -> None:
        task, graph = tiny(name)
        folder = publish(tmp_path, name, task, graph)
        damage_file(folder, next(iter(task.files.values())), damage)

        with pytest.raises(BrokenModel, match=message):
            read_manifest(folder).load_task(folder)
