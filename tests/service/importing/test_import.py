"""`python -m service import`: what other programs export becomes a model folder that is served, or is refused."""

import base64
import io
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from PIL import Image

from service.__main__ import main
from tasks.contract import files_of, parameters_of
from tasks.manifest import read_manifest, verify_files
from tests.service.conftest import Start
from tests.service.importing import foreign_graphs
from tests.service.importing.foreign_graphs import FACTOR, classifier
from tests.service.program import ROOT
from tests.tiny import sentiment as tiny_sentiment
from tests.tiny.models import every_task, graph_of

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
NORMALISED = ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.5")
COLOUR = (200, 90, 30)

Import = Callable[..., tuple[int, str, str]]


@pytest.fixture
def import_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Import:
    """Import a graph as tmp_path/models/own/VERSION; return the exit status, what was printed, and the errors."""

    def run(model: ModelProto | bytes, *flags: object, name: str = "own") -> tuple[int, str, str]:
        path = tmp_path / "graph.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        words = ["import", path, "--models", tmp_path / "models", "--name", name, *flags]
        status = main([str(word) for word in words])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("red\ngreen\nblue\n")
    return path


def photo(colour: tuple[int, int, int] = COLOUR, size: tuple[int, int] = (40, 30)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def predict(start: Start, models: Path, body: dict[str, Any], name: str = "own") -> Any:
    answer = start(models=models).client.post(f"/v1/models/{name}/predict", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize(
    "model",
    [
        classifier(),
        classifier(batch=1),
        classifier(batch=4),
        classifier(last="Softmax"),
        classifier(batch=1, last="Softmax", opset=11),
        classifier(input_shape=(16, 16, 3)),
        classifier(dtype="float16"),
        classifier(input_shape=(3, "h", "w")),
    ],
    ids=["dynamic", "batch of 1", "batch of 4", "soft-max", "opset 11", "channels last", "16 bits", "any size"],
)
def test_a_classifier_gets_the_normalisation_and_the_soft_max_that_its_graph_lacks(
    import_graph: Import, start: Start, tmp_path: Path, labels: Path, model: ModelProto
) -> None:
    status, out, err = import_graph(
        model, "--task", "classification", "--labels", labels, "--size", "16", *NORMALISED, "--licence", "MIT"
    )

    assert (status, err) == (0, "")
    assert f"Imported: {tmp_path / 'models' / 'own' / '1'}" in out
    assert f"python -m service --models {tmp_path / 'models'} --only own" in out
    assert "is taken as" in out
    answer = predict(start, tmp_path / "models", {"image": photo(), "top_k": 3})
    scores = FACTOR * (np.array(COLOUR) / 255 - MEAN) / STD
    probabilities = {entry["label"]: entry["probability"] for entry in answer["labels"]}
    expected = softmax(scores)
    assert [probabilities[name] for name in ("red", "green", "blue")] == pytest.approx(expected, abs=5e-3)


def test_a_model_without_an_activation_map_refuses_a_heat_map_in_a_sentence(
    import_graph: Import, start: Start, tmp_path: Path, labels: Path
) -> None:
    assert import_graph(classifier(), "--task", "classification", "--labels", labels)[0] == 0

    served = start(models=tmp_path / "models")
    answer = served.client.post("/v1/models/own/predict", json={"image": photo(), "heatmap": True})
    details = served.client.get("/v1/models/own").json()

    assert answer.status_code == 422
    assert "no heat map can be drawn" in answer.json()["error"]["message"]
    assert [output["name"] for output in details["outputs"]] == ["probabilities"]


def test_logits_of_several_labels_become_a_probability_each(
    import_graph: Import, start: Start, tmp_path: Path, labels: Path
) -> None:
    flags = ("--task", "classification", "--labels", labels, "--thresholds", "0.6", *NORMALISED)

    assert import_graph(classifier(), *flags)[0] == 0

    answer = predict(start, tmp_path / "models", {"image": photo(), "all_labels": True})
    probabilities = {entry["label"]: entry["probability"] for entry in answer["labels"] + answer["others"]}
    scores = FACTOR * (np.array(COLOUR) / 255 - MEAN) / STD
    expected = dict(zip(("red", "green", "blue"), (1 / (1 + np.exp(-scores))).tolist(), strict=True))
    assert probabilities == pytest.approx(expected, abs=1e-4)
    assert {entry["label"] for entry in answer["labels"]} == {name for name, p in expected.items() if p >= 0.6}


def test_one_number_is_the_probability_of_the_second_of_two_labels(
    import_graph: Import, start: Start, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["column"]),
        helper.make_node("Sigmoid", ["column"], ["y"]),
    ]
    inputs, outputs = {"x": ("float32", ("n", 16, 16, 3))}, {"y": ("float32", ("n", 1))}
    model = foreign_graphs.make(nodes, inputs, outputs, {"shape": np.array([-1, 1])})

    status, _, err = import_graph(model, "--task", "classification", "--labels", "no,yes", "--pixels", "-1..1")

    assert (status, err) == (0, "")
    answer = predict(start, tmp_path / "models", {"image": photo((255, 255, 255))})
    assert answer["label"] == "yes"
    assert answer["probability"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-5)


def test_scores_of_pixels_become_a_mask_of_the_size_of_the_image(
    import_graph: Import, start: Start, tmp_path: Path, labels: Path
) -> None:
    status, out, err = import_graph(foreign_graphs.segmenter(), "--task", "segmentation", "--labels", labels)

    assert (status, err) == (0, "")
    assert "12×8 pixels; they are enlarged" in out
    image = Image.new("RGB", (96, 64), (220, 20, 20))
    image.paste((20, 20, 220), (0, 0, 48, 64))
    file = io.BytesIO()
    image.save(file, "PNG")
    answer = predict(start, tmp_path / "models", {"image": base64.b64encode(file.getvalue()).decode()})
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask_png"]))))
    assert (mask.shape, mask[32, 10], mask[32, 85]) == ((64, 96), 2, 0)
    assert {entry["label"]: entry["share"] for entry in answer["classes"]} == pytest.approx(
        {"red": 0.5, "blue": 0.5}, abs=0.05
    )


def test_points_in_fractions_become_points_of_the_image(import_graph: Import, start: Start, tmp_path: Path) -> None:
    flags = ("--task", "keypoints", "--names", "nose,chin", "--points", "fractions", "--fit", "squash")

    assert import_graph(foreign_graphs.point_finder(), *flags)[0] == 0

    answer = predict(start, tmp_path / "models", {"image": photo((51, 102, 204), size=(100, 50))})
    points = {point["name"]: (point["x"], point["y"], point["confidence"]) for point in answer["points"]}
    assert points["nose"] == pytest.approx((20, 20, 0.2), abs=0.01)
    assert points["chin"] == pytest.approx((40, 40, 0.4), abs=0.01)


def test_an_enlarged_image_becomes_pixels(import_graph: Import, start: Start, tmp_path: Path) -> None:
    flags = ("--task", "super_resolution", "--overlap", "8", "--margin", "2")

    assert import_graph(foreign_graphs.enlarger(), *flags)[0] == 0

    answer = predict(start, tmp_path / "models", {"image": photo(size=(50, 40))})
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["image"]))))
    assert (answer["scale"], pixels.shape) == (2, (80, 100, 3))
    assert np.abs(pixels.astype(int) - COLOUR).max() <= 1


