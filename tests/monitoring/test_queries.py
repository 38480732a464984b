"""How the names of series are found in PromQL expressions."""

import pytest

from tests.monitoring.queries import exposed_names, metric_names, substitute


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("up == 0", {"up"}),
        ('sum by (model, le) (rate(a_bucket{x="in_string", y!~"z|b"}[5m])) / 2', {"a_bucket"}),
        ("a:b:rate5m > 14.4 * 0.001 and on (job) c unless d offset 15m", {"a:b:rate5m", "c", "d"}),
        ("max without (version) (e) / on (job) group_left () f", {"e", "f"}),
        ("time() - g >= bool 0", {"g"}),
        ('label_replace(count_values by (job) ("le", h), "le", "$1.0", "le", "([0-9]+)")', {"h"}),
        ('i{a="}"} or vector(0)', {"i"}),
    ],
)
def test_the_names_in_an_expression_are_found(expression: str, names: set[str]) -> None:
    assert metric_names(expression) == names


def test_a_histogram_exposes_three_series_and_a_metric_without_values_is_known_by_its_type() -> None:
    exposition = '# TYPE a histogram\na_bucket{le="1.0"} 1\n# TYPE b_total counter\n# TYPE c gauge\nc 1\n'

    names = exposed_names(exposition)

    assert names == {"a_bucket", "a_sum", "a_count", "b_total", "c"}


def test_variables_that_are_not_given_stand_for_all_values() -> None:
    expression = substitute('rate(a{job=~"$job", model=~"$model"}[$__rate_interval])', interval="1m", model="x")

    assert expression == 'rate(a{job=~".*", model=~"x"}[1m])'
