import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.classification import certainty, class_figures, confusions, most_confused, per_class, spread
from training.evaluation.subgroups import group_table, grouped

LABELS = ("cat", "dog", "owl")


def answers(said, sure=0.8):
    probabilities = np.full((len(said), 3), (1 - sure) / 2)
    probabilities[np.arange(len(said)), said] = sure
    return probabilities


def test_figures_of_a_known_case():
    is_, said = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 2])

    figures = class_figures(answers(said), is_)

    assert figures["accuracy"] == pytest.approx(5 / 6)
    assert figures["macro_f1"] == pytest.approx((0.8 + 0.8 + 1) / 3)
    assert figures["calibration_error"] == pytest.approx(5 / 6 - 0.8)
    assert "roc_auc" not in figures


def test_a_class_that_was_never_said_or_never_is_does_no_harm():
    is_, said = np.array([0, 1]), np.array([0, 0])

    table = per_class(answers(said), is_, LABELS)

    assert [row[0] for row in table.rows] == list(LABELS)
    assert class_figures(answers(said), is_)["accuracy"] == 0.5


def test_the_most_confused_pairs_come_first_and_say_how_often():
    is_, said = np.array([0] * 10 + [1] * 10), np.array([1] * 4 + [0] * 6 + [2] * 2 + [1] * 8)

    table = most_confused(confusions(answers(said), is_, LABELS), LABELS)

    assert table.rows == (("cat", "dog", "4", "40.0%"), ("dog", "owl", "2", "20.0%"))


def test_several_seeds_are_shown_with_their_spread():
    assert spread([0.9]) == "0.9000"
    assert spread([0.8, 0.9]) == "0.8500 ± 0.0707"


def test_groups_show_who_is_served_worse_and_mark_the_small_ones():
    column = pl.Series("sex", ["f"] * 150 + ["m"] * 150 + ["x"] * 5)
    targets = np.array([1] * 305)
    said = np.array([1] * 75 + [0] * 75 + [1] * 150 + [1] * 5)
    probabilities = np.stack([1 - said, said], axis=1).astype(float)

    table = group_table(column, probabilities, targets, ("no", "yes"))

    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["f"] == ("150", "0.500", "1.000", "0.500", "0.500")
    assert rows["m"] == ("150", "1.000", "1.000", "1.000", "1.000")
    assert rows["x"][0] == "5*"
    assert "differ by 0.500" in table.note


@given(st.lists(st.one_of(st.none(), st.integers(0, 90)), min_size=40, max_size=80))
def test_each_number_is_in_the_band_that_names_it(values):
    names = grouped(pl.Series("age", values, dtype=pl.Int64))

    assert len(names) == len(values)
    for value, name in zip(values, names, strict=True):
        words = name.split()
        if value is None:
            assert name == "missing"
        elif name.startswith("up to"):
            assert value <= int(words[2])
        elif name.startswith("over"):
            assert value > int(words[1])
        elif len(words) == 3:
            assert int(words[0]) <= value <= int(words[2])


def test_the_rarest_categories_share_a_group():
    names = grouped(pl.Series("city", [f"c{i}" for i in range(30) for _ in range(30 - i)]))

    assert len(set(names)) <= 14
    assert "other" in names


def test_few_samples_leave_a_wide_interval():
    assert "between 0.881 and 0.940" in certainty(0.915, 341)
    assert "between 0.914 and 0.916" in certainty(0.915, 1_000_000)


@pytest.mark.parametrize(
    ("values", "edges"), [((0.0, 1.0), "0.2 to 0.4"), ((0.0, 0.01), "0.002 to 0.004"), ((0.0, 1e4), "2001 to 4000")]
)
def test_bands_have_edges_that_fit_the_width_of_what_they_part(values, edges):
    names = grouped(pl.Series("x", np.linspace(*values, 501)))

    assert sorted({names.count(name) for name in set(names)}) in ([100, 101], [99, 100, 101])
    assert edges in names
