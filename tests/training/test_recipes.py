"""The recipes on the real data; the short part of it. Training them takes minutes and is done by `make train`."""

import pytest
import torch

from training.fetch import Fetcher
from training.networks.bodies import body, weights_file
from training.recipe import learner_type, recipe, recipe_names

from .conftest import ROOT

SHARED = ROOT.parent / "shared" / "data"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not in ../shared/data"),
]


@pytest.fixture(scope="module")
def fetcher(tmp_path_factory) -> Fetcher:
    return Fetcher(tmp_path_factory.mktemp("data"), str(SHARED), lambda text: None)


def test_the_mirror_holds_what_the_recipes_name(fetcher):
    for name in recipe_names():
        folder = fetcher.fetched(recipe(name).source)

        assert all(list(folder.rglob(pattern)) for pattern in recipe(name).source.holds)


def test_clothing_is_ten_classes_with_the_validation_folder_of_its_authors(fetcher):
    found = recipe("clothing")
    learner = learner_type(found.task).opened(fetcher.fetched(found.source), found.settings, found.options, fetcher)

    assert len(learner.task.labels) == 10
    assert (len(learner.samples), len(learner.held_out)) == (3068, 341)
    assert learner.weights == weights_file("mobilenet_v2", "imagenet", fetcher)


def test_the_pretrained_weights_fit_and_know_pictures(fetcher):
    made = body("mobilenet_v2", weights_file("mobilenet_v2", "imagenet", fetcher)).eval()

    with torch.no_grad():
        assert float(made(torch.randn(1, 3, 64, 64)).abs().mean()) > 0.01


def test_adult_reads_neither_race_nor_sex(fetcher):
    found = recipe("adult")
    learner = learner_type(found.task).opened(fetcher.fetched(found.source), found.settings, found.options, fetcher)

    names = {column.name for column in learner.task.columns}
    assert not names & {"race", "sex", "fnlwgt", "income"}
    assert set(learner.task.ignored) == {"race", "sex", "fnlwgt", "education-num"}
    assert len(learner.samples) + len(learner.held_out) == 32561
    assert learner.task.labels == ("<=50K", ">50K")


def test_the_published_models_are_the_recipes_and_reach_what_they_promise():
    from tasks.manifest import read_manifest
    from training.publish import replay

    for name in recipe_names():
        for folder in sorted((ROOT / "models" / name).glob("[0-9]*")):
            replay(folder)
            figures = {metric.name: metric.value for metric in read_manifest(folder).metrics}
            assert all(figures[metric] >= least for metric, least in recipe(name).limits)