def test_a_text_classifier_without_evidence_answers_without_words(
    import_graph: Import, start: Start, tmp_path: Path
) -> None:
    model = onnx.load_model_from_string(tiny_sentiment.graph())
    del model.graph.output[1]
    (tmp_path / "tokenizer.json").write_text(tiny_sentiment.TASK.tokenizer, encoding="utf-8")
    flags = ("--task", "sentiment", "--labels", "bad,good", "--tokenizer", tmp_path / "tokenizer.json")

    status, out, _ = import_graph(model, *flags, "--buckets", "8,16,32")

    assert status == 0
    assert "`words` is always empty" in out
    answer = predict(start, tmp_path / "models", {"text": "A lovely film, great."})
    assert (answer["label"], answer["words"]) == ("good", [])
    assert answer["probability"] > 0.9, "probabilities are those of the graph, not calibrated for another model"


COLUMNS = json.dumps(
    [
        {"kind": "number", "name": "age", "low": 0, "high": 90, "example": 30},
        {"kind": "number", "name": "height", "low": 0, "high": 2, "example": 1.7},
    ]
)


COLUMN = json.dumps(json.loads(COLUMNS)[:1])


@pytest.mark.parametrize("input_type", ["float32", "float64"])
def test_a_table_of_numbers_needs_no_input_for_categories(
    import_graph: Import, start: Start, tmp_path: Path, input_type: str
) -> None:
    model = foreign_graphs.linear_table(2, input_type=input_type)

    status, _, err = import_graph(
        model, "--task", "tabular", "--target", "tall", "--labels", "no,yes", "--columns", COLUMNS
    )

    assert (status, err) == (0, "")
    answer = predict(start, tmp_path / "models", {"rows": [{"age": 10, "height": 2}, {"age": 0, "height": 1}]})
    expected = [softmax(np.array([total, 2 * total]) / 10)[1] for total in (12, 1)]
    assert [row["probabilities"]["yes"] for row in answer["predictions"]] == pytest.approx(expected, abs=1e-5)


