"""Spellings of one label have one name, and a sentence says which were merged."""

import pytest

from training.data.label_names import merge_spellings


def merge(*spellings):
    return merge_spellings({spelling: 10 - i for i, spelling in enumerate(spellings)})


def test_the_booleans_of_several_programs_are_two_labels():
    merged = merge("True", "no", "TRUE", "1", "FALSE", "yes", "wahr")

    assert merged.names["TRUE"] == merged.names["1"] == merged.names["yes"] == merged.names["wahr"] == "True"
    assert merged.names["FALSE"] == merged.names["no"] == "no"
    assert merged.notes == (
        "The labels are all spellings of true and false: '1' (7), 'TRUE' (8), 'True' (10), 'wahr' (4), 'yes' (5) as "
        "'True'; 'FALSE' (6), 'no' (9) as 'no'.",
    )


@pytest.mark.parametrize("labels", [("1", "0"), ("True", "1"), ("cat", "dog", "car"), ("N", "F", "Y"), ("0", "1", "2")])
def test_labels_that_may_be_meant_so_are_left_alone(labels):
    merged = merge(*labels)

    assert [merged.names[label] for label in labels] == list(labels)
    assert merged.notes == ()


def test_labels_that_differ_in_case_spaces_or_form_get_the_commonest_name():
    merged = merge("hot dog", "Hot  Dog", "Cafe\u0301", "caf\u00e9", "tea")

    assert set(merged.names.values()) == {"hot dog", "Cafe\u0301", "tea"}
    assert "'Hot  Dog' (9), 'hot dog' (10) as 'hot dog'" in merged.notes[0]


def test_single_letters_that_differ_in_case_remain_two_labels_with_a_sentence():
    merged = merge("a", "A", "b")

    assert len(set(merged.names.values())) == 3
    assert merged.notes == ("Single letters that differ only in case are labels of their own: A/a.",)


def test_letters_of_one_pair_are_true_and_false():
    assert set(merge("y", "Y", "N", "n").names.values()) == {"y", "N"}
