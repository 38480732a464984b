"""Agreement of two answers, by which a new version of a model is judged."""

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
from tests.tiny.classification import TAGS
from tests.tiny.models import every_task, graph_of, tiny

JSON: Any = st.recursive(
    st.none() | st.booleans() | st.floats(-1e6, 1e6) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, JSON)
def test_agreement_is_a_symmetric_fraction_and_1_for_equal_values(left: Any, right: Any) -> None:
    assert 0 <= agreement(left, right) <= 1
    assert agreement(left, right) == pytest.approx(agreement(right, left))
    assert agreement(left, left) == 1


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
def test_decisions_must_be_equal_and_numbers_close(ours: Any, theirs: Any, expected: float) -> None:
    assert agreement(ours, theirs) == expected


@pytest.mark.parametrize("name", every_task())
def test_every_answer_agrees_with_itself(name: str) -> None:
    task, run = every_task()[name], runner(graph_of(name))

    agreements = [task.agreement(answer, answer) for answer in (task.answer(run, body) for body in task.examples())]

    assert agreements == [1.0] * len(agreements)
    assert set(task_names()) <= set(every_task())


def tags(*labels: str) -> TagsAnswer:
    return TagsAnswer(labels=[TagScore(label=label, probability=0.9, threshold=0.5) for label in labels])


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"), [(("a", "b"), ("b", "a"), 1.0), (("a", "b"), ("a",), 0.5), ((), (), 1.0)]
)
def test_multi_label_answers_agree_by_the_fraction_of_common_labels(
    ours: tuple[str, ...], theirs: tuple[str, ...], expected: float
) -> None:
    assert TAGS.agreement(tags(*ours), tags(*theirs)) == expected


def test_single_label_answers_are_compared_without_runners_up() -> None:
    task, graph = tiny("classification")
    answer = task.answer(runner(graph), task.example())
    changed = answer.model_copy(update={"labels": [LabelScore(label="else", probability=0.1)]})

    assert task.agreement(answer, changed) == 1


def points(*positions: tuple[float, float]) -> KeypointsAnswer:
    named = [Keypoint(name=f"p{i}", x=x, y=y, confidence=0.5) for i, (x, y) in enumerate(positions)]
    return KeypointsAnswer(width=300, height=400, points=named)


def test_points_agree_within_a_twentieth_of_the_diagonal() -> None:
    task, _ = tiny("keypoints")

    fraction = task.agreement(points((100, 100), (200, 200)), points((124, 100), (200, 226)))

    assert fraction == 0.5


def segmented(mask: Any, representation: str) -> SegmentationAnswer:
    task: Any = tiny("segmentation")[0]
    height, width = mask.shape
    fractions = [
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
        classes=fractions,
        mask_png=palette_png(mask, task.palette) if representation == "png" else None,
        mask_rle=runs if representation == "rle" else None,
    )


@pytest.mark.parametrize("representation", ["png", "rle", "none"])
def test_masks_agree_by_the_fraction_of_equal_pixels(representation: str) -> None:
    task, _ = tiny("segmentation")
    ours = np.zeros((8, 10), np.uint8)
    theirs = ours.copy()
    theirs[:2] = 1

    assert task.agreement(segmented(ours, representation), segmented(theirs, representation)) == 0.75
    assert task.agreement(segmented(theirs, representation), segmented(theirs, representation)) == 1


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_run_lengths_decode_to_the_mask(height: int, width: int, random: Any) -> None:
    mask = np.array([[random.randrange(3) for _ in range(width)] for _ in range(height)], np.uint8)

    assert decode_run_lengths(encode_run_lengths(mask), height, width).tolist() == mask.tolist()


def restored(level: int, size: int = 8) -> SuperResolutionAnswer:
    file = encode_image(np.full((size, size, 3), level, np.uint8), "png")
    return SuperResolutionAnswer(width=size, height=size, scale=2, media_type="image/png", image=file)


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [(restored(100), 1.0), (restored(110), 0.6078), (restored(200), 0.0), (restored(100, 9), 0.0)],
)
def test_images_agree_less_as_their_levels_differ_more(theirs: SuperResolutionAnswer, expected: float) -> None:
    task, _ = tiny("super_resolution")

    assert task.agreement(restored(100), theirs) == pytest.approx(expected, abs=1e-3)


def recommended(*ids: str) -> RecommendationsAnswer:
    return RecommendationsAnswer(items=[RecommendedItem(id=id, title=id, score=1, reason="") for id in ids])


def test_recommendations_agree_by_their_common_items() -> None:
    task, _ = tiny("recommendations")

    assert task.agreement(recommended("a", "b", "c", "d"), recommended("d", "c", "x", "y")) == 0.5
