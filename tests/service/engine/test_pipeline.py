"""Requests of whole pipelines that share a device: large images, memory, deadlines and pools; on the virtual clock."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from service.backends.fake import backend_error, out_of_memory
from service.engine.latency import DEFAULT_HOP_S
from service.engine.request import PredictRequest
from service.errors import NoMemory, Overloaded
from tasks.contract import Limits, count_samples
from tests.images import encode_image
from tests.tiny.models import tiny
from tests.tiny.tabular import CREDIT, credit_graph
from tests.virtual_clock import now, run_virtually
from tests.virtual_pipeline import VirtualDevice, VirtualModel

ROW = {"income": 50, "debt": 5, "job": "baker"}
PER_SAMPLE_S = 0.1
WINDOWS = 24
WIDE, NARROW = 800, 32
"""Widths of images that are cut into WINDOWS windows, and into one."""
WINDOW_ELEMENTS = 24 * 32 * 3
WINDOW_BYTES = 100_000_000


def image(width: int) -> Mapping[str, Any]:
    return {"image": encode_image(Image.new("RGB", (width, 24), (90, 90, 90)))}


def image_model(device: VirtualDevice, *, max_size: int = 1) -> VirtualModel:
    return VirtualModel(device, "images", *tiny("segmentation"), per_sample_s=PER_SAMPLE_S, max_size=max_size)


def row_model(device: VirtualDevice) -> VirtualModel:
    return VirtualModel(device, "rows", CREDIT, credit_graph(), per_sample_s=0.005, max_size=8)


def set_window_memory(model: VirtualModel) -> None:
    """Tell the latency profile that a window needs WINDOW_BYTES."""
    model.pipeline.latency_profile.fit_memory((WINDOW_ELEMENTS, WINDOW_BYTES), (2 * WINDOW_ELEMENTS, 2 * WINDOW_BYTES))


def test_images_have_the_number_of_windows_that_these_tests_assume() -> None:
    async def main() -> tuple[int, int]:
        model = image_model(VirtualDevice())
        return len(model.samples(image(WIDE))), len(model.samples(image(NARROW)))

    assert run_virtually(main()) == (WINDOWS, 1)


@pytest.mark.parametrize("max_size", [1, 4], ids=["no batches", "batches"])
@pytest.mark.parametrize("clients", [1, 4])
def test_request_that_takes_longer_than_the_hang_timeout_is_not_hung_while_its_runs_are_short(
    max_size: int, clients: int
) -> None:
    async def main() -> VirtualDevice:
        device = VirtualDevice(concurrency=4, hang_timeout_s=5 * PER_SAMPLE_S)
        model = image_model(device, max_size=max_size)
        await asyncio.gather(*(model.predict(image(WIDE), "upload") for _ in range(clients)))
        assert now() > device.hang_timeout_s
        return device

    device = run_virtually(main())

    assert device.hung_counts == []
    assert sum(run.size for run in device.runs) == clients * WINDOWS
    assert max(run.size for run in device.runs) <= max_size


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("clients", [1, 8])
def test_row_waits_for_one_window_of_an_image_and_not_for_the_whole_image(concurrency: int, clients: int) -> None:
    async def main() -> tuple[VirtualDevice, float]:
        device = VirtualDevice(concurrency)
        images, rows = image_model(device), row_model(device)
        running = [asyncio.create_task(images.predict(image(WIDE), "upload")) for _ in range(clients)]
        await asyncio.sleep(2.5 * PER_SAMPLE_S)
        arrived_at = now()
        await rows.predict({"rows": [ROW]})
        await asyncio.gather(*running)
        return device, arrived_at

    device, arrived_at = run_virtually(main())

    (row_run,) = [run for run in device.runs if run.model == "rows"]
    assert row_run.started_at - arrived_at <= PER_SAMPLE_S
    assert device.runs[-1].model == "images"


def test_image_with_too_many_windows_for_its_deadline_is_rejected_and_none_of_them_is_run() -> None:
    async def main() -> VirtualDevice:
        device = VirtualDevice()
        model = image_model(device)
        with pytest.raises(Overloaded) as rejected:
            await model.predict(image(WIDE), "upload", timeout_s=WINDOWS * PER_SAMPLE_S / 3)
        assert (rejected.value.retry_after_s or 0) >= 1
        assert now() == 0.0
        return device

    assert run_virtually(main()).runs == []


def test_image_whose_windows_fit_its_deadline_is_answered() -> None:
    async def main() -> VirtualDevice:
        device = VirtualDevice()
        await image_model(device).predict(image(WIDE), "upload", timeout_s=WINDOWS * PER_SAMPLE_S * 1.1)
        return device

    assert len(run_virtually(main()).runs) == WINDOWS


@pytest.mark.parametrize(("free_bytes", "concurrency"), [(350e6, 3), (250e6, 2), (150e6, 1)])
def test_one_thread_requests_run_concurrently_only_as_memory_allows(free_bytes: float, concurrency: int) -> None:
    async def main() -> VirtualDevice:
        device = VirtualDevice(concurrency=4)
        model = image_model(device)
        set_window_memory(model)
        device.scheduler.memory_bytes = free_bytes
        await asyncio.gather(*(model.predict(image(NARROW), "upload") for _ in range(12)))
        return device

    device = run_virtually(main())

    assert len(device.runs) == 12
    assert device.max_concurrent_samples("images") == concurrency


def test_image_that_does_not_fit_into_memory_is_rejected_even_on_an_idle_device() -> None:
    async def main() -> VirtualDevice:
        device = VirtualDevice()
        model = image_model(device)
        set_window_memory(model)
        device.scheduler.memory_bytes = WINDOW_BYTES / 2
        with pytest.raises(NoMemory):
            await model.predict(image(NARROW), "upload")
        return device

    assert run_virtually(main()).runs == []


@pytest.mark.parametrize("hop_s", [0.0, 1.0], ids=["in threads", "on the event loop"])
def test_rows_that_do_not_fit_into_memory_together_are_split_wherever_they_run(hop_s: float) -> None:
    async def main() -> tuple[VirtualDevice, int, int]:
        device = VirtualDevice(hop_s=hop_s)
        model = row_model(device)
        for _ in range(3):
            await model.predict({"rows": [ROW] * 2})
        runs_before = len(device.runs)
        model.backend.faults.append(out_of_memory(lambda arrays: count_samples(arrays) > 1))
        result = await model.predict({"rows": [ROW] * 2})
        return device, runs_before, result.body.count(b'"label"')

    device, runs_before, predictions = run_virtually(main())

    assert predictions == 2
    assert [run.size for run in device.runs[:runs_before]] == [2, 2, 2]
    assert [run.size for run in device.runs[-2:]] == [1, 1]


def test_timeout_in_the_body_counts_from_the_arrival_of_the_request() -> None:
    async def main() -> None:
        model = row_model(VirtualDevice(hop_s=1.0))
        await asyncio.sleep(100)
        predict_request = PredictRequest("json", b"-", lambda body: {"rows": [ROW], "timeout_ms": 5_000})
        assert (await model.pipeline.predict(predict_request)).body

    run_virtually(main())


@pytest.mark.parametrize("is_image", [True, False], ids=["images", "rows"])
def test_images_are_decoded_in_worker_processes_and_small_bodies_in_the_interpreter(is_image: bool) -> None:
    fields = image(NARROW) if is_image else {"rows": [ROW]}

    async def main() -> tuple[int, int]:
        device = VirtualDevice()
        model = image_model(device, max_size=4) if is_image else row_model(device)
        await asyncio.gather(*(model.predict(fields) for _ in range(4)))
        return device.decoders.submitted, device.interpreter.submitted

    in_decoders, in_interpreter = run_virtually(main())

    assert (in_decoders > 0) is is_image
    assert (in_interpreter > 0) is not is_image


LONG_S = 0.05


def text_model(device: VirtualDevice) -> VirtualModel:
    return VirtualModel(device, "texts", *tiny("sentiment"), per_sample_s=0.01, max_size=8)


def test_a_long_answer_does_not_occupy_the_interpreters_thread() -> None:
    async def main() -> tuple[int, int]:
        device = VirtualDevice()
        model = text_model(device)
        request = model.pipeline.task.parse({"text": "good"}, Limits())
        model.pipeline.postprocess_cost(request).record(LONG_S, 1)
        await model.predict({"text": "good"})
        return device.interpreter.submitted, device.workers.submitted

    prepared, answered = run_virtually(main())

    assert (prepared, answered) == (1, 1)


def test_the_event_loop_does_not_wait_for_the_process_of_a_short_answer_after_long_ones() -> None:
    async def main() -> int:
        device = VirtualDevice(hop_s=DEFAULT_HOP_S)
        model = text_model(device)
        request = model.pipeline.task.parse({"text": "good"}, Limits())
        cost = model.pipeline.postprocess_cost(request)
        cost.record(1e-6, 1)
        for _ in range(300):
            cost.record(LONG_S, 1_000_000)
        work = model.samples({"text": "good"}).work
        assert cost.predict_s(work) > LONG_S / 2
        assert cost.is_cheap(work)
        await model.predict({"text": "good"})
        return len(device.isolated_answers)

    assert run_virtually(main()) == 0


def test_internal_errors_of_one_of_several_inputs_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> bytes:
        model = image_model(VirtualDevice())
        model.backend.faults.append(backend_error())
        images = [image(NARROW)["image"]] * 2
        return (await model.predict({"image": images}, "upload")).body

    answers = json.loads(run_virtually(main()))["answers"]

    assert [answer["error"]["code"] for answer in answers] == ["backend_failed"] * 2
    assert caplog.text.count("The graph failed.") >= 2
