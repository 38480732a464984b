"""Warm-up measures every shape, finds the largest batches that fit in memory, and what memory a run needs."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.backends.base import Backend, OpenBackend, OutOfMemory
from service.backends.fake import FakeBackend, out_of_memory
from service.backends.onnx import OnnxRuntime
from service.engine.batcher import BatchPolicy
from service.engine.latency import Shape, shape_of
from service.engine.pipeline import Pipeline
from service.models.verification import GoldenRun
from service.models.warmup import measure_memory, warm_up
from tasks.contract import Arrays, Limits, Run, Task, TensorSpec
from tests.model_folders import publish
from tests.service.conftest import Start
from tests.tiny.models import every_task, graph_of
from tests.tiny.tabular import CREDIT, credit_graph
from tests.virtual_pipeline import VirtualDevice

ROW = {"income": 50, "debt": 5, "job": "baker"}
BYTES_PER_RUN, BYTES_PER_ELEMENT, BYTES_OF_MODELS = 1_000, 8, 5_000


def count_elements(arrays: Arrays) -> int:
    return sum(array.size for array in arrays.values())


@dataclass
class Arena:
    """The memory of a device that fits a maximum number of input elements, and keeps what it has once reserved."""

    max_elements: float = math.inf
    reserved: int = field(default=0, init=False)

    def open_backend(
        self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> FakeBackend:
        return FakeBackend(
            OnnxRuntime("cpu", 1)(graph, inputs, outputs).run,
            faults=[out_of_memory(lambda arrays: count_elements(arrays) > self.max_elements), self._reserve],
            in_use=lambda: BYTES_OF_MODELS + self.reserved,
            on_release=self._release,
        )

    def _reserve(self, arrays: Arrays, run: Run) -> Arrays:
        self.reserved = max(self.reserved, BYTES_PER_RUN + BYTES_PER_ELEMENT * count_elements(arrays))
        return run(arrays)

    def _release(self) -> None:
        self.reserved = 0


def device_with_room_for(elements: float) -> OpenBackend:
    """A runtime whose graphs each have an arena of their own."""
    return lambda graph, inputs, outputs: Arena(elements).open_backend(graph, inputs, outputs)


def warmed_up_pipeline(
    task: Task, graph: bytes, *, max_elements: float = math.inf, max_batch: int = 256, find_batch_size: bool = True
) -> Pipeline:
    backend = device_with_room_for(max_elements)(graph, task.inputs, task.outputs)
    pipeline = Pipeline(task, backend, VirtualDevice().context, name="model", policy=BatchPolicy(max_batch))
    unlimited = OnnxRuntime("cpu", 1)(graph, task.inputs, task.outputs)
    golden_runs = [golden_run(task, unlimited, fields) for fields in task.examples()]
    warm_up(pipeline, golden_runs, find_batch_size=find_batch_size)
    return pipeline


def golden_run(task: Task, backend: Backend, fields: Any) -> GoldenRun:
    request = task.parse(fields, Limits())
    samples = task.preprocess(task.decode(request, Limits()))
    return GoldenRun(request, samples, backend.run_exclusive(samples.arrays))


def bucket_shapes(task: Task) -> list[Shape]:
    """Return the shape of a sample in each of the task's length buckets."""
    return [
        shape_of(
            {
                spec.name: np.zeros((1, *(length if n == axis else n for n in spec.shape)), spec.dtype)
                for spec in task.inputs
            }
        )
        for axis, lengths in task.length_buckets.items()
        for length in lengths
    ]


def measured_sizes(pipeline: Pipeline, shape: Shape) -> list[int]:
    return [size for known, size, _, _ in pipeline.latency_profile.table() if known == shape]


def only_shape(pipeline: Pipeline) -> Shape:
    (shape,) = {shape for shape, _, _, _ in pipeline.latency_profile.table()}
    return shape


@pytest.mark.parametrize("name", [name for name, task in every_task().items() if task.length_buckets])
def test_every_length_bucket_of_a_task_is_run(name: str) -> None:
    task = every_task()[name]

    pipeline = warmed_up_pipeline(task, graph_of(name), max_batch=8, find_batch_size=False)

    assert len(bucket_shapes(task)) > 1
    for shape in bucket_shapes(task):
        assert measured_sizes(pipeline, shape)[0] == 1
        assert all(seconds > 0 for known, _, seconds, _ in pipeline.latency_profile.table() if known == shape)


def test_some_tasks_have_length_buckets() -> None:
    assert any(task.length_buckets for task in every_task().values())


@pytest.mark.parametrize("find_batch_size", [True, False], ids=["size is found", "size is set"])
@pytest.mark.parametrize("capacity", [1, 3, 16, 100])
def test_batches_are_limited_to_the_size_that_fits_in_memory(capacity: int, find_batch_size: bool) -> None:
    pipeline = warmed_up_pipeline(CREDIT, credit_graph(), max_elements=3 * capacity, find_batch_size=find_batch_size)
    shape = only_shape(pipeline)

    assert max(measured_sizes(pipeline, shape)) <= capacity
    assert 1 <= pipeline.latency_profile.max_batch_size(shape, pipeline.batch_limit, math.inf) <= capacity


