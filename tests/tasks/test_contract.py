"""The contract of a task, tested for every task."""

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest

from tasks import _task_type_in, task_type
from tasks.contract import Arrays, Limits, Task, TensorSpec, build_task, count_samples, files_of, parameters_of
from tasks.tabular import Tabular
from tests.tiny.models import every_task
from tests.tiny.tabular import CREDIT

ROOT = Path(__file__).parents[2]
EXAMPLES = every_task()


def resolve_shape(spec: TensorSpec, axes: dict[str, int]) -> tuple[int, ...]:
    return tuple(axes.get(length, 7) if isinstance(length, str) else length for length in spec.shape)


def constant_outputs(task: Task, arrays: Arrays) -> Arrays:
    """Return constant outputs; an axis with the name of an input axis gets the same length."""
    size = count_samples(arrays)
    axes = {
        axis: length
        for spec in task.inputs
        for axis, length in zip(spec.shape, arrays[spec.name].shape[1:], strict=True)
        if isinstance(axis, str)
    }
    return {spec.name: np.full((size, *resolve_shape(spec, axes)), 0.25, spec.dtype) for spec in task.outputs}


@pytest.mark.parametrize("name", EXAMPLES)
class TestEveryTask:
    def test_example_is_preprocessed_to_the_inputs(self, name: str) -> None:
        task = EXAMPLES[name]

        request = task.parse(task.example(), Limits())
        samples = task.preprocess(task.decode(request, Limits()))

        assert set(samples.arrays) == {spec.name for spec in task.inputs}
        assert [spec.mismatch(samples.arrays[spec.name]) for spec in task.inputs] == [None] * len(task.inputs)

    def test_outputs_are_postprocessed_to_an_answer(self, name: str) -> None:
        task = EXAMPLES[name]

        answer = task.answer(lambda arrays: constant_outputs(task, arrays), task.example())

        assert isinstance(answer, task.answer_type)
        assert json.loads(answer.model_dump_json())

    def test_examples_are_json_and_start_with_the_example(self, name: str) -> None:
        examples = EXAMPLES[name].examples()

        assert json.loads(json.dumps(examples)) == examples
        assert examples[0] == EXAMPLES[name].example()

    def test_every_representation_can_be_requested(self, name: str) -> None:
        task = EXAMPLES[name]
        for representation in task.representations:
            answer = task.answer(
                lambda arrays: constant_outputs(task, arrays), {**task.example(), **representation.fields}
            )
            value = reduce(getattr, (representation.file or "model").split("."), answer)
            assert isinstance(value, bytes if representation.file else str)
            assert set(representation.fields) <= set(task.request_type.model_fields)

    def test_default_representation_is_json(self, name: str) -> None:
        assert EXAMPLES[name].representations[0].media_type == "application/json"

    def test_parameters_and_files_restore_the_task(self, name: str) -> None:
        task = EXAMPLES[name]

        assert build_task(type(task), json.loads(json.dumps(parameters_of(task))), files_of(task)) == task

    def test_preprocessing_is_deterministic(self, name: str) -> None:
        task = EXAMPLES[name]
        raw = task.decode(task.parse(task.example(), Limits()), Limits())

        first, second = task.preprocess(raw), task.preprocess(raw)

        assert all(np.array_equal(first.arrays[k], second.arrays[k], equal_nan=True) for k in first.arrays)


@pytest.mark.parametrize("name", ["contract", "_images", "os", "../os", ""])
def test_unknown_task_names_raise_without_being_imported(name: str) -> None:
    with pytest.raises(KeyError, match="There is no task"):
        task_type(name)


def test_task_is_found_although_the_module_of_another_one_cannot_be_imported() -> None:
    program = (
        "import sys; sys.modules['tasks.sentiment'] = None; from tasks import task_type; print(task_type('tabular'))"
    )

    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert output == f"{Tabular}\n"


def test_module_with_several_tasks_is_rejected() -> None:
    module = ModuleType("tasks.two")
    module.First, module.Second = (type(name, (Task,), {"__module__": "tasks.two"}) for name in ("First", "Second"))

    with pytest.raises(ValueError, match="defines several tasks: First, Second"):
        _task_type_in(module)


@dataclass(frozen=True)
class Shelf(Tabular):
    """A task that stores a text and a table in files."""

    words: str = ""
    films: tuple[tuple[int, str], ...] = ()

    files: ClassVar = {"words": "words.txt", "films": "films.json"}


SHELF = Shelf(
    CREDIT.target, CREDIT.labels, CREDIT.columns, words='Ünï "quoted"\r\n', films=((1, "Alien"), (2, "Čapek"))
)


def test_fields_in_files_are_not_parameters_and_are_restored() -> None:
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
def test_error_names_a_missing_or_invalid_file(files: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_task(Shelf, parameters_of(SHELF), files)
