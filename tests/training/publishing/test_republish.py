"""The next version of a model, with the same graph and other parameters."""

from dataclasses import replace

import pytest

from tasks.goldens import read_goldens
from tasks.manifest import Metric, read_manifest, write_manifest
from tests.model_folders import publish, update_checksums
from tests.tiny import sentiment
from training.core.errors import CannotTrain
from training.data.download import Fetcher
from training.publishing.publish import replay
from training.publishing.republish import last_version, republish
from training.update_parameters import main, update_parameters

CARD = """---
metrics:
    - type: accuracy
      value: 0.9000
    - type: calibration_error
      value: 0.0500
---

`opinions`, version 1: texts.

| accuracy | 0.9000 | on 10 texts |
| calibration_error | 0.0500 | on 10 texts |
"""


@pytest.fixture
def published(tmp_path):
    folder = publish(tmp_path, "opinions", sentiment.TASK, sentiment.graph())
    (folder / "README.md").write_text(CARD)
    metrics = (
        Metric(name="accuracy", value=0.9, protocol="on 10 texts"),
        Metric(name="calibration_error", value=0.05, protocol="on 10 texts"),
    )
    write_manifest(folder, read_manifest(folder).model_copy(update={"metrics": metrics}))
    update_checksums(folder)
    return folder.parent


def test_version_with_new_parameters_has_the_same_graph_and_new_answers(published):
    last = last_version(published)
    task = replace(sentiment.TASK, short_text_temperatures=((32, 4.0),))
    requests = [{"text": "a great film"}]

    folder = republish(last, task, requests, lambda new: f"## Version {new.version}\n\nTempered.", {"accuracy": 0.91})

    old, new = read_manifest(last), read_manifest(folder)
    (golden,) = read_goldens(folder)
    card = (folder / "README.md").read_text()
    assert (new.version, new.load_task(folder)) == ("2", task)
    assert new.files["model.onnx"] == old.files["model.onnx"]
    assert [metric.value for metric in new.metrics] == [0.91, 0.05]
    assert 0.5 < golden.answer["probability"] < 0.9
    assert "`opinions`, version 2: texts." in card
    assert card.count("0.9100") == 2
    assert card.count("0.0500") == 2
    assert card.endswith("## Version 2\n\nTempered.\n")
    replay(folder)


def test_model_of_ones_own_data_is_not_measured_again_and_nothing_is_published(published, tmp_path, capsys):
    with pytest.raises(CannotTrain, match="not the model of a recipe"):
        update_parameters(published, Fetcher(tmp_path / "data"))

    assert main([str(published)]) == 2
    assert "not the model of a recipe" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "contains no model versions" in capsys.readouterr().err
    assert [path.name for path in published.iterdir()] == ["1"]
