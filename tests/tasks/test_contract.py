"""What is true of every task, asked of each."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from tasks import task_type
from tasks.contract import Arrays, Limits, Task, TensorSpec, build_task, files_of, parameters_of
from tasks.tabular import Tabular
from tests.model_folders import CREDIT
from tests.tiny.models import every_task

EXAMPLES = every_task()


def lengths(spec: TensorSpec, axes: dict[str, int]) -> tuple[int, ...]:
    return tuple(axes.get(length, 7) if isinstance(length, str) else length for length in spec.shape)


def any_outputs(task: Task, arrays: Arrays) -> Arrays:
    """Of a length that the inputs have too where an axis has the same name."""
    size = len(next(iter(arrays.values())))
    axes = {
        axis: length
        for spec in task.inputs
        for axis, length in zip(spec.shape, arrays[spec.name].shape[1:], strict=True)
        if isinstance(axis, str)
    }
    return {spec.name: np.full((size, *lengths(spec, axes)), 0.25, spec.dtype) for spec in task.outputs}


@pytest.mark.parametrize("name", EXAMPLES)
class TestEveryTask:
    def test_its_example_becomes_its_inputs(self, name: str) -> None:
        task = EXAMPLES[name]

        request = task.parse(task.example(), Limits())
        samples = task.preprocess(task.decode(request, Limits()))

        assert set(samples.arrays) == {spec.name for spec in task.inputs}
        assert [spec.mismatch(samples.arrays[spec.name]) for spec in task.inputs] == [None] * len(task.inputs)

    def test_its_outputs_become_an_answer(self, name: str) -> None:
        task = EXAMPLES[name]

        answer = task.answer(lambda arrays: any_outputs(task, arrays), task.example())

        assert isinstance(answer, task.answer_type)
        assert json.loads(answer.model_dump_json())

    def test_its_examples_are_json_and_the_first_is_the_example(self, name: str) -> None:
        examples = EXAMPLES[name].examples()

        assert json.loads(json.dumps(examples)) == examples
        assert examples[0] == EXAMPLES[name].example()

    def test_each_of_its_forms_can_be_asked_for_and_is_there(self, name: str) -> None:
        task = EXAMPLES[name]
        plain = {key: value for key, value in task.example().items() if key in ("image", "rows", "text", "user")}

        for representation in task.representations:
            answer = task.answer(lambda arrays: any_outputs(task, arrays), {**plain, **representation.fields})
            found = answer
            for part in (representation.file or "model").split("."):
                found = getattr(found, part)
            assert isinstance(found, bytes if representation.file else str)
            assert set(representation.fields) <= set(task.request_type.model_fields)

    def test_it_can_be_asked_for_json(self, name: str) -> None:
        assert EXAMPLES[name].representations[0].media_type == "application/json"

    def test_a_manifest_brings_the_same_task_back(self, name: str) -> None:
        task = EXAMPLES[name]

        assert build_task(type(task), json.loads(json.dumps(parameters_of(task))), files_of(task)) == task

    def test_preprocessing_does_not_depend_on_what_was_asked_before(self, name: str) -> None:
        task = EXAMPLES[name]
        raw = task.decode(task.parse(task.example(), Limits()), Limits())

        first, second = task.preprocess(raw), task.preprocess(raw)

        assert all(np.array_equal(first.arrays[k], second.arrays[k], equal_nan=k == "numbers") for k in first.arrays)


@pytest.mark.parametrize("name", ["contract", "_images", "os", "../os", ""])
def test_what_is_no_task_is_not_imported(name: str) -> None:
    with pytest.raises(KeyError, match="There is no task"):
        task_type(name)


@dataclass(frozen=True)
class Shelf(Tabular):
    """A task that keeps a text and a table in files of their own."""

    words: str = ""
    films: tuple[tuple[int, str], ...] = ()

    files: ClassVar = {"words": "words.txt", "films": "films.json"}


SHELF = Shelf(
    CREDIT.target, CREDIT.labels, CREDIT.columns, words='Ünï "quoted"\r\n', films=((1, "Alien"), (2, "Čapek"))
)


def test_what_a_task_keeps_in_files_is_not_among_its_parameters_and_comes_back_from_them() -> None:
    parameters, files = parameters_of(SHELF), files_of(SHELF)

    assert {"words", "films"}.isdisjoint(parameters)
    assert files == {"words.txt": SHELF.words, "films.json": '[[1, "Alien"], [2, "Čapek"]]\n'}
    assert build_task(Shelf, parameters, files) == SHELF


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"words.txt": "x"}, "it also needs films.json"),
        ({"words.txt": "x", "films.json": "[[1,"}, "films.json is not JSON: EOF"),
        ({"words.txt": "x", "films.json": '[["one", 1]]'}, "valid integer"),
    ],
)
def test_a_file_that_is_missing_or_wrong_is_named(files: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_task(Shelf, parameters_of(SHELF), files)
