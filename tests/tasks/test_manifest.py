"""Two answers agree where a client could not tell them apart."""

from pathlib import Path
from typing import Any

import pytest

from tasks.manifest import BrokenModel, difference, read_manifest, verify_files
from tests.model_folders import CREDIT, credit_graph, publish

ANSWER = {"label": "cat", "probability": 0.9, "labels": [{"label": "cat", "probability": 0.9}], "seen": True}


@pytest.mark.parametrize(
    ("got", "found"),
    [
        (ANSWER, None),
        (ANSWER | {"probability": 0.9005}, None),
        (ANSWER | {"probability": 0.91}, "answer.probability is 0.91, not 0.9"),
        (ANSWER | {"probability": float("nan")}, "answer.probability is nan, not 0.9"),
        (ANSWER | {"probability": "0.9"}, "answer.probability is '0.9', not 0.9"),
        (ANSWER | {"label": "dog"}, "answer.label is 'dog', not 'cat'"),
        (ANSWER | {"labels": []}, "answer.labels has another shape"),
        (ANSWER | {"more": 1}, "answer has another shape"),
        (ANSWER | {"seen": 1}, None),
        ({key: value for key, value in ANSWER.items() if key != "seen"} | {"sen": True}, "answer.seen is missing"),
    ],
)
def test_the_first_difference_is_named(got: dict[str, Any], found: str | None) -> None:
    assert difference(ANSWER, got, 1e-3) == found


def test_a_file_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path, "credit", CREDIT, credit_graph())
    graph = folder / "model.onnx"
    graph.rename(tmp_path / "elsewhere.onnx")
    graph.symlink_to(tmp_path / "elsewhere.onnx")

    with pytest.raises(BrokenModel, match="outside the model's folder"):
        verify_files(folder, read_manifest(folder))
