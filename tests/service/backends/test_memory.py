"""The memory of the host and of a CUDA device is read from where the system reports it."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from service.backends.memory import CudaMemory, HostMemory

MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\nBuffers:            0 kB\n"


def host_memory(root: Path, files: dict[str, str]) -> HostMemory:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return HostMemory(root)


def cgroup_v2(folder: str, limit: str, used: int, cached: int) -> dict[str, str]:
    """Return the files of a control group of version 2."""
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 7\nfile 8\ninactive_anon 9\ninactive_file {cached}\n",
    }


def cgroup_v1(folder: str, limit: int, used: int, cached: int) -> dict[str, str]:
    """Return the files of a control group of version 1."""
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"cache 8\ninactive_file 5\ntotal_inactive_file {cached}\n",
    }


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
IN_V2, IN_V1 = {"proc/self/cgroup": "0::/pods/one\n"}, {"proc/self/cgroup": "5:cpu,memory:/pods/one\n0::/\n"}
NO_LIMIT = 9223372036854771712
"""The limit of a group of version 1 that has none: the largest number of whole pages."""


def test_total_memory_of_the_host_is_limited_by_the_control_groups(tmp_path: Path) -> None:
    free, limited = tmp_path / "free", tmp_path / "limited"

    assert host_memory(free, IN_V2).total() == 16_384_000
    assert host_memory(limited, IN_V2 | cgroup_v2(f"{V2}/pods/one", "10000", 3_000, 0)).total() == 10_000
    assert HostMemory(tmp_path / "nothing").total() is None


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8_192_000),
        (IN_V2, 8_192_000),
        (IN_V2 | cgroup_v2(f"{V2}/pods/one", "max", 3_000, 0), 8_192_000),
        (IN_V2 | cgroup_v2(f"{V2}/pods/one", "10000", 3_000, 500), 7_500),
        (IN_V2 | cgroup_v2(f"{V2}/pods/one", "10000", 3_000, 500) | cgroup_v2(f"{V2}/pods", "9000", 5_000, 600), 4_600),
        (IN_V2 | cgroup_v2(f"{V2}/pods/one", "10000", 11_000, 0), 0),
        ({"proc/self/cgroup": "0::/\n"} | cgroup_v2(V2, "10000", 3_000, 0), 7_000),
        (IN_V2 | cgroup_v2(V2, "10000", 3_000, 0), 7_000),
        (IN_V1 | cgroup_v1(f"{V1}/pods/one", 10_000, 3_000, 500), 7_500),
        (IN_V1 | cgroup_v1(f"{V1}/pods/one", NO_LIMIT, 3_000, 500) | cgroup_v1(V1, 6_000, 3_000, 100), 3_100),
        (IN_V1 | cgroup_v1(f"{V1}/pods/one", NO_LIMIT, 3_000, 500), 8_192_000),
    ],
    ids=[
        "no control groups",
        "group without files",
        "group without a limit",
        "limit, with droppable page cache",
        "limit of the parent group",
        "usage above the limit",
        "container whose own group is the root",
        "container whose group has the path of the host",
        "version 1",
        "version 1, limited at the mount",
        "version 1 without a limit",
    ],
)
def test_free_memory_is_the_minimum_of_machine_and_control_groups(
    tmp_path: Path, files: dict[str, str], free: int
) -> None:
    assert host_memory(tmp_path, files).free() == free


def test_memory_in_use_is_the_resident_set_size(tmp_path: Path) -> None:
    memory = host_memory(tmp_path, {"proc/self/statm": "5000 1234 700 1 0 900 0\n"})

    assert memory.in_use() == 1234 * os.sysconf("SC_PAGE_SIZE")


def test_host_memory_is_unknown_without_proc(tmp_path: Path) -> None:
    memory = HostMemory(tmp_path)

    assert (memory.in_use(), memory.free(), memory.is_lost()) == (None, None, False)


def test_cuda_memory_is_unknown_if_cuda_is_not_loaded() -> None:
    memory = CudaMemory(libraries=("libthere-is-no-such-thing.so.1",))

    assert (memory.in_use(), memory.free(), memory.is_lost()) == (None, None, None)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(("status", "expected"), [(0, (70, 30, False)), (700, (None, None, True))])
def test_cuda_runtime_is_called_as_its_reference_says(
    tmp_path: Path, status: int, expected: tuple[int | None, int | None, bool]
) -> None:
    (tmp_path / "runtime.c").write_text(
        f"#include <stddef.h>\nint cudaMemGetInfo(size_t *free, size_t *total) "
        f"{{ *free = 30; *total = 100; return {status}; }}\nint cudaDeviceSynchronize(void) {{ return {status}; }}\n"
    )
    library = str(tmp_path / f"libruntime{status}.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, str(tmp_path / "runtime.c")], check=True)
    memory = CudaMemory(libraries=("libnone.so.1", library))

    before = (memory.in_use(), memory.free(), memory.is_lost())
    ctypes.CDLL(library)  # As ONNX Runtime does.

    assert before == (None, None, None)
    assert (memory.in_use(), memory.free(), memory.is_lost()) == expected
