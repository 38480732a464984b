"""The promises under faults, in the short form that takes under a minute; and that the table cannot lie."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backends.base import BackendError, DeviceLost, OutOfMemory
from tasks.contract import Arrays
from tests.faults.faulty_backend import Faults, FaultyBackend, Mark, sample_digest
from tests.faults.report import BEGIN, END, Row, percentile, section, table, verdict, with_section
from tests.faults.sample_requests import known_models, leavers, poisons

ROOT = Path(__file__).parents[1]
HOLDS = Row("one", "nobody waits", "≤ 1 s", "0.5 s", True)
FAILS = replace(HOLDS, holds=False)
WHERE = dict.fromkeys(("when", "commit", "cores", "processor", "python", "onnxruntime"), "x")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_promise_that_does_not_depend_on_the_machine_holds_through_real_http(tmp_path: Path) -> None:
    results = tmp_path / "faults.json"
    command = [sys.executable, "-m", "tests.faults", "--short", "--results", str(results)]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    rows = json.loads(results.read_text())["rows"]
    assert [row["promise"] for row in rows if not row["holds"] and not row["timed"]] == [], ended.stderr
    assert ended.returncode == 0
    assert len({row["scenario"] for row in rows}) >= 14
    assert ended.stdout.count("\n| ") == len(rows)


def test_it_lists_what_it_can_measure() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert {"burst", "isolation", "overload", "sigterm"} <= {line.split()[0] for line in ended.stdout.splitlines()}


def test_a_part_is_not_written_into_the_document() -> None:
    command = [sys.executable, "-m", "tests.faults", "--only", "swap", "--write"]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert "only the whole of it" in ended.stderr


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_least_value_that_such_a_share_does_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)

    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)


def test_a_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile([], 0.99))


def test_one_line_that_does_not_hold_is_exit_status_1() -> None:
    assert verdict([HOLDS, HOLDS], short=False) == 0
    assert verdict([HOLDS, FAILS], short=False) == 1
    assert verdict([HOLDS, FAILS], short=True) == 1


def test_only_the_short_form_passes_over_times() -> None:
    late = replace(FAILS, timed=True)

    assert verdict([late], short=True) == 0
    assert verdict([late], short=False) == 1


def test_a_line_that_does_not_hold_stands_out_in_the_table() -> None:
    lines = table([HOLDS, FAILS]).splitlines()

    assert lines[2:] == ["| nobody waits | ≤ 1 s | 0.5 s | yes |", "| nobody waits | ≤ 1 s | 0.5 s | **no** |"]


def test_the_table_takes_the_place_of_the_one_before_it_and_leaves_the_rest() -> None:
    document = f"before\n{BEGIN}\noutdated\n{END}\nafter\n"

    once = with_section(document, section([HOLDS, FAILS], WHERE, seconds=300))

    assert once.startswith(f"before\n{BEGIN}\nMeasured on x")
    assert "1 of 2 lines hold" in once
    assert once.endswith(f"{END}\nafter\n")
    assert "outdated" not in once
    assert with_section(once, "new") == document.replace("outdated", "new")


@pytest.mark.parametrize("document", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_document_without_one_place_for_the_table_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="no place for the table"):
        with_section(document, "new")


class Doubling:
    """A backend that doubles."""

    device = "cpu"

    def run(self, arrays: Arrays) -> Arrays:
        return {"y": arrays["x"] * 2}

    run_exclusive = run

    def release(self) -> None: ...

    def memory_in_use(self) -> int | None: ...

    def memory_free(self) -> int | None: ...


def marked(action: str, *, size: int = 3) -> tuple[FaultyBackend, Arrays]:
    """A backend for which the second of these samples is marked."""
    arrays = {"x": np.arange(size, dtype=np.float32)[:, None]}
    faults = Faults({sample_digest(arrays, 1): Mark(action)})  # type: ignore[arg-type]
    return FaultyBackend(Doubling(), faults, "graph"), arrays


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ("raise", BackendError),
        ("lost", DeviceLost),
        ("out_of_memory", OutOfMemory),
        ("out_of_memory_in_company", OutOfMemory),
    ],
)
def test_a_marked_sample_fails_the_batch_it_is_in_and_no_other(action: str, error: type[BackendError]) -> None:
    backend, arrays = marked(action)

    with pytest.raises(error):
        backend.run(arrays)

    assert backend.run({"x": arrays["x"][2:]})["y"].tolist() == [[4.0]]


def test_a_sample_that_has_room_only_alone_runs_alone() -> None:
    backend, arrays = marked("out_of_memory_in_company")

    assert backend.run({"x": arrays["x"][1:2]})["y"].tolist() == [[2.0]]


def test_a_corrupt_sample_corrupts_only_its_own_outputs() -> None:
    backend, arrays = marked("corrupt")

    outputs = backend.run(arrays)["y"][:, 0].tolist()

    assert outputs[::2] == [0.0, 4.0]
    assert math.isnan(outputs[1])


def test_what_was_run_is_known_by_its_samples() -> None:
    backend, arrays = marked("corrupt")
    backend.run(arrays)
    backend.run({"x": arrays["x"][:1]})

    assert [times for _, times in backend.faults.computed.values()] == [2, 1, 1]
    assert [size for _, _, size in backend.faults.runs] == [3, 1]


def test_requests_differ_by_their_seed_and_poison_comes_in_many_ways() -> None:
    known = known_models(ROOT / "models")

    for model in known.values():
        one, same, other = model.good(1), model.good(1), model.good(2)
        assert one.request == same.request
        assert one.digests == same.digests
        assert set(one.digests).isdisjoint(other.digests)
    kinds = {poison.kind for poison in [*poisons(known), *leavers([known["adult"].good(1)])]}
    assert len(kinds) >= 18