def test_batches_of_a_longer_bucket_are_limited_to_fewer_samples() -> None:
    task = every_task()["sentiment"]
    max_elements = 4 * 32

    pipeline = warmed_up_pipeline(
        task, graph_of("sentiment"), max_elements=max_elements, max_batch=16, find_batch_size=False
    )

    *_, longest = bucket_shapes(task)
    assert max(measured_sizes(pipeline, longest)) <= max_elements // 32
    assert pipeline.latency_profile.max_batch_size(longest, pipeline.batch_limit, math.inf) <= max_elements // 32


@pytest.mark.parametrize("find_batch_size", [True, False], ids=["size is found", "no batches wanted"])
def test_device_too_small_for_a_single_sample_is_an_error(find_batch_size: bool) -> None:
    with pytest.raises(OutOfMemory, match="a single sample"):
        warmed_up_pipeline(
            CREDIT,
            credit_graph(),
            max_elements=2,
            max_batch=8 if find_batch_size else 1,
            find_batch_size=find_batch_size,
        )


@pytest.mark.parametrize("capacity", [1, 10, 1000])
@pytest.mark.parametrize("find_batch_size", [True, False], ids=["size is found", "size is set"])
def test_memory_of_a_run_is_measured_even_if_not_every_batch_fits(capacity: int, find_batch_size: bool) -> None:
    pipeline = warmed_up_pipeline(
        CREDIT, credit_graph(), max_elements=3 * capacity, max_batch=64, find_batch_size=find_batch_size
    )
    shape = only_shape(pipeline)

    measure_memory(pipeline, CREDIT.example())

    bytes_per_sample = 3 * BYTES_PER_ELEMENT
    max_size = pipeline.latency_profile.max_batch_size(shape, pipeline.batch_limit, math.inf)
    assert pipeline.latency_profile.memory_bytes(shape, max_size) == pytest.approx(
        BYTES_PER_RUN + bytes_per_sample * max_size
    )
    assert pipeline.latency_profile.memory_bytes(shape, 1) == pytest.approx(BYTES_PER_RUN + bytes_per_sample)


@dataclass
class Memory:
    """Memory in which runs that take turns are measured, as it happens to threads that start one after the other.

    Every run needs as many bytes as its inputs have elements, and those of each run are added to what is in use.
    """

    total: int
    used: int = 0
    largest: int = 0

    def run(self, arrays: Arrays, run: Run) -> Arrays:
        self.largest = max(self.largest, count_elements(arrays))
        self.used = self.largest
        return run(arrays)

    def open_backend(
        self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> FakeBackend:
        return FakeBackend(
            OnnxRuntime("cpu", 1)(graph, inputs, outputs).run,
            faults=[self.run],
            in_use=lambda: self.used,
            free=lambda: self.total - self.used,
            on_release=self._release,
        )

    def _release(self) -> None:
        self.used = self.largest = 0


@pytest.mark.parametrize("total", [20, 100, 400])
def test_runs_side_by_side_are_limited_to_what_fits_even_if_they_took_turns_while_measured(total: int) -> None:
    memory = Memory(total)
    backend = memory.open_backend(credit_graph(), CREDIT.inputs, CREDIT.outputs)
    pipeline = Pipeline(CREDIT, backend, VirtualDevice().context, name="model", policy=BatchPolicy(256))
    golden_runs = [golden_run(CREDIT, backend, CREDIT.example())]
    memory._release()

    warm_up(pipeline, golden_runs, find_batch_size=True, concurrency=2)

    largest = max(measured_sizes(pipeline, only_shape(pipeline)))
    assert 2 * largest * 3 <= total


def test_largest_batch_is_measured_again_only_if_it_still_fits_after_other_models_were_loaded() -> None:
    memory = Memory(10_000)
    backend = memory.open_backend(credit_graph(), CREDIT.inputs, CREDIT.outputs)
    pipeline = Pipeline(CREDIT, backend, VirtualDevice().context, name="model", policy=BatchPolicy(256))
    warm_up(pipeline, [golden_run(CREDIT, backend, CREDIT.example())], find_batch_size=False)
    memory.total = 100
    memory.largest = 0

    measure_memory(pipeline, CREDIT.example())

    assert 3 <= memory.largest <= 50
    assert pipeline.latency_profile.max_batch_size(only_shape(pipeline), 256, math.inf) * 3 <= 50


@pytest.mark.parametrize("max_batch", [0, 64], ids=["size is found", "size is set"])
@pytest.mark.parametrize("capacity", [1, 3, 16])
def test_model_is_served_if_only_small_batches_fit(tmp_path: Path, start: Start, capacity: int, max_batch: int) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())
    server = start(device_with_room_for(3 * capacity), models=tmp_path, max_batch=max_batch)

    answer = server.client.post("/v1/models/credit/predict", json={"rows": [ROW] * 40})

    assert answer.status_code == 200
    assert len(answer.json()["predictions"]) == 40
