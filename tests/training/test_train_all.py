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


def small(name, **more):
    """A recipe of a table that is trained in seconds."""
    given = {
        "source": SOURCE,
        "settings": replace(TabularLearner.default_settings, epochs=1),
        "options": replace(TabularLearner.default_options, target="churn"),
    }
    return Recipe(
        name=name,
        task="tabular",
        title=name,
        summary=f"{name}, which is small",
        expected="",
        data=DataCard(name="made up", licence="CC0-1.0"),
        **{**given, **more},
    )


@pytest.fixture
def chosen(tmp_path):
    def choose(**more):
        places = {"data_dir": tmp_path / "data", "runs": tmp_path / "runs", "models": tmp_path / "models"}
        return argparse.Namespace(**{"publish": True, "device": "cpu", "mirror": "", **places, **more})

    return choose


def run_of(folder, figures, model=None):
    folder.mkdir(parents=True)
    run_folder.mark_done(folder, figures)
    if model is not None:
        model.mkdir(parents=True)
        run_folder.mark_published(folder, model)
    return folder


def test_each_recipe_is_trained_and_the_table_says_what_became_of_it(tmp_path, chosen):
    said, asked = [], []

    def train(recipe, options):
        asked.append(recipe.name)
        if recipe.name == "elsewhere":
            raise NoData("elsewhere could not be fetched (offline).")
        if recipe.name == "worse":
            raise CannotTrain("Not published: accuracy is 0.1000, and the recipe demands 0.9.")
        if recipe.name == "faulty":
            raise ZeroDivisionError("division by zero")
        return run_of(tmp_path / "runs" / recipe.name, {"accuracy": 0.75}, tmp_path / "models" / recipe.name / "3")

    names = ("first", "worse", "elsewhere", "faulty", "last")
    recipes = [*map(small, names), small("sold", source=None)]
    status = train_all(recipes, chosen(), train, said.append)

    rows = [re.split(r"  +", line) for line in said[-1].strip().splitlines()]
    assert status == 1
    assert asked == list(names)
    assert rows[0] == ["recipe", "first figure", "minutes", "version, or why there is none"]
    assert rows[1] == ["first", "accuracy 0.7500", "0.0", "first/3"]
    assert rows[2][3].startswith("failed: Not published: accuracy is 0.1000")
    assert rows[3][3] == "skipped: elsewhere could not be fetched (offline)."
    assert rows[4][3].startswith("failed: ZeroDivisionError: division by zero")
    assert rows[5][3] == "last/3"
    assert rows[6][3] == "skipped: its data cannot be fetched: train it by itself, with --data."
    assert "ZeroDivisionError" in (tmp_path / "runs" / "faulty-failed.txt").read_text()


@pytest.mark.parametrize(("names", "status"), [(("one", "gone"), 0), (("gone",), 1), (("one",), 0)])
def test_what_is_skipped_is_no_failure_unless_nothing_is_left(tmp_path, chosen, names, status):
    def train(recipe, options):
        if recipe.name == "gone":
            raise NoData("gone.")
        return run_of(tmp_path / "runs" / recipe.name, {"accuracy": 1.0})

    assert status == train_all(map(small, names), chosen(publish=False), train, lambda text: None)


def test_options_are_passed_on_to_each(chosen):
    words = forwarded_options(chosen(threads=1, mirror="a folder"))

    assert words[:2] == ["--keep", "--publish"]
    assert words[words.index("--threads") + 1] == "1"
    assert words[words.index("--mirror") + 1] == "a folder"
    assert "--publish" not in forwarded_options(chosen(publish=False))
    assert "--device" not in forwarded_options(chosen(device=None))


def test_there_is_help_and_what_is_unknown_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["all", "--help"])
    with pytest.raises(SystemExit) as refused:
        main(["all", "--epochs", "3"])

    assert (ended.value.code, refused.value.code) == (0, 2)
    assert "--mirror" in capsys.readouterr().out


def test_it_is_one_process(chosen, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(CannotTrain, match="without torchrun"):
        train_all([], chosen(), train_recipe)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_finished_and_published_is_left_as_it_is_and_what_is_not_goes_on(tmp_path, chosen, table, capsys):
    (tmp_path / "mirror").mkdir()
    table("mirror/customers.csv", count=300)
    more = {"mirror": tmp_path / "mirror", "threads": 1}
    recipes = [small("west"), small("south", min_metrics=(("accuracy", 1.1),))]
    models = tmp_path / "models"

    first = train_all(recipes[:1], chosen(**more, publish=False), train_recipe)
    second = train_all(recipes, chosen(**more), train_recipe)
    told = capsys.readouterr().out
    third = train_all(recipes[:1], chosen(**more), train_recipe)
    again = capsys.readouterr().out
    (models / "west" / "1").rename(models / "west" / "7")
    fourth = train_all(recipes[:1], chosen(**more), train_recipe)

    assert (first, second, third, fourth) == (0, 1, 0, 0)
    assert "Not published: accuracy is" in told
    assert "Done before: west/1" in again
    assert sorted(str(path.relative_to(models)) for path in models.glob("*/*")) == ["west/7", "west/8"]
    assert all(len(list((tmp_path / "runs" / name).iterdir())) == 1 for name in ("west", "south"))
