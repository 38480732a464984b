"""The page about one's own data names options that there are, and its examples are read without a refusal."""

import re
from pathlib import Path

import pytest

from tests.training.conftest import draw_image
from training.core.config import Settings, option_fields
from training.learners.classification.label_csv import read_tags
from training.learners.keypoints.annotations import TableRules, read_keypoints
from training.learners.recommendations.interactions import read_items
from training.learners.sentiment.reader import TextRules, read_texts
from training.learners.tabular.base import Options, read_target_table
from training.registry import learner_names, learner_type

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training-data.md").read_text("utf-8")
OF_EVERY_RUN = {"data", "name", "publish", "anyway", "resume"}


def example(first_line):
    (block,) = (block for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) if block.startswith(first_line))
    return block


def section(task):
    return PAGE.partition(f"\n## {task}\n")[2].partition("\n## ")[0]


def write_images(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw_image((90, 120, 30), number).resize((120, 100)).save(folder / name)


@pytest.mark.parametrize(
    ("task", "title"),
    [
        ("classification", "Classification"),
        ("segmentation", "Segmentation"),
        ("keypoints", "Keypoints"),
        ("super_resolution", "Super-resolution"),
        ("tabular", "Tables"),
        ("sentiment", "Texts"),
        ("recommendations", "Recommendations"),
    ],
)
def test_each_task_has_a_section_and_the_options_that_it_names(task, title):
    text = section(title)
    known = {
        field.name for config in (Settings(), learner_type(task).default_options) for field in option_fields(config)
    }
    named = {name.replace("-", "_") for name in re.findall(r"--([a-z-]+)", text)}

    assert text
    assert named - {f"no_{name}" for name in known} <= known | OF_EVERY_RUN


def test_the_page_has_all_tasks_and_no_option_that_is_nowhere():
    options = [option_fields(learner_type(name).default_options) for name in learner_names()]
    known = {field.name for fields in options for field in fields} | OF_EVERY_RUN
    named = {name.replace("-", "_") for name in re.findall(r"--([a-z-]+)", PAGE)}

    assert len(learner_names()) == 7
    assert named - {f"no_{name}" for name in known} <= known


def test_the_example_of_tags_is_read(tmp_path):
    write_images(tmp_path, "a.jpg", "trips/b.jpg")
    (tmp_path / "labels.csv").write_text(example("image_name,"))

    table = read_tags(tmp_path / "labels.csv", unreadable="refuse", valid_fraction=0.2, size=32)

    assert table.labels == ("beach", "city", "sunny")
    assert [image.path.name for image in table.validation] == ["b.jpg"]


def test_the_example_of_keypoints_is_read(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "points.csv").write_text(example("image,nose_x"))

    data = read_keypoints(tmp_path, TableRules())

    assert data.names == ("nose", "tail")
    assert data.warnings == ()


def test_the_example_of_a_table_is_read_as_the_page_says(tmp_path):
    (tmp_path / "customers.csv").write_text(example("age;"))

    _, table = read_target_table(tmp_path / "customers.csv", Options(target="left"))

    assert table.frame["income"].to_list() == [1250.5, None]
    assert str(table.frame["since"][1]) == "2020-03-01"


def test_the_examples_of_texts_and_items_are_read(tmp_path):
    (tmp_path / "texts.csv").write_text(example("text,label") + "Fine.,positive\nBad.,negative\n")
    (tmp_path / "items.csv").write_text(example("item,title"))

    texts, items = read_texts(tmp_path / "texts.csv", TextRules()), read_items(tmp_path / "items.csv")

    assert texts.texts[:2] == ("Good, very good.", "Never again.")
    assert items.titles == ("Dune",)
