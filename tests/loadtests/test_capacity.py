"""The capacity command against a real server, and its report."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.capacity_report import draw, pods, section, table, text_plot, write_document
from loadtests.document import with_section

ROOT = Path(__file__).parents[2]


def point(offered: float, goodput: float) -> dict[str, float]:
    return {"offered_per_s": offered, "goodput_per_s": goodput}


MODEL = {
    "name": "clothing",
    "objective_ms": 250.0,
    "per_second": 120.0,
    "upper": 126.0,
    "p50_ms": 12.4,
    "p99_ms": 180.2,
    "peak_goodput": 130.0,
    "goodput_at_twice": 124.0,
    "limit": "",
    "curve": [point(60, 60), point(120, 120), point(240, 124)],
}
MACHINE = {"when": "2026-01-02T", "commit": "abc", "cores": 2, "processor": "P", "python": "3", "onnxruntime": "1"}
RESULTS: dict[str, Any] = {"measured": MACHINE, "seconds": 6.0, "repeats": 3, "models": [MODEL]}


@pytest.mark.slow
def test_the_command_measures_a_running_server(url: str, tmp_path: Path) -> None:
    results, plot = tmp_path / "capacity.json", tmp_path / "capacity.png"
    quick = ["--seconds", "0.5", "--max-seconds", "1", "--repeats", "1", "--tolerance", "1", "--p99-ms", "5000"]
    command = [sys.executable, "-m", "loadtests.capacity", "--url", url, "--only", "tabular", *quick]

    ended = subprocess.run(
        [*command, "--results", str(results), "--plot", str(plot), "--connections", "64"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    # 1 says that the client was the limit, which may be so on a machine that does much else.
    assert ended.returncode in (0, 1), ended.stderr
    (model,) = json.loads(results.read_text("utf-8"))["models"]
    assert model["name"] == "tabular"
    assert model["trials"] >= 1
    assert "| tabular | 5000 ms |" in ended.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_server_that_cannot_be_reached_ends_the_command_with_a_sentence() -> None:
    command = [sys.executable, "-m", "loadtests.capacity", "--url", "http://127.0.0.1:9"]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)

    assert ended.returncode == 2
    assert "cannot be reached" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_table_says_rate_interval_and_behaviour_under_overload() -> None:
    assert table(RESULTS).splitlines()[2] == "| clothing | 250 ms | 120 | 120 – 126 | 12 | 180 | 0.95 |"


def test_a_figure_that_the_client_limited_is_a_lower_bound() -> None:
    limited = MODEL | {"limit": "at 240/s the client used 90% of a core", "upper": None}

    line = table(RESULTS | {"models": [limited]}).splitlines()[2]

    assert "≥ 120 (void above: at 240/s the client used 90% of a core)" in line


def test_a_model_without_a_rate_that_holds_has_no_figures_and_no_pods() -> None:
    nothing = MODEL | {"per_second": 0.0, "p50_ms": None, "p99_ms": None, "goodput_at_twice": None, "curve": []}

    text = section(RESULTS | {"models": [nothing]})

    assert "| clothing | 250 ms | 0.0 | 0.0 – 126 | – | – | – |" in text
    assert text.count("clothing") == 1


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_drawn_as_picture(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"capacity.{suffix}"

    message = draw(RESULTS, file)

    assert str(file) in message
    assert file.stat().st_size > 1000


def test_the_text_plot_has_a_bar_for_each_rate() -> None:
    lines = text_plot(RESULTS).splitlines()

    assert [line.count("#") for line in lines] == [0, 18, 37, 38]


@pytest.mark.parametrize(("rate", "capacity", "expected"), [(100, 120, 2), (84, 120, 1), (0, 120, 1), (1000, 2.5, 572)])
def test_pods_run_below_their_capacity(rate: float, capacity: float, expected: int) -> None:
    assert pods(rate, capacity) == expected


def test_pods_without_capacity_cannot_be_counted_on() -> None:
    with pytest.raises(ValueError, match="no rate kept the objective"):
        pods(100, 0)


def test_the_section_replaces_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "capacity.md"
    document.write_text("before\n<!-- capacity: begin -->\nold\n<!-- capacity: end -->\nafter\n")

    write_document(document, RESULTS)

    text = document.read_text("utf-8")
    assert text.startswith("before\n<!-- capacity: begin -->\nMeasured on 2026-01-02")
    assert text.endswith("<!-- capacity: end -->\nafter\n")
    assert "old" not in text


def test_a_document_without_a_place_for_the_section_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the table"):
        with_section("nothing", "capacity", "new")


def test_the_document_shows_the_stored_results() -> None:
    results = json.loads((ROOT / "loadtests/results/capacity.json").read_text("utf-8"))
    document = (ROOT / "docs/capacity.md").read_text("utf-8")

    assert with_section(document, "capacity", section(results)) == document
    assert (ROOT / "docs/images/capacity.png").exists()
