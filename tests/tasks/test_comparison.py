"""How far two answers agree: what a new version of a model is judged by."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import task_names
from tasks._images import encode_image
from tasks._masks import decode_run_lengths, encode_run_lengths, palette_png
from tasks.classification import LabelScore, TagsAnswer, TagScore
from tasks.comparison import agreement
from tasks.keypoints import Keypoint, KeypointsAnswer
from tasks.recommendations import RecommendationsAnswer, RecommendedItem
from tasks.segmentation import ClassRuns, ClassShare, SegmentationAnswer
from tasks.super_resolution import SuperResolutionAnswer
from tests.model_folders import runner
from tests.tiny.models import TAGS, every_task, graph_of, tiny

JSON: Any = st.recursive(
    st.none() | st.booleans() | st.floats(-1e6, 1e6) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, JSON)
def test_it_is_a_share_the_same_from_both_sides_and_whole_for_what_is_equal(one: Any, other: Any) -> None:
    assert 0 <= agreement(one, other) <= 1
    assert agreement(one, other) == pytest.approx(agreement(other, one))
    assert agreement(one, one) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({"label": "cat", "probability": 0.9}, {"label": "cat", "probability": 0.82}, 1.0),
        ({"label": "cat", "probability": 0.9}, {"label": "cat", "probability": 0.7}, 0.5),
        ({"label": "cat", "probability": 0.9}, {"label": "dog", "probability": 0.9}, 0.0),
        ({"value": 1000.0}, {"value": 1090.0}, 1.0),
        ({"value": 1000.0}, {"value": 1200.0}, 0.0),
        ({"value": 1}, {"value": True}, 0.0),
        ([{"label": "a"}, {"label": "b"}], [{"label": "a"}, {"label": "c"}], 0.5),
        (["a"], ["a", "b"], 0.5),
        ({"found": None}, {"found": "x"}, 0.0),
        ({"a": 1.0}, {"a": 1.0, "b": 1.0}, 0.5),
    ],
)
def test_decisions_are_equal_or_not_and_numbers_close_or_not(ours: Any, theirs: Any, expected: float) -> None:
    assert agreement(ours, theirs) == expected


@pytest.mark.parametrize("name", every_task())
def test_each_tasks_answers_to_its_examples_agree_with_themselves(name: str) -> None:
    task, run = every_task()[name], runner(graph_of(name))

    found = [task.agreement(answer, answer) for answer in (task.answer(run, body) for body in task.examples())]

    assert found == [1.0] * len(found)
    assert set(task_names()) <= set(every_task())


def tags(*labels: str) -> TagsAnswer:
    return TagsAnswer(labels=[TagScore(label=label, probability=0.9, threshold=0.5) for label in labels])


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"), [(("a", "b"), ("b", "a"), 1.0), (("a", "b"), ("a",), 0.5), ((), (), 1.0)]
)
def test_of_several_labels_the_share_that_both_give(
    ours: tuple[str, ...], theirs: tuple[str, ...], expected: float
) -> None:
    assert TAGS.agreement(tags(*ours), tags(*theirs)) == expected


def test_runners_up_do_not_count_where_a_picture_has_one_label() -> None:
    task, graph = tiny("classification")
    answer = task.answer(runner(graph), task.example())
    other = answer.model_copy(update={"labels": [LabelScore(label="else", probability=0.1)]})

    assert task.agreement(answer, other) == 1


def points(*places: tuple[float, float]) -> KeypointsAnswer:
    named = [Keypoint(name=f"p{i}", x=x, y=y, confidence=0.5) for i, (x, y) in enumerate(places)]
    return KeypointsAnswer(width=300, height=400, points=named)


def test_points_agree_within_a_twentieth_of_the_diagonal() -> None:
    task, _ = tiny("keypoints")

    found = task.agreement(points((100, 100), (200, 200)), points((124, 100), (200, 226)))

    assert found == 0.5


def segmented(mask: Any, form: str) -> SegmentationAnswer:
    task: Any = tiny("segmentation")[0]
    height, width = mask.shape
    shares = [
        ClassShare(label=task.labels[i], colour="#000000", share=float((mask == i).mean()), confidence=1.0)
        for i in np.unique(mask)
    ]
    runs = [
        ClassRuns(label=task.labels[i], size=mask.shape, counts=counts)
        for i, counts in encode_run_lengths(mask).items()
    ]
    return SegmentationAnswer(
        width=width,
        height=height,
        classes=shares,
        mask_png=palette_png(mask, task.palette) if form == "png" else None,
        mask_rle=runs if form == "rle" else None,
    )


@pytest.mark.parametrize("form", ["png", "rle", "none"])
def test_masks_agree_in_the_share_of_their_equal_pixels(form: str) -> None:
    task, _ = tiny("segmentation")
    ours = np.zeros((8, 10), np.uint8)
    theirs = ours.copy()
    theirs[:2] = 1

    assert task.agreement(segmented(ours, form), segmented(theirs, form)) == 0.75
    assert task.agreement(segmented(theirs, form), segmented(theirs, form)) == 1


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_mask_comes_back_from_its_run_lengths(height: int, width: int, random: Any) -> None:
    mask = np.array([[random.randrange(3) for _ in range(width)] for _ in range(height)], np.uint8)

    assert decode_run_lengths(encode_run_lengths(mask), height, width).tolist() == mask.tolist()


def restored(level: int, size: int = 8) -> SuperResolutionAnswer:
    file = encode_image(np.full((size, size, 3), level, np.uint8), "png")
    return SuperResolutionAnswer(width=size, height=size, scale=2, media_type="image/png", image=file)


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [(restored(100), 1.0), (restored(110), 0.6078), (restored(200), 0.0), (restored(100, 9), 0.0)],
)
def test_pictures_agree_less_the_further_their_levels_lie_apart(theirs: SuperResolutionAnswer, expected: float) -> None:
    task, _ = tiny("super_resolution")

    assert task.agreement(restored(100), theirs) == pytest.approx(expected, abs=1e-3)


def recommended(*ids: str) -> RecommendationsAnswer:
    return RecommendationsAnswer(items=[RecommendedItem(id=id, title=id, score=1, reason="") for id in ids])


def test_lists_agree_in_the_items_that_both_have() -> None:
    task, _ = tiny("recommendations")

    assert task.agreement(recommended("a", "b", "c", "d"), recommended("d", "c", "x", "y")) == 0.5
