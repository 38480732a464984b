"""The cores that a process may use are limited by the quotas of its control groups."""

import os
from pathlib import Path

import pytest

from service.backends.cores import available_cores

MACHINE = 8
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu"
IN_V2, IN_V1 = "0::/pods/one\n", "4:cpu,cpuacct:/pods/one\n0::/\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(MACHINE)), raising=False)


def cores_with(root: Path, group: str, files: dict[str, str]) -> int:
    for name, text in {"proc/self/cgroup": group, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return available_cores(root)


def v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": str(period)}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, MACHINE),
        ({f"{V2}/pods/one/cpu.max": "max 100000"}, MACHINE),
        ({f"{V2}/pods/one/cpu.max": "200000 100000"}, 2),
        ({f"{V2}/pods/one/cpu.max": "150000 100000"}, 2),
        ({f"{V2}/pods/one/cpu.max": "25000 50000"}, 1),
        ({f"{V2}/pods/one/cpu.max": "9900000 100000"}, MACHINE),
        ({f"{V2}/pods/one/cpu.max": "400000 100000", f"{V2}/pods/cpu.max": "300000 100000"}, 3),
        ({f"{V2}/cpu.max": "100000 100000"}, 1),
        ({f"{V2}/pods/one/cpu.max": ""}, MACHINE),
        ({f"{V2}/pods/one/cpu.max": "0 0"}, MACHINE),
    ],
    ids=[
        "no group",
        "no limit",
        "whole cores",
        "rounded up",
        "at least one",
        "more than there are",
        "limit of a parent",
        "limit of the mounted group",
        "empty file",
        "no number of cores",
    ],
)
def test_cores_are_limited_by_the_quota_of_control_groups_of_version_2(
    tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    assert cores_with(tmp_path, IN_V2, files) == cores


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        (v1(f"{V1}/pods/one", -1), MACHINE),
        (v1(f"{V1}/pods/one", 250_000), 3),
        (v1(f"{V1}/pods/one", 400_000) | v1(f"{V1}/pods", 200_000), 2),
        (v1(V1, 50_000), 1),
    ],
    ids=["no limit", "rounded up", "limit of a parent", "limit of the mounted group"],
)
def test_cores_are_limited_by_the_quota_of_control_groups_of_version_1(
    tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    assert cores_with(tmp_path, IN_V1, files) == cores


def test_this_machine_has_at_least_one_core() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
