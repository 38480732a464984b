import pytest

from training.core.errors import CannotTrain
from training.learners.keypoints.skeleton import find_flip_indices, parse_normalisation_pair, parse_pairs
from training.registry import load_recipe


def test_flip_indices_come_from_left_and_right_in_names_or_from_pairs():
    names = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")

    assert find_flip_indices(names, ()) == (1, 0, 2, 4, 3)
    assert find_flip_indices(("a", "b", "c"), ("a=c",)) == (2, 1, 0)
    assert find_flip_indices(("a", "b", "left_c"), ()) == ()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("a=d",), "--flip-pairs a=d: give two points"),
        (("ab",), "--flip-pairs ab"),
        (("a=b", "b=c"), "a point can be in one pair only"),
    ],
)
def test_invalid_flip_pairs_are_refused(pairs, message):
    with pytest.raises(CannotTrain, match=message):
        find_flip_indices(("a", "b", "c"), pairs)


def test_unknown_names_in_pairs_are_refused():
    names = ("a", "b", "c")

    with pytest.raises(CannotTrain, match="--links a=x: give two points"):
        parse_pairs(names, ("a=x",), "links")
    for pair in (("a",), ("a", "x"), ("a", "a"), ("a", "b", "c")):
        with pytest.raises(CannotTrain, match="--normalisation-pair"):
            parse_normalisation_pair(names, pair)
    assert parse_normalisation_pair(names, ("c", "a")) == (2, 0)


def test_flip_pairs_of_the_68_face_points_are_mutual():
    options = load_recipe("faces").options
    names = options.names

    indices = find_flip_indices(names, options.flip_pairs)

    assert len(names) == 68
    assert [indices[index] for index in indices] == list(range(68))
    assert [names[i] for i, index in enumerate(indices) if index == i] == [
        *("jaw_9", "nose_bridge_1", "nose_bridge_2", "nose_bridge_3", "nose_bridge_4", "nose_base_3"),
        *("outer_lip_4", "outer_lip_10", "inner_lip_3", "inner_lip_7"),
    ]
    assert parse_normalisation_pair(names, options.normalisation_pair) == (36, 45)
    assert indices[36] == 45
    assert len(parse_pairs(names, options.links, "links")) == 63