def test_a_number_gets_the_interval_that_its_graph_lacks(import_graph: Import, start: Start, tmp_path: Path) -> None:
    flags = ("--task", "tabular", "--target", "weight", "--spread", "0,100", "--columns", COLUMNS)

    status, _, err = import_graph(foreign_graphs.linear_table(1), *flags)
    assert (status, "--interval LOW,HIGH" in err) == (2, True)

    assert import_graph(foreign_graphs.linear_table(1), *flags, "--interval", "-2,3")[0] == 0
    answer = predict(start, tmp_path / "models", {"rows": [{"age": 10, "height": 2}]})
    (row,) = answer["predictions"]
    assert (row["low"], row["value"], row["high"]) == pytest.approx((-0.8, 1.2, 4.2), abs=1e-5)


@pytest.mark.parametrize("name", every_task())
def test_a_graph_that_fits_is_imported_for_every_task(import_graph: Import, tmp_path: Path, name: str) -> None:
    task = every_task()[name]
    (tmp_path / "parameters.json").write_text(json.dumps(parameters_of(task)), encoding="utf-8")
    files: list[object] = []
    for field, file in task.files.items():
        (tmp_path / file).write_text(files_of(task)[file], encoding="utf-8")
        files += [f"--{field}", tmp_path / file]
    task_name = type(task).__module__.rpartition(".")[2]

    status, _, err = import_graph(
        graph_of(name), "--task", task_name, "--parameters", tmp_path / "parameters.json", *files
    )

    assert (status, err) == (0, "")
    folder = tmp_path / "models" / "own" / "1"
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    assert manifest.load_task(folder) == task


def test_a_second_import_is_the_next_version_with_the_words_of_its_publisher(
    import_graph: Import, tmp_path: Path, labels: Path
) -> None:
    flags = ("--task", "classification", "--labels", labels)
    import_graph(classifier(), *flags)

    status, _, _ = import_graph(classifier(), *flags, "--title", "Paint", "--description", "Sorts tins.")

    assert status == 0
    folder = tmp_path / "models" / "own" / "2"
    manifest = read_manifest(folder)
    card = (folder / "README.md").read_text("utf-8")
    assert (manifest.version, manifest.title, manifest.description) == ("2", "Paint", "Sorts tins.")
    assert (manifest.parity, manifest.metrics) == (None, ())
    assert all(text in card for text in ("# Paint", "Sorts tins.", "labels.txt"))
    assert not [path for path in folder.iterdir() if str(tmp_path).encode() in path.read_bytes()]


def test_an_example_of_ones_own_becomes_a_golden_request(import_graph: Import, tmp_path: Path, labels: Path) -> None:
    (tmp_path / "photo.png").write_bytes(base64.b64decode(photo()))

    status, _, _ = import_graph(
        classifier(), "--task", "classification", "--labels", labels, "--example", tmp_path / "photo.png"
    )

    goldens = json.loads((tmp_path / "models" / "own" / "1" / "goldens.json").read_text())
    assert status == 0
    assert goldens[-1]["request"] == {"image": photo()}
    assert goldens[-1]["answer"]["label"] == "red"


def test_weights_in_a_file_beside_the_graph_become_part_of_it(
    import_graph: Import, tmp_path: Path, labels: Path
) -> None:
    model = with_external_weights("weights.bin")
    (tmp_path / "weights.bin").write_bytes(np.float32(FACTOR).tobytes())

    status, _, err = import_graph(model, "--task", "classification", "--labels", labels)

    assert (status, err) == (0, "")
    assert b"weights.bin" not in (tmp_path / "models" / "own" / "1" / "model.onnx").read_bytes()


