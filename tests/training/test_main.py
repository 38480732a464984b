import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks import task_names
from tasks.goldens import read_goldens
from tasks.manifest import BrokenModel, read_manifest, verify_files
from training.__main__ import main
from training.core.provenance import code_version
from training.core.recipe import select_preset
from training.publishing import export
from training.publishing.publish import replay
from training.registry import learner_names, load_recipe, recipe_names
from training.reporting import run_folder

ROOT = Path(__file__).parents[2]
IMAGES = (
    *("--backbone", "resnet18", "--weights", "none", "--size", "32", "--epochs", "3"),
    *("--batch-size", "8", "--device", "cpu", "--precision", "fp32", "--rate", "0.003"),
)


@pytest.fixture
def train(tmp_path, capsys):
    """Run a command line with runs and models in the test's folder; return status, output and errors."""

    def run(*arguments):
        paths = ["--runs", tmp_path / "runs", "--models", tmp_path / "models", "--data-dir", tmp_path / "data"]
        status = main([str(word) for word in (*arguments, *paths, "--threads", "1")])
        caught = capsys.readouterr()
        return status, caught.out, caught.err

    return run


def test_help_lists_recipes_with_their_results_and_tasks_with_their_data(capsys):
    status = main(["--help"])

    out = capsys.readouterr().out
    assert status == 0
    assert re.search(r"clothing .*\n +expect accuracy 0\.9", out)
    assert re.search(r"tabular .*\n +--data: a CSV or Parquet file", out)


@pytest.mark.parametrize("words", [["training", "--help"], ["service", "import", "--task", "tabular", "--help"]])
def test_help_that_nobody_reads_is_no_traceback(words):
    reader, writer = os.pipe()
    os.close(reader)  # As by `| head`.

    ended = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)

    assert ended.returncode in (0, 1)  # argparse ignores errors of writing help.
    assert ended.stderr == ""


@pytest.mark.parametrize("name", ["clothing", "adult", "classification", "tabular"])
def test_each_name_has_help_with_its_defaults(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])

    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--publish" in out
    assert re.search(r"--rate FLOAT peak learning rate .*?\(default: [\d.]+\)", " ".join(out.split()))


