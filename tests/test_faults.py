"""The short form of the fault harness, and the harness itself: its report cannot claim what was not measured."""

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
from service.backends.fake import FakeBackend
from tasks.contract import Arrays
from tests.faults.faulty_backend import Faults, Mark, sample_digest
from tests.faults.report import (
    BEGIN,
    END,
    Row,
    exit_status,
    percentile,
    section,
    section_from_results,
    table,
    with_section,
)
from tests.faults.sample_requests import disconnecting_requests, faulty_requests, known_models
from tests.faults.scenario import ScenarioContext

ROOT = Path(__file__).parents[1]
HOLDS = Row("overload", "requests are answered", "≤ 1 s", "0.5 s", True)
FAILS = replace(HOLDS, holds=False)
MACHINE = dict.fromkeys(("when", "commit", "cores", "processor", "python", "onnxruntime"), "x")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_guarantee_that_does_not_depend_on_the_machine_holds_over_http(tmp_path: Path) -> None:
    results = tmp_path / "faults.json"
    command = [sys.executable, "-m", "tests.faults", "--short", "--results", str(results)]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert results.exists(), ended.stderr
    rows = json.loads(results.read_text())["rows"]
    assert [row["guarantee"] for row in rows if not row["holds"] and not row["timed"]] == [], ended.stderr
    assert ended.returncode == 0
    assert len({row["scenario"] for row in rows}) >= 14
    assert ended.stdout.count("\n| ") == len(rows)


def test_the_harness_lists_its_scenarios() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert {"burst", "isolation", "overload", "sigterm"} <= {line.split()[0] for line in ended.stdout.splitlines()}


def test_a_partial_run_is_not_written_into_the_document() -> None:
    command = [sys.executable, "-m", "tests.faults", "--only", "version_swap", "--write"]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert "only a full run" in ended.stderr


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_percentile_is_the_smallest_value_not_exceeded_by_the_fraction(values: list[float], fraction: float) -> None:
    result = percentile(values, fraction)

    assert result in values
    assert sum(value <= result for value in values) >= fraction * len(values) - 1e-9
    assert sum(value < result for value in values) < fraction * len(values)


def test_percentile_of_no_values_is_nan() -> None:
    assert math.isnan(percentile([], 0.99))


def test_exit_status_is_1_if_one_row_does_not_hold() -> None:
    assert exit_status([HOLDS, HOLDS], short=False) == 0
    assert exit_status([HOLDS, FAILS], short=False) == 1
    assert exit_status([HOLDS, FAILS], short=True) == 1


def test_only_the_short_form_ignores_timed_rows() -> None:
    late = replace(FAILS, timed=True)

    assert exit_status([late], short=True) == 0
    assert exit_status([late], short=False) == 1


def test_the_table_highlights_a_row_that_does_not_hold() -> None:
    lines = table([HOLDS, FAILS]).splitlines()

    assert lines[2:] == [
        "| requests are answered | ≤ 1 s | 0.5 s | yes |",
        "| requests are answered | ≤ 1 s | 0.5 s | **no** |",
    ]


def test_the_table_replaces_the_old_one_and_nothing_else() -> None:
    document = f"before\n{BEGIN}\noutdated\n{END}\nafter\n"

    once = with_section(document, section([HOLDS, FAILS], MACHINE, seconds=300))

    assert once.startswith(f"before\n{BEGIN}\nMeasured on x")
    assert "1 of 2 rows hold" in once
    assert once.endswith(f"{END}\nafter\n")
    assert "outdated" not in once
    assert with_section(once, "new") == document.replace("outdated", "new")


def test_the_document_shows_the_stored_results() -> None:
    results = json.loads((ROOT / "tests/faults/results.json").read_text("utf-8"))
    document = (ROOT / "docs/reliability.md").read_text("utf-8")

    assert with_section(document, section_from_results(results)) == document


@pytest.mark.parametrize("document", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_document_without_exactly_one_place_for_the_table_is_rejected(document: str) -> None:
    with pytest.raises(ValueError, match="no place for the table"):
        with_section(document, "new")


def marked(action: str, *, size: int = 3) -> tuple[FakeBackend, Arrays]:
    """Return a backend and samples of which the second is marked."""
    arrays = {"x": np.arange(size, dtype=np.float32)[:, None]}
    faults = Faults({sample_digest(arrays, 1): Mark(action)})  # type: ignore[arg-type]
    return FakeBackend(lambda x: {"y": x["x"] * 2}, faults=[faults.of_graph("graph")]), arrays


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ("raise", BackendError),
        ("lost", DeviceLost),
        ("out_of_memory", OutOfMemory),
        ("out_of_memory_in_batch", OutOfMemory),
    ],
)
def test_a_marked_sample_fails_its_own_batch_and_no_other(action: str, error: type[BackendError]) -> None:
    backend, arrays = marked(action)

    with pytest.raises(error):
        backend.run(arrays)

    assert backend.run({"x": arrays["x"][2:]})["y"].tolist() == [[4.0]]


def test_a_sample_that_fits_only_alone_runs_alone() -> None:
    backend, arrays = marked("out_of_memory_in_batch")

    assert backend.run({"x": arrays["x"][1:2]})["y"].tolist() == [[2.0]]


def test_a_corrupt_sample_corrupts_only_its_own_outputs() -> None:
    backend, arrays = marked("corrupt")

    outputs = backend.run(arrays)["y"][:, 0].tolist()

    assert outputs[::2] == [0.0, 4.0]
    assert math.isnan(outputs[1])


def test_the_backend_records_what_it_has_run() -> None:
    arrays, faults = {"x": np.arange(3, dtype=np.float32)[:, None]}, Faults()
    backend = FakeBackend(lambda x: {"y": x["x"] * 2}, faults=[faults.of_graph("graph")])
    backend.run(arrays)
    backend.run({"x": arrays["x"][:1]})

    assert [count for _, count in faults.computed.values()] == [2, 1, 1]
    assert [size for _, _, size in faults.runs] == [3, 1]


def test_a_scenario_gets_copies_of_models_as_version_1_whichever_version_was_shipped() -> None:
    known = known_models(ROOT / "models")

    with ScenarioContext(ROOT / "models", known).copies(*known) as models:
        copies = known_models(models)
        graphs = {name: model.graph for name, model in copies.items()}

    assert {model.manifest.version for model in known.values()} != {"1"}
    assert {model.manifest.version for model in copies.values()} == {"1"}
    assert graphs == {name: model.graph for name, model in known.items()}


def test_requests_differ_by_seed_and_faulty_ones_come_in_many_kinds() -> None:
    known = known_models(ROOT / "models")

    for model in known.values():
        request, same, other = model.valid_request(1), model.valid_request(1), model.valid_request(2)
        assert request.request == same.request
        assert request.digests == same.digests
        assert set(request.digests).isdisjoint(other.digests)
    faulty = [*faulty_requests(known), *disconnecting_requests([known["adult"].valid_request(1)])]
    kinds = {request.kind for request in faulty}
    assert len(kinds) >= 18
