"""What a model learns before it serves: each shape, where memory ends, and what a run needs of it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.backends.base import Backend, OutOfMemory
from service.backends.onnx import OnnxRuntime
from service.engine.batcher import BatchPolicy
from service.engine.latency import Shape, shape_of
from service.engine.pipeline import Pipeline
from service.models.warmup import GoldenRun, measure_memory, warm_up
from tasks.contract import Arrays, Limits, Task, TensorSpec
from tests.model_folders import CREDIT, credit_graph, publish
from tests.service.conftest import Start
from tests.tiny.models import every_task, graph_of
from tests.virtual_pipeline import VirtualDevice

ROW = {"income": 50, "debt": 5, "job": "baker"}
BYTES_OF_ANY, BYTES_OF_ELEMENT = 1_000, 8


@dataclass
class Narrow:
    """A real graph on a device that has room for so many elements of input at a time, and keeps what it once took."""

    real: Backend
    elements: float = math.inf
    taken: int = 0
    device: str = "fake"

    def run(self, arrays: Arrays) -> Arrays:
        elements = sum(array.size for array in arrays.values())
        if elements > self.elements:
            raise OutOfMemory("There is no room.")
        self.taken = max(self.taken, BYTES_OF_ANY + BYTES_OF_ELEMENT * elements)
        return self.real.run(arrays)

    run_exclusive = run

    def release(self) -> None:
        self.taken = 0

    def memory_in_use(self) -> int:
        return 5_000 + self.taken

    def memory_free(self) -> None:
        """It does not know."""


@dataclass(frozen=True)
class NarrowRuntime:
    """Opens graphs on such a device."""

    elements: float

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Narrow:
        return Narrow(OnnxRuntime("cpu", 1)(graph, inputs, outputs), self.elements)


def warmed(task: Task, graph: bytes, *, elements: float = math.inf, most: int = 256, find: bool = True) -> Pipeline:
    backend = NarrowRuntime(elements)(graph, task.inputs, task.outputs)
    pipeline = Pipeline(task, backend, VirtualDevice().context, name="model", policy=BatchPolicy(most))
    warm_up(pipeline, [proven(task, backend.real, fields) for fields in task.examples()], find_batch_size=find)
    return pipeline


def proven(task: Task, backend: Backend, fields: Any) -> GoldenRun:
    request = task.parse(fields, Limits())
    samples = task.preprocess(task.decode(request, Limits()))
    return GoldenRun(request, samples, backend.run_exclusive(samples.arrays))


def bucket_shapes(task: Task) -> list[Shape]:
    """One for each length that the task fills its samples up to."""
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


def sizes_of(pipeline: Pipeline, shape: Shape) -> list[int]:
    return [size for known, size, _, _ in pipeline.latency_profile.table() if known == shape]


@pytest.mark.parametrize("name", [name for name, task in every_task().items() if task.length_buckets])
def test_every_bucket_of_a_task_has_been_run_before_it_serves(name: str) -> None:
    task = every_task()[name]

    pipeline = warmed(task, graph_of(name), most=8, find=False)

    assert len(bucket_shapes(task)) > 1
    for shape in bucket_shapes(task):
        assert sizes_of(pipeline, shape)[0] == 1
        assert all(seconds > 0 for known, _, seconds, _ in pipeline.latency_profile.table() if known == shape)


def test_some_tasks_have_buckets() -> None:
    assert any(task.length_buckets for task in every_task().values())


@pytest.mark.parametrize("find", [True, False], ids=["size is found", "size is set"])
@pytest.mark.parametrize("fits", [1, 3, 16, 100])
def test_where_memory_ends_batches_end_and_no_size_that_found_no_room_is_tried_again(fits: int, find: bool) -> None:
    pipeline = warmed(CREDIT, credit_graph(), elements=3 * fits, find=find)
    (shape,) = {shape for shape, _, _, _ in pipeline.latency_profile.table()}

    assert max(sizes_of(pipeline, shape)) <= fits
    assert 1 <= pipeline.latency_profile.max_batch_size(shape, pipeline.batch_limit, math.inf) <= fits


def test_a_bucket_that_finds_room_for_fewer_samples_than_others_ends_earlier() -> None:
    task = every_task()["sentiment"]
    room = 4 * 32

    pipeline = warmed(task, graph_of("sentiment"), elements=room, most=16, find=False)

    *_, longest = bucket_shapes(task)
    assert max(sizes_of(pipeline, longest)) <= room // 32
    assert pipeline.latency_profile.max_batch_size(longest, pipeline.batch_limit, math.inf) <= room // 32


@pytest.mark.parametrize("find", [True, False], ids=["size is found", "no batches wanted"])
def test_a_device_without_room_for_a_single_sample_is_an_error(find: bool) -> None:
    with pytest.raises(OutOfMemory, match="a single sample"):
        warmed(CREDIT, credit_graph(), elements=2, most=8 if find else 1, find=find)


@pytest.mark.parametrize("fits", [1, 10, 1000])
@pytest.mark.parametrize("find", [True, False], ids=["size is found", "size is set"])
def test_what_a_run_needs_of_memory_is_learnt_also_where_not_every_batch_has_room(fits: int, find: bool) -> None:
    pipeline = warmed(CREDIT, credit_graph(), elements=3 * fits, most=64, find=find)
    (shape,) = {shape for shape, _, _, _ in pipeline.latency_profile.table()}

    measure_memory(pipeline, CREDIT.example())

    each = 3 * BYTES_OF_ELEMENT
    most = pipeline.latency_profile.max_batch_size(shape, pipeline.batch_limit, math.inf)
    assert pipeline.latency_profile.memory_bytes(shape, most) == pytest.approx(BYTES_OF_ANY + each * most)
    assert pipeline.latency_profile.memory_bytes(shape, 1) == pytest.approx(BYTES_OF_ANY + each)


@pytest.mark.parametrize("max_batch", [0, 64], ids=["size is found", "size is set"])
@pytest.mark.parametrize("fits", [1, 3, 16])
def test_a_model_of_which_only_small_batches_have_room_is_served(
    tmp_path: Path, start: Start, fits: int, max_batch: int
) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph())
    server = start(NarrowRuntime(3 * fits), models=tmp_path, max_batch=max_batch)

    answer = server.client.post("/v1/models/credit/predict", json={"rows": [ROW] * 40})

    assert answer.status_code == 200
    assert len(answer.json()["predictions"]) == 40
