"""How many processes there are, and what each of them gets of the machine."""

from pathlib import Path

import pytest

from service.backends.cores import available_cores
from service.settings import InvalidSetting, Settings, read_settings
from service.supervisor.division import (
    ProcessCount,
    SharedHostMemory,
    process_bytes,
    process_count,
    settings_for_one,
)


def machine(root: Path, *, free_mb: int, gpu: bool = False) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {free_mb * 1000} kB\nMemAvailable: {free_mb * 1000} kB\n")
    (root / "dev").mkdir()
    if gpu:
        (root / "dev/nvidia0").touch()
    return root


def test_there_is_one_process_by_default(tmp_path: Path) -> None:
    assert process_count(Settings(models=tmp_path), machine(tmp_path, free_mb=100_000)) == ProcessCount(1)


def test_auto_is_one_process_per_core(tmp_path: Path) -> None:
    settings = Settings(models=tmp_path / "none", processes="auto")

    assert process_count(settings, machine(tmp_path, free_mb=1_000_000)).count == available_cores(tmp_path)


def test_auto_is_as_many_as_memory_allows(tmp_path: Path) -> None:
    settings = Settings(models=tmp_path / "none", processes="auto")

    assert process_count(settings, machine(tmp_path, free_mb=400)) == ProcessCount(1)


def test_a_number_that_memory_does_not_allow_is_lowered_and_the_reason_is_told(tmp_path: Path) -> None:
    settings = Settings(models=tmp_path / "none", processes=8)

    chosen = process_count(settings, machine(tmp_path, free_mb=2 * process_bytes(settings) // 10**6 + 10))

    assert chosen.count == 2
    assert chosen.problem is not None
    assert "there will be 2. Raise the memory limit" in chosen.problem


def test_several_processes_on_a_gpu_are_refused(tmp_path: Path) -> None:
    root = machine(tmp_path, free_mb=100_000, gpu=True)

    with pytest.raises(InvalidSetting, match="processes must be 1 or auto on a GPU, not 2"):
        process_count(Settings(models=tmp_path, processes=2), root)
    assert process_count(Settings(models=tmp_path, processes="auto"), root).count == 1
    assert process_count(Settings(models=tmp_path / "none", processes=2, device="cpu"), root).count == 2


def test_cores_threads_and_memory_are_divided() -> None:
    settings = Settings(max_bodies_bytes=256_000_000, memory_mb=1000, workers=6)

    own = settings_for_one(settings, processes=4, cores=8)

    assert (own.threads, own.workers, own.decoders, own.batches_at_once) == (2, 2, 2, 4)
    assert (own.max_bodies_bytes, own.memory_mb) == (64_000_000, 250)


def test_each_process_has_at_least_a_core_a_decoder_and_room_for_one_body() -> None:
    settings = Settings(max_bodies_bytes=30_000_000, max_body_bytes=20_000_000)

    own = settings_for_one(settings, processes=4, cores=2)

    assert (own.threads, own.workers, own.decoders) == (1, 1, 1)
    assert own.max_bodies_bytes == 20_000_000


def test_free_memory_is_divided_and_the_limit_is_not(tmp_path: Path) -> None:
    memory = SharedHostMemory(machine(tmp_path, free_mb=1000), processes=4)

    assert memory.free() == 1000 * 1000 * 1024 // 4
    assert memory.total() == 1000 * 1000 * 1024


@pytest.mark.parametrize(("text", "expected"), [("auto", "auto"), ("4", 4)])
def test_the_setting_is_a_number_or_auto(text: str, expected: int | str) -> None:
    assert read_settings(["--processes", text], {}).processes == expected


@pytest.mark.parametrize("text", ["0", "65", "many", "1.5", ""])
def test_anything_else_is_an_error(text: str) -> None:
    with pytest.raises(InvalidSetting, match="processes must be"):
        read_settings(["--processes", text], {})
