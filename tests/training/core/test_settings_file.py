import json
from dataclasses import dataclass

import pytest

from training.core.config import Settings, option
from training.core.errors import CannotTrain
from training.core.settings_file import read_settings_file


@dataclass(frozen=True)
class Options:
    dropout: float = option(0.2, "dropout", at_least=0, below=1)
    names: tuple[str, ...] = option((), "names")
    tta: bool = option(False, "average")


@pytest.fixture
def write(tmp_path):
    def write(**values):
        facts = {"recipe": "pets", "task": "classification", "processes": 1, "samples": 20, "parameters": "0a"}
        (tmp_path / "settings.json").write_text(json.dumps(facts | values))
        return read_settings_file(tmp_path / "settings.json")

    return write


def test_the_settings_of_a_run_are_read_from_its_file_or_its_folder(write, tmp_path):
    file = write(epochs=7, device="cpu", names=["a", "b"], dropout=0, tta=True)

    settings, options = read_settings_file(tmp_path).apply(Settings(), Options())

    assert (file.recipe, file.task, file.processes) == ("pets", "classification", 1)
    assert settings == Settings(epochs=7, device="cpu")
    assert options == Options(dropout=0.0, names=("a", "b"), tta=True)
    assert isinstance(options.dropout, float)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"epoch": 3}, "'epoch' is no setting of classification. Did you mean 'epochs'?"),
        ({"epochs": "3"}, "'epochs' is \"3\", not a whole number of at least 1."),
        ({"epochs": True}, "'epochs' is true, not a whole number of at least 1."),
        ({"epochs": 2.5}, "'epochs' is 2.5, not a whole number of at least 1."),
        ({"epochs": 0}, "'epochs' is 0, not a whole number of at least 1."),
        ({"rate": None}, "'rate' is null, not a number above 0."),
        ({"device": "tpu"}, "'device' is \"tpu\", not auto, cpu or cuda."),
        ({"names": "a,b"}, "'names' is \"a,b\", not a list of texts."),
        ({"names": ["a", 1]}, "'names' is [\"a\", 1], not a list of texts."),
        ({"tta": 1}, "'tta' is 1, not true or false."),
        ({"dropout": 1}, "'dropout' is 1, not a number of at least 0 and below 1."),
    ],
)
def test_a_key_or_a_value_that_makes_no_sense_is_named(write, values, sentence):
    file = write(**values)

    with pytest.raises(CannotTrain) as refused:
        file.apply(Settings(), Options())

    assert str(refused.value) == f"{file.path}: {sentence}"


def test_what_a_file_of_an_older_version_lacks_is_named(write):
    file = write(epochs=7, tta=True, **dict.fromkeys(("dropout", "rate", "clip", "seed", "seeds"), 1))

    assert file.missing(Settings(), Options(), without=("threads", "workers", "checkpoint_steps", "device")) == [
        "batch_size",
        "weight_decay",
        "label_smoothing",
        "precision",
        "names",
    ]


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"study": "ratings"}'])
def test_a_file_that_is_no_settings_file_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)

    with pytest.raises(CannotTrain, match=r"--config .*x\.json: it "):
        read_settings_file(tmp_path / "x.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CannotTrain, match=r"--config .*gone\.json: no such file"):
        read_settings_file(tmp_path / "gone.json")