@pytest.mark.slow
def test_training_on_photos_writes_a_report_and_a_working_model(train, photos, tmp_path):
    folder = photos(count=30, classes=("green", "red", "blue"))
    arguments = ("classification", "--data", folder, "--name", "colours", *IMAGES)

    status, out, err = train(*arguments, "--publish", "--torchscript")

    assert status == 0, err
    assert re.search(r"epoch +stage +loss +accuracy +val loss +rate", out)
    model = tmp_path / "models" / "colours" / "1"
    manifest = read_manifest(model)
    verify_files(model, manifest)
    replay(model)
    assert {"model.onnx", "model.ts", "goldens.json", "README.md"} == set(manifest.files)
    assert manifest.metrics[0].name == "accuracy"
    assert manifest.metrics[0].value > 0.8
    task = manifest.load_task(model)
    assert task.labels == ("blue", "green", "red")
    noise = np.random.default_rng(5).normal(0, 20, (40, 48, 3))
    Image.fromarray((np.array([190, 40, 40]) + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / "new.png")
    answer = task.answer(export.onnx_runner(model / "model.onnx", task), {"image": (tmp_path / "new.png").read_bytes()})
    assert answer.label == "red"
    (report,) = (tmp_path / "runs" / "colours").rglob("index.html")
    page = report.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "the page is self-contained"
    assert "Confusion matrix" in page
    assert not (tmp_path / "models" / "colours" / ".1.partial").exists()

    status, out, _ = train(*arguments, "--resume", "--publish")

    assert status == 0
    assert f"Published: {tmp_path / 'models' / 'colours' / '2'}" in out
    first, second = (read_manifest(model.with_name(version)) for version in "12")
    assert first.metrics == second.metrics
    assert len(list((tmp_path / "runs" / "colours").iterdir())) == 1


@pytest.mark.slow
def test_training_on_a_table_writes_a_report_and_a_working_model(train, table, tmp_path):
    status, out, err = train(
        *("tabular", "--data", table(count=900), "--target", "churn", "--name", "churn", "--audit", "city"),
        *("--epochs", "15", "--batch-size", "64", "--rate", "0.01", "--publish", "--seeds", "2", "--device", "cpu"),
    )

    assert status == 0, err
    assert "Column 'customer' is left out" in out
    model = tmp_path / "models" / "churn" / "1"
    replay(model)
    manifest = read_manifest(model)
    metrics = {metric.name: metric.value for metric in manifest.metrics}
    assert metrics["accuracy"] > 0.85
    assert metrics["accuracy_mean"] > 0.85
    task = manifest.load_task(model)
    body = {"rows": [{"age": 70, "city": "Lima", "spent": 10.0}, {"age": None, "city": "Rome", "spent": None}]}
    answer = task.answer(export.onnx_runner(model / "model.onnx", task), body)
    assert answer.predictions[0].label == "no"
    assert "Rome" in answer.notices[0]
    card = (model / "README.md").read_text()
    for text in (
        "Comparison with gradient boosting",
        "By city",
        "Known failures",
        "Out of scope",
        "opset 20",
        "2 seeds",
    ):
        assert text in card
    assert read_goldens(model)[0].request == task.example(), "goldens do not contain data that is not redistributable"


def test_a_modified_model_is_not_replayed(train, table, tmp_path):
    words = ("tabular", "--data", table(), "--target", "churn", "--epochs", "1", "--publish", "--anyway")
    arguments = (*words, "--device", "cpu")
    assert train(*arguments)[0] == 0
    model = tmp_path / "models" / "tabular" / "1"
    goldens = json.loads((model / "goldens.json").read_text())
    goldens[0]["answer"]["predictions"][0]["probability"] += 0.1
    (model / "goldens.json").write_text(json.dumps(goldens))

    with pytest.raises(BrokenModel, match="checksum differs"):
        replay(model)


def test_a_model_that_is_worse_than_a_constant_answer_is_published_only_if_the_user_insists(train, tmp_path):
    file, models = tmp_path / "rows.csv", tmp_path / "models" / "tabular"
    rows = (f"{i * 7 % 13},{'rare' if i % 10 == 0 else 'common'}" for i in range(400))
    file.write_text("\n".join(["x,label", *rows]))
    command = ("tabular", "--data", file, "--target", "label", "--rate", "1e-9", "--epochs", "1", "--device", "cpu")

    status, _, err = train(*command, "--publish")

    assert status == 2
    assert "Not published: the model is surely worse than always predicting 'common': accuracy is " in err
    assert not list(tmp_path.glob("models/*/*"))

    status, _, err = train(*command, "--publish", "--anyway")

    assert status == 0, err
    assert len(list((tmp_path / "runs" / "tabular").iterdir())) == 1, "it was trained again"
    card = (models / "1" / "README.md").read_text()
    assert "- The model is surely worse than always predicting 'common': accuracy is " in card.partition("## Data")[0]


def test_the_rate_search_prints_a_suggestion_and_writes_a_plot(train, table, tmp_path):
    status, out, _ = train("tabular", "--data", table(), "--target", "churn", "--find-lr", "--device", "cpu")

    assert status == 0
    assert re.search(r"Suggested: --rate \d\.\de-\d\d", out)
    assert (tmp_path / "runs" / "tabular" / "find-lr.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "runs").rglob("*.pt"))


def test_each_user_error_is_one_sentence_and_status_2(train, photos, table, tmp_path):
    folder, file = photos(), table()
    (tmp_path / "empty").mkdir()
    single = photos("single", classes=("red",))
    broken = photos("broken")
    (broken / "red" / "bad.jpg").write_bytes(b"x")
    shutil.copy(file, tmp_path / "photo.parquet")
    mistakes = [
        (("bears",), "no recipe or task named 'bears'"),
        (("clasification",), "Did you mean 'classification'?"),
        ((folder,), "name the task: python -m training TASK --data"),
        (("--data", folder, "classification"), "What to train comes first: python -m training classification --data"),
        (("classification", "--data", folder, "--epochs", "0"), "--epochs: '0' is not a whole number of at least 1"),
        (("classification", "--data", folder, "--target", "x"), "no option --target for classification; it is an opt"),
        (("classification", "--data", folder, "--lr", "1", "--rate", "2"), "--lr and --rate are the same option"),
        (("tabular", "--data", file, "--epoch-count", "2"), "no option --epoch-count; did you mean --epochs?"),
        (("ratings", "--foo", "2"), "There is no option --foo"),
        (("all", "photos"), "'photos' belongs to no option"),
        (("--config", tmp_path / "gone.json"), "gone.json: no such file"),
        (("classification",), "needs --data"),
        (("classification", "--data", tmp_path / "nowhere"), "no such file or folder"),
        (("classification", "--data", tmp_path / "empty"), "No images"),
        (("classification", "--data", single), "one class only"),
        (("classification", "--data", broken, "--weights", "none"), "bad.jpg cannot be read"),
        (("classification", "--data", folder, "--weights", tmp_path / "w.pth"), "no such file"),
        (("classification", "--data", folder, "--weights", file), "cannot be read as a file of tensors"),
        (("classification", "--data", folder, "--weights", "none", "--backbone", "big"), "no network named 'big'"),
        (("classification", "--data", folder, "--name", "My Bears", "--weights", "none"), "--name My Bears"),
        (("tabular", "--data", file), "--target"),
        (("tabular", "--data", file, "--target", "gone"), "has no column 'gone'; its columns are customer, age"),
        (("tabular", "--data", file, "--target", "city", "--kind", "number"), "is not numeric: it contains 'Oslo'"),
        (
            ("tabular", "--data", file, "--target", "spent", "--split-time", "city"),
            "--split-time city is not a column of times",
        ),
        (
            ("tabular", "--data", file, "--target", "spent", "--split-column", "gone"),
            "--split-column gone: no such column",
        ),
        (("tabular", "--data", file, "--target", "churn", "--ignore", "gone"), "no column 'gone'"),
        (("tabular", "--data", file, "--target", "churn", "--resume"), "omit --resume"),
        (("tabular", "--data", tmp_path / "photo.parquet", "--target", "churn"), "cannot be read as a table"),
    ]
    for arguments, sentence in mistakes:
        arguments = (*arguments, "--weights", "none") if arguments[-1] in (single, tmp_path / "empty") else arguments
        status, _, err = train(*arguments)

        message = err.strip().splitlines()[-1]
        assert (status, message.startswith("training: "), sentence in message) == (2, True, True), (arguments, err)
        assert "Traceback" not in err
    assert not (tmp_path / "models").exists()


def test_help_lists_each_task_with_a_learner(capsys):
    main(["--help"])

    out = capsys.readouterr().out
    assert [name for name in task_names() if f"\n  {name} " in out] == list(learner_names())
    assert {"classification", "keypoints", "segmentation", "super_resolution", "tabular"} <= set(learner_names())


def test_the_gpu_preset_has_its_own_settings_and_no_cpu_caveats():
    for name in recipe_names():
        recipe = load_recipe(name)
        on_cpu, on_gpu = select_preset(recipe, gpu=False), select_preset(recipe, gpu=True)

        assert (on_cpu.settings, on_cpu.options) == (recipe.settings, recipe.options)
        assert set(recipe.cpu_caveats) <= set(on_cpu.caveats)
        if recipe.on_gpu:
            assert (on_gpu.settings, on_gpu.options) == (recipe.on_gpu.settings, recipe.on_gpu.options)
            assert on_gpu.settings.epochs > recipe.settings.epochs
            assert not set(recipe.cpu_caveats) & set(on_gpu.caveats)


def test_a_run_folder_records_the_code_version(tmp_path):
    folder = run_folder.find_or_create(tmp_path / "runs", {"recipe": "x"}, "auto")

    assert run_folder.read_code_version(folder) == code_version()
    assert run_folder.find_or_create(tmp_path / "runs", {"recipe": "x"}, "auto") == folder
    assert run_folder.read_code_version(tmp_path) == "unknown"


def test_the_settings_of_a_run_start_the_same_run_anew(train, table, tmp_path):
    file, runs = table(), tmp_path / "runs" / "churn"
    options = ("--target", "churn", "--lr", "0.01", "--epochs", "1", "--ignore", "city", "--device", "cpu")
    status, out, err = train("tabular", file, "--name", "churn", *options)
    assert status == 0, err
    assert "--lr is read as --rate." in out
    assert f"{file} is read as --data {file}." in out
    (first,) = runs.iterdir()

    for number, command in enumerate((("--config", first / "settings.json"), ("tabular", "--config", first)), 2):
        status, out, err = train(*command, "--data", file)

        assert status == 0, err
        assert f"A new run: {first}" in out or number > 2
        folders = sorted(runs.iterdir())
        assert len(folders) == number
        assert len({(folder / "settings.json").read_text() for folder in folders}) == 1


def test_the_command_in_a_report_trains_the_same_model(train, table, tmp_path, monkeypatch):
    file, runs = table(), tmp_path / "runs" / "churn"
    options = ("--target", "churn", "--rate", "0.01", "--epochs", "1", "--ignore", "city,spent", "--device", "cpu")
    train("tabular", "--data", file, "--name", "churn", "--title", "Who leaves?", *options)
    (page,) = runs.rglob("index.html")
    command = html.unescape(re.search("<pre>python -m training (.*)</pre>", page.read_text())[1])
    monkeypatch.chdir(file.parent)

    status, _, err = train(*shlex.split(command))

    assert status == 0, err
    assert len({(folder / "settings.json").read_text() for folder in runs.iterdir()}) == 1
    assert "# Who leaves?" in (tmp_path / "models" / "churn" / "1" / "README.md").read_text()


def test_options_override_the_settings_of_a_run_and_old_files_are_completed(train, table, tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"recipe": "churn", "task": "tabular", "target": "churn", "epochs": 9}))

    status, out, err = train("--config", settings, "--data", table(), "--epochs", "1", "--device", "cpu")

    assert status == 0, err
    assert f"{settings} does not contain --batch-size, --rate, " in out
    (run,) = (tmp_path / "runs" / "churn").iterdir()
    assert json.loads((run / "settings.json").read_text())["epochs"] == 1


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("--config", "FILE"), "needs --data, a CSV or Parquet file; FILE does not say where the data is"),
        (("classification", "--config", "FILE"), "FILE is of churn (tabular), not of classification"),
        (("adult", "--config", "FILE"), "FILE is of churn (tabular), not of adult"),
    ],
)
def test_settings_that_do_not_fit_are_refused(train, tmp_path, command, sentence):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"recipe": "churn", "task": "tabular", "target": "churn"}))

    status, _, err = train(*(settings if word == "FILE" else word for word in command))

    assert status == 2
    assert sentence.replace("FILE", str(settings)) in err


def test_resuming_an_unfinished_run_says_so(train, table, tmp_path):
    command = ("tabular", "--data", table(), "--target", "churn", "--epochs", "2", "--device", "cpu")
    train(*command)
    (run,) = (tmp_path / "runs" / "tabular").iterdir()
    (run / "done.json").unlink()

    status, out, err = train(*command)

    assert status == 0, err
    assert f"Resuming the run {run}: 2 of 2 epochs are done." in out


def test_the_command_of_a_recipe_with_other_settings_on_a_gpu_names_the_device(train, photos, tmp_path):
    folder = photos()
    command = ("clothing", "--data", folder, *IMAGES, "--epochs", "1", "--no-augment")

    status, _, err = train(*command)

    assert status == 0, err
    (page,) = (tmp_path / "runs" / "clothing").rglob("index.html")
    assert "--device cpu" in re.search("<pre>(.*)</pre>", page.read_text())[1]
