import argparse
import re
from dataclasses import replace

import pytest

from training.__main__ import main, train_recipe
from training.core.errors import CannotTrain, NoData
from training.core.recipe import DataCard, Recipe
from training.core.sources import Archive, Source
from training.learners.tabular.learner import TabularLearner
from training.reporting import run_folder
from training.train_all import forwarded_options, train_all

SOURCE = Source("customers", Archive("http://127.0.0.1:9/none.csv"), Archive("customers.csv"), ())


def small_recipe(name, **changes):
    """A recipe for a table that is trained in seconds."""
    defaults = {
        "source": SOURCE,
        "settings": replace(TabularLearner.default_settings, epochs=1),
        "options": replace(TabularLearner.default_options, target="churn"),
    }
    return Recipe(
        name=name,
        task="tabular",
        title=name,
        summary=f"{name}, a small table",
        expected="",
        data=DataCard(name="made up", licence="CC0-1.0"),
        **{**defaults, **changes},
    )


@pytest.fixture
def make_arguments(tmp_path):
    def make(**changes):
        paths = {"data_dir": tmp_path / "data", "runs": tmp_path / "runs", "models": tmp_path / "models"}
        return argparse.Namespace(**{"publish": True, "device": "cpu", "mirror": "", **paths, **changes})

    return make


def write_run(folder, metrics, model=None):
    folder.mkdir(parents=True)
    run_folder.mark_done(folder, metrics)
    if model is not None:
        model.mkdir(parents=True)
        run_folder.mark_published(folder, model)
    return folder


def test_each_recipe_is_trained_and_the_summary_lists_the_results(tmp_path, make_arguments):
    output, trained = [], []

    def train(recipe, options):
        trained.append(recipe.name)
        if recipe.name == "elsewhere":
            raise NoData("elsewhere could not be fetched (offline).")
        if recipe.name == "worse":
            raise CannotTrain("Not published: accuracy is 0.1000; the recipe requires at least 0.9.")
        if recipe.name == "faulty":
            raise ZeroDivisionError("division by zero")
        return write_run(tmp_path / "runs" / recipe.name, {"accuracy": 0.75}, tmp_path / "models" / recipe.name / "3")

    names = ("first", "worse", "elsewhere", "faulty", "last")
    recipes = [*map(small_recipe, names), small_recipe("sold", source=None)]
    status = train_all(recipes, make_arguments(), train, output.append)

    rows = [re.split(r"  +", line) for line in output[-1].strip().splitlines()]
    assert status == 1
    assert trained == list(names)
    assert rows[0] == ["recipe", "main metric", "minutes", "published version"]
    assert rows[1] == ["first", "accuracy 0.7500", "0.0", "first/3"]
    assert rows[2][3].startswith("failed: Not published: accuracy is 0.1000")
    assert rows[3][3] == "skipped: elsewhere could not be fetched (offline)."
    assert rows[4][3].startswith("failed: ZeroDivisionError: division by zero")
    assert rows[5][3] == "last/3"
    assert rows[6][3] == "skipped: its data cannot be downloaded; train it separately, with --data."
    assert "ZeroDivisionError" in (tmp_path / "runs" / "faulty-failed.txt").read_text()


@pytest.mark.parametrize(("names", "status"), [(("one", "gone"), 0), (("gone",), 1), (("one",), 0)])
def test_skipped_recipes_are_no_failure_unless_all_are_skipped(tmp_path, make_arguments, names, status):
    def train(recipe, options):
        if recipe.name == "gone":
            raise NoData("gone.")
        return write_run(tmp_path / "runs" / recipe.name, {"accuracy": 1.0})

    assert status == train_all(map(small_recipe, names), make_arguments(publish=False), train, lambda text: None)


def test_options_are_forwarded_to_each_recipe(make_arguments):
    words = forwarded_options(make_arguments(threads=1, mirror="a folder"))

    assert words[:2] == ["--keep", "--publish"]
    assert words[words.index("--threads") + 1] == "1"
    assert words[words.index("--mirror") + 1] == "a folder"
    assert "--publish" not in forwarded_options(make_arguments(publish=False))
    assert "--device" not in forwarded_options(make_arguments(device=None))


def test_all_has_help_and_rejects_unknown_options(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["all", "--help"])
    rejected = main(["all", "--epochs", "3"])

    caught = capsys.readouterr()
    assert (ended.value.code, rejected) == (0, 2)
    assert "--mirror" in caught.out
    assert caught.err == "training: There is no option --epochs; python -m training all --help lists them.\n"


def test_all_refuses_to_run_under_torchrun(make_arguments, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(CannotTrain, match="without torchrun"):
        train_all([], make_arguments(), train_recipe)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_finished_and_published_recipes_are_kept_and_others_resumed(tmp_path, make_arguments, table, capsys):
    (tmp_path / "mirror").mkdir()
    table("mirror/customers.csv", count=300)
    options = {"mirror": tmp_path / "mirror", "threads": 1, "anyway": True}
    recipes = [small_recipe("west"), small_recipe("south", min_metrics=(("accuracy", 1.1),))]
    models = tmp_path / "models"

    first = train_all(recipes[:1], make_arguments(**options, publish=False), train_recipe)
    second = train_all(recipes, make_arguments(**options), train_recipe)
    second_output = capsys.readouterr().out
    third = train_all(recipes[:1], make_arguments(**options), train_recipe)
    third_output = capsys.readouterr().out
    (models / "west" / "1").rename(models / "west" / "7")
    fourth = train_all(recipes[:1], make_arguments(**options), train_recipe)

    assert (first, second, third, fourth) == (0, 1, 0, 0)
    assert "Not published: accuracy is" in second_output
    assert "Already done: west/1" in third_output
    assert sorted(str(path.relative_to(models)) for path in models.glob("*/*")) == ["west/7", "west/8"]
    assert all(len(list((tmp_path / "runs" / name).iterdir())) == 1 for name in ("west", "south"))
