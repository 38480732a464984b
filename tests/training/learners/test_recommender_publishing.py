"""A recommender from the command line to a published model, and new tables of items for it."""

import pytest

from tasks.manifest import read_manifest
from tests.training.learners.shop import write_shop
from training.__main__ import main
from training.publishing.export import onnx_runner
from training.publishing.publish import replay
from training.update_catalog import main as update_catalog
from training.update_catalog import update_items


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    folder = write_shop(root / "data-of-ones-own", users=100)
    flags = {
        "--data": folder,
        "--name": "shop",
        "--epochs": 8,
        "--batch-size": 16,
        "--rate": 0.03,
        "--targets-per-sample": 1,
        "--liked": 4,
        "--runs": root / "runs",
        "--models": root / "models",
        "--data-dir": root / "data",
        "--device": "cpu",
    }
    words = [str(word) for flag in flags.items() for word in flag]
    assert main(["recommendations", *words, "--publish"]) == 0
    return root / "models" / "shop"


@pytest.mark.slow
def test_published_model_recommends_items_of_the_kind_that_a_user_likes(published):
    manifest = read_manifest(published / "1")
    task = manifest.load_task(published / "1")
    replay(published / "1")
    run = onnx_runner(published / "1" / "model.onnx", task)
    even = [{"item": item, "rating": 5} for item in ("100", "102", "104")]
    answer = task.answer(run, {"ratings": even, "k": 5}).plain()
    card = (published / "1" / "README.md").read_text()
    assert sum(item["title"].startswith("Even") for item in answer["items"]) >= 4
    assert answer["items"][0]["reason"].startswith("Because you liked Even")
    assert task.answer(run, {"user": "1"}) == task.answer(run, {"user": 1})
    for words in (
        "Exposure by popularity",
        "Gini of exposure",
        "co-occurrence (SAR)",
        "the data of the next model",
        "users.json",
    ):
        assert words in card


@pytest.mark.slow
def test_new_table_of_items_makes_a_version_with_the_same_graph(published, tmp_path):
    last = max(int(path.name) for path in published.iterdir() if path.name.isdecimal())
    old = read_manifest(published / str(last))
    table = tmp_path / "items.csv"
    rows = [f"{100 + i},Film {i},{'false' if i == 0 else 'true'}" for i in range(23)]
    table.write_text("id,title,available\n" + "\n".join(rows) + "\n777,Brand new,true\n")

    folder, words = update_items(published, table)

    new = read_manifest(folder)
    task = new.load_task(folder)
    run = onnx_runner(folder / "model.onnx", task)
    recommended = {item["id"] for item in task.answer(run, {"ratings": [], "k": 100}).plain()["items"]}
    assert new.files["model.onnx"] == old.files["model.onnx"]
    assert recommended == {str(100 + i) for i in range(1, 23)}
    assert task.answer(run, {"ratings": [{"item": "100", "rating": 5}], "k": 1}).plain()["items"][0]["reason"] != ""
    assert task.items.titles[:2] == ("Film 0", "Film 1")
    assert "2 items withdrawn, 0 restored, 1 added" in words
    replay(folder)
    assert not list(published.glob(".*"))


@pytest.mark.slow
def test_table_that_does_not_fit_the_model_publishes_nothing(published, tmp_path, capsys):
    before = sorted(path.name for path in published.iterdir())
    other, twice = tmp_path / "other.csv", tmp_path / "twice.csv"
    other.write_text("id,title\nx,y\n")
    twice.write_text("id,title\n100,a\n100,b\n")

    assert update_catalog([str(published), str(other)]) == 2
    assert "The network knows none of the items in the table" in capsys.readouterr().err
    assert update_catalog([str(published), str(twice)]) == 2
    assert "contains the item '100' twice" in capsys.readouterr().err
    assert update_catalog([str(tmp_path / "nowhere"), str(other)]) == 2
    assert "contains no model versions" in capsys.readouterr().err
    assert sorted(path.name for path in published.iterdir()) == before
