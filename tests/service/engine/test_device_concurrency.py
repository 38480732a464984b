"""A place of the device is had for one batch, whoever has it and however much it has to run: on the virtual clock."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from service.engine.request import PredictRequest
from service.errors import NoMemory, Overloaded
from tests.images import encoded
from tests.model_folders import CREDIT, credit_graph
from tests.tiny.models import tiny
from tests.virtual_clock import run_virtually
from tests.virtual_pipeline import VirtualDevice, VirtualModel

ROW = {"income": 50, "debt": 5, "job": "baker"}
EACH_S = 0.1
WINDOWS = 24
WIDE, NARROW = 800, 32
"""Pictures that are looked at through so many windows, and through one."""


def picture(width: int) -> Mapping[str, Any]:
    return {"image": encoded(Image.new("RGB", (width, 24), (90, 90, 90)))}


def pictures_on(device: VirtualDevice, *, most: int = 1) -> VirtualModel:
    return VirtualModel(device, "pictures", *tiny("segmentation"), each_s=EACH_S, most=most)


def rows_on(device: VirtualDevice, *, each_s: float = 0.005, most: int = 8) -> VirtualModel:
    return VirtualModel(device, "rows", CREDIT, credit_graph(), each_s=each_s, most=most)


def test_a_picture_has_as_many_windows_as_these_tests_believe() -> None:
    async def main() -> tuple[int, int]:
        model = pictures_on(VirtualDevice())
        return len(model.samples(picture(WIDE))), len(model.samples(picture(NARROW)))

    assert run_virtually(main()) == (WINDOWS, 1)


@pytest.mark.parametrize("most", [1, 4], ids=["no batches", "batches"])
@pytest.mark.parametrize("clients", [1, 4])
def test_who_takes_longer_than_a_run_may_take_is_not_called_hung_while_it_goes_on(most: int, clients: int) -> None:
    async def main() -> VirtualDevice:
        device = VirtualDevice(concurrency=4, hang_s=5 * EACH_S)
        model = pictures_on(device, most=most)
        await asyncio.gather(*(model.ask(picture(WIDE), "upload") for _ in range(clients)))
        assert asyncio.get_running_loop().time() > device.hang_s
        return device

    device = run_virtually(main())

    assert device.hung == []
    assert sum(run.size for run in device.runs) == clients * WINDOWS
    assert max(run.size for run in device.runs) <= most


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("clients", [1, 8])
def test_a_row_waits_for_one_window_of_a_picture_and_not_for_the_picture(concurrency: int, clients: int) -> None:
    async def main() -> tuple[VirtualDevice, float]:
        device = VirtualDevice(concurrency)
        pictures, rows = pictures_on(device), rows_on(device)
        under_way = [asyncio.create_task(pictures.ask(picture(WIDE), "upload")) for _ in range(clients)]
        await asyncio.sleep(2.5 * EACH_S)
        asked = asyncio.get_running_loop().time()
        await rows.ask({"rows": [ROW]})
        await asyncio.gather(*under_way)
        return device, asked

    device, asked = run_virtually(main())

    (row,) = [run for run in device.runs if run.name == "rows"]
    assert row.began - asked <= EACH_S
    assert device.runs[-1].name == "pictures"


def test_what_cannot_be_in_time_once_its_windows_are_counted_is_refused_and_none_of_them_is_run() -> None:
    async def main() -> VirtualDevice:
        device = VirtualDevice()
        model = pictures_on(device)
        with pytest.raises(Overloaded) as refused:
            await model.ask(picture(WIDE), "upload", within_s=WINDOWS * EACH_S / 3)
        assert (refused.value.retry_after_s or 0) >= 1
        assert asyncio.get_running_loop().time() == 0.0
        return device

    assert run_virtually(main()).runs == []


def test_what_can_be_in_time_with_all_its_windows_is_not_refused() -> None:
    async def main() -> VirtualDevice:
        device = VirtualDevice()
        await pictures_on(device).ask(picture(WIDE), "upload", within_s=WINDOWS * EACH_S * 1.1)
        return device

    assert len(run_virtually(main()).runs) == WINDOWS


@pytest.mark.parametrize(("free_bytes", "concurrency"), [(350e6, 3), (250e6, 2), (150e6, 1)])
def test_of_pictures_that_one_thread_takes_all_the_way_no_more_run_than_memory_has_room_for(
    free_bytes: float, concurrency: int
) -> None:
    async def main() -> VirtualDevice:
        device = VirtualDevice(concurrency=4)
        model = pictures_on(device)
        model.pipeline.curve.took((24 * 32 * 3, 100_000_000), (2 * 24 * 32 * 3, 200_000_000))
        device.scheduler.memory_bytes = free_bytes
        await asyncio.gather(*(model.ask(picture(NARROW), "upload") for _ in range(12)))
        return device

    device = run_virtually(main())

    assert len(device.runs) == 12
    assert device.most_at_once("pictures") == concurrency


def test_a_picture_that_memory_has_no_room_for_is_refused_also_where_it_is_alone() -> None:
    async def main() -> VirtualDevice:
        device = VirtualDevice()
        model = pictures_on(device)
        model.pipeline.curve.took((24 * 32 * 3, 100_000_000), (2 * 24 * 32 * 3, 200_000_000))
        device.scheduler.memory_bytes = 50e6
        with pytest.raises(NoMemory):
            await model.ask(picture(NARROW), "upload")
        return device

    assert run_virtually(main()).runs == []


@pytest.mark.parametrize("hop_s", [0.0, 1.0], ids=["in threads", "on the event loop"])
def test_rows_that_find_no_room_together_are_split_wherever_they_are_run(hop_s: float) -> None:
    async def main() -> tuple[VirtualDevice, int, int]:
        device = VirtualDevice(hop_s=hop_s)
        model = rows_on(device)
        for _ in range(3):
            await model.ask({"rows": [ROW] * 2})
        before = len(device.runs)
        model.backend.fits = 1
        answer = await model.ask({"rows": [ROW] * 2})
        return device, before, answer.body.count(b'"label"')

    device, before, predictions = run_virtually(main())

    assert predictions == 2
    assert [run.size for run in device.runs[:before]] == [2, 2, 2]
    assert [run.size for run in device.runs[-2:]] == [1, 1]


def test_a_time_limit_in_the_body_counts_from_when_the_request_came_whoever_asks() -> None:
    async def main() -> None:
        model = rows_on(VirtualDevice(hop_s=1.0))
        await asyncio.sleep(100)
        message = PredictRequest("json", 1, lambda: {"rows": [ROW], "timeout_ms": 5_000})
        assert (await model.pipeline.predict(message)).body

    run_virtually(main())
