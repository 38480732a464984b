"""The soak: its regression, and its short form for real."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.document import with_section
from tests.faults.soak import growth, section

ROOT = Path(__file__).parents[2]


@given(st.floats(-5, 5), st.floats(0, 1000), st.integers(8, 200))
def test_growth_is_the_slope_of_what_grows_steadily(per_second: float, start: float, count: int) -> None:
    grown = growth([(i, start + per_second * i) for i in range(count)])

    assert grown.per_hour == pytest.approx(per_second * 3600, rel=1e-6, abs=2e-3)
    assert grown.total == pytest.approx(per_second * (count - 1), rel=1e-6, abs=2e-3)


def test_noise_is_no_growth() -> None:
    rng = random.Random(0)

    grown = growth([(i * 5.0, 600 + rng.gauss(0, 10)) for i in range(200)])

    assert abs(grown.total) < 10


def test_what_stays_the_same_has_no_growth() -> None:
    grown = growth([(i, 29.0) for i in range(20)])

    assert (grown.total, grown.margin, grown.first, grown.last) == (0, 0, 29, 29)


def test_a_leak_shows_through_noise() -> None:
    rng = random.Random(0)

    grown = growth([(i * 5.0, 600 + 0.05 * i * 5 + rng.gauss(0, 10)) for i in range(200)])

    assert grown.total == pytest.approx(50, rel=0.2)
    assert grown.last - grown.first > 20


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="too few to see a trend"):
        growth([(i, 1.0) for i in range(7)])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_short_soak_loses_nothing_through_swaps_faults_hang_ups_and_a_drain(tmp_path: Path) -> None:
    results = tmp_path / "soak.json"
    command = [sys.executable, "-m", "tests.faults.soak", "--seconds", "24", "--rate", "6", "--results", str(results)]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=380)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = json.loads(results.read_text("utf-8"))
    assert figures["problems"] == []
    assert figures["lost"] == 0
    assert figures["exit_status"] == 0
    assert figures["versions"] == {"adult": ["1", "2"], "clothing": ["1", "2"]}
    assert all(count > 0 for count in figures["requests"].values())


def test_the_document_shows_the_stored_results() -> None:
    results = json.loads((ROOT / "loadtests/results/soak.json").read_text("utf-8"))
    document = (ROOT / "docs/load-testing.md").read_text("utf-8")

    assert with_section(document, "soak", section(results)) == document
