"""Steps for several requests at once give the same as the steps for each of them."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.contract import InvalidOutput, Limits, Request, Samples, Task
from tests.model_folders import runner
from tests.tiny.models import every_task, graph_of
from tests.tiny.tabular import CREDIT, HIRES


def read(task: Task, bodies: Sequence[object]) -> tuple[list[Request], list[object]]:
    requests = [task.parse(body, Limits()) for body in bodies]
    return requests, [task.decode(request, Limits()) for request in requests]


def assert_equal(ours: Samples, theirs: Samples) -> None:
    assert ours.arrays.keys() == theirs.arrays.keys()
    for name, array in ours.arrays.items():
        assert array.dtype == theirs.arrays[name].dtype
        np.testing.assert_array_equal(array, theirs.arrays[name])
    assert ours.answer_size == theirs.answer_size


@pytest.mark.parametrize("name", list(every_task()))
def test_several_requests_are_preprocessed_and_answered_as_each_of_them_is(name: str) -> None:
    task, run = every_task()[name], runner(graph_of(name))
    requests, raws = read(task, task.examples())

    samples = task.preprocess_many(raws)

    for ours, raw in zip(samples, raws, strict=True):
        assert_equal(ours, task.preprocess(raw))
    by_shape: dict[object, list[int]] = {}
    for i, item in enumerate(samples):
        by_shape.setdefault(tuple(array.shape[1:] for array in item.arrays.values()), []).append(i)
    for indices in by_shape.values():
        parts = [samples[i] for i in indices]
        outputs = run({key: np.concatenate([part.arrays[key] for part in parts]) for key in parts[0].arrays})
        answers = task.postprocess_many(outputs, parts, [requests[i] for i in indices])
        for answer, i in zip(answers, indices, strict=True):
            single = task.postprocess(run(samples[i].arrays), samples[i], requests[i])
            assert task.agreement(answer, single) == pytest.approx(1)


LOANS = st.fixed_dictionaries(
    {
        "income": st.one_of(st.none(), st.floats(-200, 200, width=16)),
        "debt": st.integers(0, 60),
        "job": st.sampled_from(["baker", "clerk", "pilot", " clerk ", "?", None]),
    },
    optional={"sex": st.just("f")},
)
HOURS = st.fixed_dictionaries(
    {
        "when": st.sampled_from(["2012-06-01T08:00", "2010-01-01T00:00", None, "2013-01-01T12:00"]),
        "temp": st.one_of(st.none(), st.floats(-30, 60, width=16)),
        "weather": st.sampled_from(["clear", "snow", None]),
    }
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_tables_of_several_requests_have_the_samples_and_notices_of_each(data: st.DataObject) -> None:
    task, rows = data.draw(st.sampled_from([(CREDIT, LOANS), (HIRES, HOURS)]))
    tables = data.draw(st.lists(st.lists(rows, min_size=1, max_size=4), min_size=1, max_size=5))
    _, raws = read(task, [{"rows": table} for table in tables])

    for ours, raw in zip(task.preprocess_many(raws), raws, strict=True):
        single = task.preprocess(raw)
        assert_equal(ours, single)
        assert ours.context == single.context


def test_an_output_that_is_no_number_is_an_error_for_all_so_that_each_is_tried_alone() -> None:
    requests, raws = read(CREDIT, [CREDIT.example()] * 2)
    outputs = {"probabilities": np.array([[0.5, 0.5], [np.nan, 0.5]], np.float32)}

    with pytest.raises(InvalidOutput):
        CREDIT.postprocess_many(outputs, CREDIT.preprocess_many(raws), requests)