def with_external_weights(location: str) -> ModelProto:
    model = classifier()
    factor = next(tensor for tensor in model.graph.initializer if tensor.name == "factor")
    factor.ClearField("raw_data")
    factor.data_location = TensorProto.EXTERNAL
    factor.external_data.add(key="location", value=location)
    return model


def with_metadata(model: ModelProto) -> ModelProto:
    model.graph.node[0].doc_string = "/home/anna/secret/train.py:12"
    model.metadata_props.add(key="source", value="/home/anna/secret")
    return model


def test_paths_that_an_exporter_recorded_are_removed(import_graph: Import, tmp_path: Path, labels: Path) -> None:
    import_graph(with_metadata(classifier()), "--task", "classification", "--labels", labels)

    assert b"anna" not in (tmp_path / "models" / "own" / "1" / "model.onnx").read_bytes()


def sequence_output() -> ModelProto:
    model = classifier()
    node = helper.make_node("SequenceConstruct", ["output"], ["list"])
    model.graph.node.append(node)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_sequence_value_info("list", 1, None))
    return model


def fixed_length() -> ModelProto:
    model = onnx.load_model_from_string(tiny_sentiment.graph())
    dim = model.graph.input[0].type.tensor_type.shape.dim[1]
    dim.Clear()
    dim.dim_value = 64
    return model


def not_a_number() -> ModelProto:
    return classifier(last="Log")


def with_opset(version: int) -> ModelProto:
    model = classifier()
    model.opset_import[0].version = version
    return model


