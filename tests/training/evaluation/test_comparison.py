import math

import numpy as np
import pytest

from training.core.results import SampleScores
from training.evaluation.comparison import compare_means, compare_statistics, comparison_table


def scores(values, **facts):
    return SampleScores("accuracy", np.asarray(values, float), "validation images", **facts)


def test_a_clear_difference_is_sure_and_a_small_one_is_not():
    random = np.random.default_rng(0)
    model = random.random(400) < 0.9

    clear = compare_means(scores(model), "always predicting 'cat'", (random.random(400) < 0.5).astype(float))
    similar = model.copy()
    similar[:6] = ~similar[:6]
    small = compare_means(scores(model), "version 1", similar.astype(float))

    assert clear.verdict == "surely better"
    assert small.verdict == "not surely better or worse"
    assert clear.value == pytest.approx(model.mean())


def test_of_an_error_the_lower_one_is_better():
    worse = compare_means(
        scores(np.full(50, 3.0), lower_is_better=True), "the mean", np.full(50, 1.0) + np.arange(50) / 99
    )

    assert worse.gain < 0
    assert worse.is_surely_worse
    assert "surely worse" in worse.sentence()


def test_the_interval_of_means_has_the_coverage_it_states():
    random = np.random.default_rng(1)
    covered = [
        interval[0] <= 0.3 <= interval[1]
        for interval in (
            compare_means(scores(random.normal(0.3, 1, 20)), "zero", np.zeros(20)).interval for _ in range(2000)
        )
    ]

    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_samples_that_belong_together_count_as_one():
    random = np.random.default_rng(2)
    of_group = random.normal(0.2, 1, 20)
    repeated, groups = np.repeat(of_group, 30), np.repeat(np.arange(20), 30)

    alone = compare_means(scores(of_group), "zero", np.zeros(20))
    grouped = compare_means(scores(repeated, groups=groups), "zero", np.zeros(600))

    assert grouped.count == 20
    assert grouped.interval == pytest.approx(alone.interval)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_few_samples_say_nothing_for_sure(count):
    comparison = compare_means(scores(np.zeros(count)), "always predicting 'cat'", np.ones(count))

    assert comparison.interval == (-math.inf, math.inf)
    assert not comparison.is_surely_worse
    assert "too few" in comparison.sentence()
    assert f"{count} validation image{'s' if count > 1 else ''})" in comparison.sentence()
    assert "too few samples" in comparison_table([comparison]).rows[0][5]


def test_a_few_samples_that_all_differ_alike_say_nothing_for_sure():
    comparison = compare_means(scores([0.0, 0.0, 0.0]), "always predicting 'cat'", np.ones(3))

    assert comparison.gain == -1
    assert not comparison.is_surely_worse


def test_a_statistic_is_compared_by_resampling_pairs():
    truth = np.arange(200) % 2
    random = np.random.default_rng(3)
    good, poor = truth + random.normal(0, 0.8, 200), random.normal(0, 1, 200)

    def correlation(values):
        return lambda index: float(np.corrcoef(values[index], truth[index])[0, 1])

    comparison = compare_statistics("r", "chance", (correlation(poor), correlation(good)), 200, samples="rows")

    assert comparison.is_surely_worse
    assert comparison.interval[0] < comparison.gain < comparison.interval[1]


def test_a_statistic_of_few_samples_has_no_interval():
    comparison = compare_statistics("r", "chance", (lambda _: 0.1, lambda _: 0.9), 4, samples="rows")

    assert not comparison.is_surely_worse
