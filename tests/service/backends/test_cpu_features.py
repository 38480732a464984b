"""Which instructions the processor has."""

from pathlib import Path

import pytest

from service.backends.cpu_features import has_int8_dot_product


@pytest.mark.parametrize(
    ("cpuinfo", "has_it"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_dot_products_of_8_bit_integers_are_recognised_in_what_linux_says(
    tmp_path: Path, cpuinfo: str, has_it: bool
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)

    assert has_int8_dot_product(tmp_path, system="Linux") is has_it


def test_other_systems_are_known_by_their_architecture_or_count_as_without(tmp_path: Path) -> None:
    assert has_int8_dot_product(tmp_path, system="Darwin", machine="arm64")
    assert not has_int8_dot_product(tmp_path, system="Darwin", machine="x86_64")
    assert not has_int8_dot_product(tmp_path, system="Windows")