CLASSIFICATION = ("--task", "classification", "--labels", "red,green,blue")
REFUSED: dict[str, tuple[Callable[[], ModelProto | bytes], tuple[str, ...], str]] = {
    "labels": (classifier, ("--task", "classification", "--labels", "a,b"), "There are 2 labels, but the graph"),
    "no labels": (classifier, ("--task", "classification"), "also needs --labels"),
    "same label": (classifier, ("--task", "classification", "--labels", "a,a,b"), "--labels: 'a' is there 2 times"),
    "blank label": (classifier, ("--task", "classification", "--labels", "a,,b"), "--labels: a name is blank"),
    "no size": (classifier, (*CLASSIFICATION, "--size", "0"), "--size 0: it must be at least 1"),
    "same column": (
        lambda: foreign_graphs.linear_table(2),
        ("--task", "tabular", "--target", "t", "--labels", "a,b", "--columns", f"[{COLUMN[1:-1]},{COLUMN[1:-1]}]"),
        "is there 2 times",
    ),
    "neither labels nor a number": (
        lambda: foreign_graphs.linear_table(2),
        ("--task", "tabular", "--target", "t", "--columns", COLUMN),
        "needs --labels (or --spread, for a number);",
    ),
    "no task": (classifier, (), "--task is missing; the tasks are classification, keypoints"),
    "unknown task": (classifier, ("--task", "clasification"), "'clasification' is not a task"),
    "size": (classifier, (*CLASSIFICATION, "--size", "32"), "is 16×16 pixels, but the task's is 32×32"),
    "not square": (lambda: classifier(input_shape=(3, 8, 16)), CLASSIFICATION, "not square"),
    "layout": (lambda: classifier(input_shape=("c", "h", "w")), CLASSIFICATION, "state it with --layout"),
    "channels": (
        lambda: classifier(input_shape=(4, 16, 16)),
        (*CLASSIFICATION, "--layout", "nchw"),
        "has 4 channels",
    ),
    "no image": (lambda: foreign_graphs.linear_table(3), CLASSIFICATION, "is not a batch of images"),
    "old opset": (lambda: with_opset(9), CLASSIFICATION, "version 9 of the ONNX operators"),
    "new opset": (lambda: with_opset(999), CLASSIFICATION, "version 999 of the ONNX operators"),
    "no ONNX": (lambda: b"PK\3\4 not a graph", CLASSIFICATION, "is not an ONNX file"),
    "empty file": (lambda: b"", CLASSIFICATION, "contains no graph"),
    "weights elsewhere": (lambda: with_external_weights("../weights.bin"), CLASSIFICATION, "stores weights in another"),
    "batch": (foreign_graphs.batch_dependent, CLASSIFICATION, "depends on the others in its batch"),
    "sequence": (sequence_output, CLASSIFICATION, "is a sequence or a map"),
    "not a number": (not_a_number, (*CLASSIFICATION, "--outputs", "logits", *NORMALISED), "infinite numbers or NaN"),
    "range": (
        lambda: classifier(last="Sigmoid"),
        (*CLASSIFICATION,),
        "does not contain probabilities of the labels; if several labels",
    ),
    "mean": (classifier, (*CLASSIFICATION, "--mean", "0.5"), "--mean and --std belong together"),
    "fit": (classifier, (*CLASSIFICATION, "--fit", "strech"), "fit: Input should be 'squash', 'pad' or 'crop'"),
    "switch": (classifier, (*CLASSIFICATION, "--heatmaps", "maybe"), "heatmaps: must be true or false, not 'maybe'"),
    "number": (classifier, (*CLASSIFICATION, "--size", "big"), "size: must be a whole number, not 'big'"),
    "name": (classifier, (*CLASSIFICATION, "--name", "My Model"), "lower-case letters"),
    "no such file": (classifier, ("--task", "classification", "--labels", "gone.txt"), "gone.txt cannot be used"),
    "a folder": (classifier, (*CLASSIFICATION, "--parameters", "/"), "it is a folder, not a file"),
    "models": (classifier, (*CLASSIFICATION, "--models", "/proc/models"), "/proc/models"),
    "a file": (classifier, (*CLASSIFICATION, "--models", "/etc/passwd"), "/etc/passwd"),
    "long path": (classifier, (*CLASSIFICATION, "--models", "m" * 300), "the path is too long"),
    "tiles": (foreign_graphs.enlarger, ("--task", "super_resolution"), "Tiles of 32 pixels cannot share 24"),
    "points": (foreign_graphs.point_finder, ("--task", "keypoints", "--names", "a,b,c"), "with 3 names"),
    "columns": (
        lambda: foreign_graphs.linear_table(2),
        ("--task", "tabular", "--target", "t", "--labels", "a,b", "--columns", COLUMN),
        "has an axis of length 2; the task requires 1",
    ),
    "no columns": (
        lambda: foreign_graphs.linear_table(2),
        ("--task", "tabular", "--target", "t", "--labels", "a,b", "--columns", "[]"),
        "The parameters do not fit the task",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence_and_leaves_nothing(
    import_graph: Import, tmp_path: Path, kind: str
) -> None:
    make, flags, sentence = REFUSED[kind]

    status, out, err = import_graph(make(), *flags)

    assert (status, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "models").exists()


def test_a_text_graph_of_a_fixed_length_is_refused(import_graph: Import, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tiny_sentiment.TASK.tokenizer, encoding="utf-8")
    flags = ("--task", "sentiment", "--labels", "bad,good", "--tokenizer", tmp_path / "tokenizer.json")

    status, _, err = import_graph(fixed_length(), *flags)

    assert status == 2
    assert "has the fixed length 64" in err
    assert "dynamic axis" in err


@pytest.mark.parametrize("limit", [400, 3_000])
def test_a_full_disk_leaves_nothing(import_graph: Import, tmp_path: Path, labels: Path, limit: int) -> None:
    """No file may grow beyond the limit, as on a full disk: at 400 bytes the graph, at 3,000 the goldens."""
    (tmp_path / "graph.onnx").write_bytes(classifier().SerializeToString())
    words = ["graph.onnx", "--task", "classification", "--labels", "labels.txt", "--models", "models"]

    ended = subprocess.run(
        [sys.executable, "-m", "service", "import", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 2, ended.stderr
    assert "would be larger than the system allows" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "models").exists()


def test_without_onnx_the_command_says_what_to_install() -> None:
    program = "import sys; sys.modules['onnx'] = None; from service.__main__ import main; sys.exit(main(['import']))"

    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert "pip install onnx" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("flags", [["--help"], ["--task", "segmentation", "--help"]])
def test_help_lists_the_parameters_of_a_task(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["import", *flags])

    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert ("--colours" in out) == (len(flags) > 1)


def test_help_states_what_the_graph_decides_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["import", "--task", "classification", "--help"])

    out = " ".join(capsys.readouterr().out.split())
    assert "(default: whether the graph has an output activation_map)" in out
    assert "(default: 224, unless the graph states it)" in out
