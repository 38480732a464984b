"""The recipes on the real data, without training, which takes minutes and is done by `make train`."""

import datetime

import polars as pl
import pytest
import torch

from tests.training.conftest import ROOT
from training.data.download import Fetcher
from training.registry import learner_type, load_recipe, recipe_names
from training.vision.backbones import load_body, weights_file

SHARED = ROOT.parent / "shared" / "data"
NOT_ON_MIRROR = ("rossmann",)
"""Recipes whose data is not redistributable and available at its official address only."""
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not in ../shared/data"),
]


@pytest.fixture(scope="module")
def fetcher(tmp_path_factory) -> Fetcher:
    return Fetcher(tmp_path_factory.mktemp("data"), str(SHARED), lambda text: None)


def test_the_mirror_has_the_data_of_the_recipes(fetcher):
    for name in set(recipe_names()) - set(NOT_ON_MIRROR):
        folder = fetcher.fetch(load_recipe(name).source)

        assert all(list(folder.rglob(pattern)) for pattern in load_recipe(name).source.contains)


def test_clothing_has_ten_classes_and_the_official_validation_folder(fetcher):
    recipe = load_recipe("clothing")
    learner = learner_type(recipe.task).from_data(
        fetcher.fetch(recipe.source), recipe.settings, recipe.options, fetcher
    )

    assert len(learner.task.labels) == 10
    assert (len(learner.samples), len(learner.held_out)) == (3068, 341)
    assert learner.weights == weights_file("mobilenet_v2", "imagenet", fetcher)


def test_the_pretrained_weights_match_and_give_features(fetcher):
    body = load_body("mobilenet_v2", weights_file("mobilenet_v2", "imagenet", fetcher)).eval()

    with torch.no_grad():
        assert float(body(torch.randn(1, 3, 64, 64)).abs().mean()) > 0.01


def test_adult_uses_neither_race_nor_sex(fetcher):
    recipe = load_recipe("adult")
    learner = learner_type(recipe.task).from_data(
        fetcher.fetch(recipe.source), recipe.settings, recipe.options, fetcher
    )

    names = {column.name for column in learner.task.columns}
    assert not names & {"race", "sex", "fnlwgt", "income"}
    assert set(learner.task.ignored) == {"race", "sex", "fnlwgt", "education-num"}
    assert len(learner.samples) + len(learner.held_out) == 32561
    assert learner.task.labels == ("<=50K", ">50K")


def test_bikes_trains_on_data_before_september_2012_without_parts_of_the_target(fetcher, tmp_path):
    recipe = load_recipe("bikes")
    recipe.prepare(fetcher.fetch(recipe.source), tmp_path)
    learner = learner_type(recipe.task).from_data(tmp_path, recipe.settings, recipe.options, fetcher)

    names = {column.name for column in learner.task.columns} | set(learner.task.ignored)
    assert not names & {"casual", "registered", "cnt", "instant"}
    assert str(learner.train_frame["when"].max()) == "2012-08-31 23:00:00"
    assert str(learner.valid_frame["when"].max()) == "2012-10-31 23:00:00"
    assert (len(learner.samples), len(learner.held_out)) == (14_491, 1_428)
    hour = learner.valid_frame.filter(pl.col("when") == datetime.datetime(2012, 9, 1, 8)).row(0, named=True)
    earlier = learner.valid_frame.filter(pl.col("when") == datetime.datetime(2012, 9, 1, 7)).row(0, named=True)
    assert hour["temp_1h_ago"] == earlier["temp"]
    assert learner.train_frame["temp_1h_ago"][0] is None


def test_the_published_models_can_be_replayed_and_reach_their_limits():
    from tasks.manifest import read_manifest
    from training.publishing.publish import replay

    for name in recipe_names():
        for folder in sorted((ROOT / "models" / name).glob("[0-9]*")):
            replay(folder)
            metrics = {metric.name: metric.value for metric in read_manifest(folder).metrics}
            assert all(metrics[metric] >= minimum for metric, minimum in load_recipe(name).min_metrics)


def test_bikes_never_reads_the_test_months(tmp_path):
    header = "instant,dteday,season,yr,mnth,hr,holiday,weekday,workingday,weathersit,temp,atemp,hum,windspeed,"
    header += "casual,registered,cnt"
    days = ("2012-10-31", "2012-11-01", "2012-12-31")
    rows = [f"{i},{day},4,1,10,0,0,3,1,1,0.4,0.4,0.5,0.1,3,5,8" for i, day in enumerate(days)]
    (tmp_path / "hour.csv").write_text("\n".join([header, *rows]) + "\n")
    prepare = load_recipe("bikes").prepare

    prepare(tmp_path, tmp_path)

    assert [str(when.date()) for when in pl.read_parquet(tmp_path / "hours.parquet")["when"]] == ["2012-10-31"]
