"""Draw the dashboard from a run: `python -m tests.monitoring.picture` writes docs/images/dashboard*.png.

A server with the shipped models gets varying load for some minutes: a ramp, an overload with rejections, errors, a
version that is promoted after its evaluation on shadow traffic, and one that is broken. A real Prometheus scrapes it
and answers the queries of the dashboard. matplotlib draws the panels where the dashboard has them, without Grafana.
"""

import argparse
import io
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from PIL import Image

from loadtests.clients import LoadProcess, Reply, ScheduledRequest
from loadtests.server import start_server
from tests.external_tools import find_tool
from tests.monitoring.prometheus_process import Prometheus, Series, now, run_prometheus
from tests.monitoring.queries import ROOT, Query, panels_of, queries_of, read_dashboard, substitute
from tests.monitoring.traffic import Requests, copy_models
from tests.waiting import wait_until

SCRAPE_S, STEP_S, INTERVAL = 2, 4.0, "20s"
MAX_QUEUE = 24
BASE_RATES = {
    "adult": 1.5,
    "bikes": 0.8,
    "clothing": 0.6,
    "faces": 0.4,
    "movielens": 0.6,
    "imdb": 0.3,
    "camvid": 0.1,
    "restore": 0.1,
}
"""Requests per second at the start of the run."""
FLAGS = (
    *("--rescan-seconds", "1", "--shadow", "adult=0.5", "--shadow-requests", "60"),
    *("--max-queue", str(MAX_QUEUE), "--objective-ms", "250"),
)

Answers = dict[str, list[Series]]
"""The series of each query, by panel and expression."""


class Load:
    """The load of a run, as fractions of its duration."""

    ramp_ends, overload, swap, errors, broken = 0.35, (0.5, 0.62), 0.2, 0.7, 0.75

    def __init__(self, requests: Requests, seconds: float, peak: float) -> None:
        self._requests, self._seconds, self._peak = requests, seconds, peak

    def _rate(self, base: float, at_s: float) -> float:
        """A ramp to three times the base, then a slow wave."""
        position = at_s / self._seconds
        return base * (1 + 2 * min(position / self.ramp_ends, 1.0)) * (1 + 0.25 * math.sin(position * 20))

    def schedule(self) -> list[ScheduledRequest]:
        """Return all requests of the run, in the order in which they are sent."""
        make, total = self._requests, self._seconds
        scheduled = [
            request
            for name, base in BASE_RATES.items()
            for request in make.random(name, partial(self._rate, base), 0.0, total)
        ]
        start, end = (fraction * total for fraction in self.overload)
        scheduled += make.random("clothing", lambda _: self._peak, start, end, seed=1)
        for position in (0.3, self.errors, self.errors + 0.1):
            scheduled += make.errors(start_s=position * total, interval_s=0.4)
        scheduled += [make.costly_file(at_s=position * total) for position in (0.25, 0.3, 0.72, 0.74, 0.8)]
        for position in (0.66, 0.68, 0.7):
            scheduled += make.burst("camvid", MAX_QUEUE, at_s=position * total, timeout_ms=400)
        return sorted(scheduled, key=lambda request: request.at_s)


def record(seconds: float, peak: float) -> Answers:
    """Run the server under load and return what Prometheus answers to the dashboard's queries."""
    prometheus_program = find_tool("prometheus")
    if prometheus_program is None:
        raise SystemExit("Prometheus is not installed; `make tools` fetches it.")
    with tempfile.TemporaryDirectory() as temporary:
        models, data = Path(temporary, "models"), Path(temporary, "prometheus")
        models.mkdir()
        data.mkdir()
        requests = Requests(copy_models(models))
        load = Load(requests, seconds, peak)
        scheduled = load.schedule()
        with (
            LoadProcess() as clients,
            start_server(models, *FLAGS, cwd=ROOT, stderr=subprocess.DEVNULL) as (_, port),
            run_prometheus(prometheus_program, data, [port], interval_s=SCRAPE_S) as prometheus,
        ):
            start = now()
            replies = clients.open_loop(port, scheduled)
            _publish_during(load, requests, models, seconds)
            _report(replies)
            return _ask(prometheus, start + 2 * SCRAPE_S, start + seconds)


def _publish_during(load: Load, requests: Requests, models: Path, seconds: float) -> None:
    started = time.monotonic()
    _wait_for(started + load.swap * seconds)
    print(f"published version {requests.publish_same_answers(models, 'adult')} of adult", flush=True)
    _wait_for(started + load.broken * seconds)
    print(f"published version {requests.publish_broken(models, 'faces')} of faces, broken", flush=True)


def _wait_for(at: float) -> None:
    wait_until(lambda: time.monotonic() >= at, timeout_s=3600.0, interval_s=0.2)


def _report(replies: Future[list[Reply]]) -> None:
    statuses = [reply.status for reply in replies.result()]
    print({status: statuses.count(status) for status in sorted(set(statuses))}, flush=True)


def _ask(prometheus: Prometheus, start: float, end: float) -> Answers:
    answers = {}
    for query in queries_of(panels_of(read_dashboard())):
        expression = substitute(query.expression, interval=INTERVAL)
        answers[_key(query)] = (
            prometheus.query(expression) if query.is_instant else prometheus.query_range(expression, start, end, STEP_S)
        )
    return answers


def _key(query: Query) -> str:
    return f"{query.panel}: {query.expression}"


COLUMN_PX, ROW_PX, GAP_PX, DPI = 70, 38, 4, 100
MAX_LEGEND = 9
UPPER_ROWS = {"Overview", "Batching", "Saturation"}
LOWER_ROWS = {"Device", "Models and rollout", "Rejections and errors", "Traffic", "Shadow traffic"}
LIGHT = {
    "page": "#f4f5f5",
    "card": "#ffffff",
    "edge": "#dcdee0",
    "text": "#24292e",
    "dim": "#6a737d",
    "grid": "#eceef0",
}
DARK = {
    "page": "#111217",
    "card": "#181b1f",
    "edge": "#2b2e34",
    "text": "#d8d9da",
    "dim": "#9a9ca3",
    "grid": "#25282d",
}
LINES = (
    *("#3274d9", "#37872d", "#e0a100", "#e0752d", "#8f3bb8", "#0d8f8f", "#c15c8c", "#7a5c3e", "#5f6b7a", "#a3c93a"),
    *("#1f3f8f", "#9fd3a1", "#f2cc0c", "#ff9e6b"),
)
RED = "#e02f44"


def draw(answers: Answers, rows: Collection[str], file: Path, style: Mapping[str, str]) -> None:
    """Draw the panels of some rows of the dashboard, at their places in its grid."""
    panels = list(_panels_in(rows))
    top_row = min(panel["gridPos"]["y"] for panel in panels)
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) - top_row
    width_px, height_px = 24 * COLUMN_PX + 2 * GAP_PX, height * ROW_PX + 2 * GAP_PX
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 7.5, "text.color": style["text"]}):
        figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor=style["page"])
        for panel in panels:
            place = panel["gridPos"]
            left, top = place["x"] * COLUMN_PX + 2 * GAP_PX, (place["y"] - top_row) * ROW_PX + 2 * GAP_PX
            box = (left, top, place["w"] * COLUMN_PX - 2 * GAP_PX, place["h"] * ROW_PX - 2 * GAP_PX)
            if panel["type"] == "row":
                y = 1 - (top + box[3] / 2) / height_px
                figure.text(left / width_px, y, f"▾  {panel['title']}", fontsize=11, weight="bold", va="center")
                continue
            series = [(query, answers.get(_key(query), [])) for query in queries_of([panel])]
            _PanelDrawing(figure, (width_px, height_px), box, style, panel).draw(series)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=DPI, facecolor=style["page"])
    # A palette makes the file a third as large.
    Image.open(content).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


def _panels_in(rows: Collection[str]) -> Iterator[dict[str, Any]]:
    """Return the panels of these rows of the dashboard, with their titles."""
    row = ""
    for panel in read_dashboard()["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        if row in rows:
            yield panel


class _PanelDrawing:
    """One panel: its card, its title, and what is in it."""

    def __init__(
        self,
        figure: Figure,
        size_px: tuple[int, int],
        box_px: tuple[int, int, int, int],
        style: Mapping[str, str],
        panel: Mapping[str, Any],
    ) -> None:
        self._figure, self._size, self._box, self._style, self._panel = figure, size_px, box_px, style, panel
        self._unit = panel["fieldConfig"]["defaults"]["unit"]
        self._defaults = panel["fieldConfig"]["defaults"]

    def draw(self, answers: Sequence[tuple[Query, list[Series]]]) -> None:
        """Draw the panel with the answers to its queries."""
        _, _, width, height = self._box
        card = self._axes(0, 0, width, height)
        card.set(xticks=[], yticks=[], facecolor=self._style["card"])
        for spine in card.spines.values():
            spine.set_color(self._style["edge"])
        card.text(8 / width, 1 - 13 / height, self._panel["title"], fontsize=8.5, weight="bold", va="center")
        found = [(query, series) for query, series in answers if series]
        if not found:
            empty = self._defaults.get("noValue", "No data")
            card.text(0.5, 0.45, empty, fontsize=9, ha="center", color=self._style["dim"])
            return
        getattr(self, f"_draw_{self._panel['type']}")(found)

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return axes at a place in the panel, in pixels."""
        total_width, total_height = self._size
        x, y = self._box[0] + left, self._box[1] + top
        place = (x / total_width, 1 - (y + height) / total_height, width / total_width, height / total_height)
        return self._figure.add_axes(place)

    def _draw_stat(self, found: Sequence[tuple[Query, list[Series]]]) -> None:
        _, _, width, height = self._box
        (series, *_) = found[0][1]
        values = [value for value in series.values if not math.isnan(value)]
        if not values:
            return
        color = self._threshold_color(values[-1])
        axes = self._axes(0, height * 0.6, width, height * 0.4)
        axes.axis("off")
        axes.fill_between(series.times, series.values, min(0.0, *values), color=color, alpha=0.25, linewidth=0)
        axes.margins(x=0)
        card = self._axes(0, 0, width, height)
        card.axis("off")
        text = format_value(values[-1], self._unit, self._defaults.get("decimals"))
        card.text(0.5, 0.48, text, fontsize=22, weight="bold", ha="center", va="center", color=color)

    def _threshold_color(self, value: float) -> str:
        names = {"green": "#2c9c3e", "orange": "#e0752d", "red": RED, "text": self._style["text"]}
        color = "text"
        for step in self._defaults["thresholds"]["steps"]:
            if step["value"] is None or value >= step["value"]:
                color = step["color"]
        return names[color]

    def _draw_timeseries(self, found: Sequence[tuple[Query, list[Series]]]) -> None:
        lines = [(legend_of(query, one), one) for query, series in found for one in series]
        dashed = {override["matcher"]["options"] for override in self._panel["fieldConfig"]["overrides"]}
        lines.sort(key=lambda line: (line[0] in dashed, line[0]))
        axes = self._plot_axes(len(lines))
        stacked = self._defaults["custom"]["stacking"]["mode"] == "normal"
        handles = self._stack(axes, lines) if stacked else self._lines(axes, lines, dashed)
        bottom, top = axes.get_ylim()
        low = self._defaults.get("min", bottom)
        high = min(top, self._defaults.get("max", top) * 1.02)
        axes.set_ylim(low, high if high > low + 1e-12 and high != bottom else 1)
        if not any(value > 0 for _, one in lines for value in one.values):
            axes.set_ylim(low, 1)
        self._legend(handles)

    def _plot_axes(self, lines: int) -> Axes:
        _, _, width, height = self._box
        rows = -(-min(lines, MAX_LEGEND) // self._legend_columns())
        left, top, bottom = 62, 30, 24 + 15 * rows + 8
        axes = self._axes(left, top, width - left - 14, height - top - bottom)
        axes.set_facecolor(self._style["card"])
        axes.grid(visible=True, color=self._style["grid"], linewidth=0.8)
        axes.tick_params(colors=self._style["dim"], length=0, labelsize=7)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.yaxis.set_major_locator(_BinaryLocator() if self._unit == "bytes" else MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, self._unit)))
        axes.set_xlim(0, _SPAN[1] - _SPAN[0])
        axes.xaxis.set_major_locator(MultipleLocator(60 if _SPAN[1] - _SPAN[0] > 120 else 20))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{int(value // 60)}:{int(value % 60):02d}"))
        return axes

    def _legend_columns(self) -> int:
        return max(1, self._box[2] // 170)

    def _lines(self, axes: Axes, lines: Sequence[tuple[str, Series]], dashed: set[str]) -> list[tuple[str, str, str]]:
        handles = []
        for (name, series), color in zip(lines, _cycle(LINES), strict=False):
            is_limit = name in dashed
            color, line = (RED, "--") if is_limit else (color, "-")
            times, values = with_gaps(series)
            axes.plot(times, values, color=color, linestyle=line, linewidth=1.1)
            if not is_limit and len(lines) <= 3:
                axes.fill_between(times, values, 0, color=color, alpha=0.07, linewidth=0)
            handles.append((name, color, line))
        return handles

    def _stack(self, axes: Axes, lines: Sequence[tuple[str, Series]]) -> list[tuple[str, str, str]]:
        times = sorted({at for _, series in lines for at in series.times})
        rows = []
        for _, series in lines:
            known = dict(zip(series.times, series.values, strict=True))
            rows.append([0.0 if math.isnan(known.get(at, 0.0)) else known.get(at, 0.0) for at in times])
        colors = [color for _, color in zip(lines, _cycle(LINES), strict=False)]
        axes.stackplot([at - _SPAN[0] for at in times], rows, colors=colors, alpha=0.65, linewidth=0)
        return [(name, color, "-") for (name, _), color in zip(lines, colors, strict=True)]

    def _legend(self, handles: Sequence[tuple[str, str, str]]) -> None:
        _, _, width, height = self._box
        axes = self._axes(0, 0, width, height)
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        shown = list(handles[:MAX_LEGEND])
        if len(handles) > MAX_LEGEND:
            shown[-1] = (f"and {len(handles) - MAX_LEGEND + 1} more", self._style["dim"], "-")
        columns = self._legend_columns()
        rows = -(-len(shown) // columns)
        step = (width - 20) / columns
        for i, (name, color, line) in enumerate(shown):
            x, y = 14 + (i % columns) * step, height - 10 - 15 * (rows - 1 - i // columns)
            axes.plot([x, x + 12], [y, y], color=color, linewidth=2.2, linestyle=line)
            room = int(step / 6.0) - 3
            axes.text(x + 17, y, name if len(name) <= room else name[: room - 1] + "…", fontsize=7.5, va="center")

    def _draw_heatmap(self, found: Sequence[tuple[Query, list[Series]]]) -> None:
        buckets = sorted(found[0][1], key=lambda series: float(series.labels["le"].replace("+Inf", "inf")))
        times = sorted({at for series in buckets for at in series.times})
        cumulated = [[dict(zip(s.times, s.values, strict=True)).get(at, 0.0) for at in times] for s in buckets]
        counts = [cumulated[0], *([b - a for a, b in zip(low, high, strict=True)] for low, high in pairwise(cumulated))]
        axes = self._plot_axes(0)
        axes.grid(visible=False)
        colors = LinearSegmentedColormap.from_list("blues", [self._style["card"], "#7fb2f0", "#1f60c4", "#0b2a66"])
        edges = [at - _SPAN[0] - STEP_S / 2 for at in times] + [times[-1] - _SPAN[0] + STEP_S / 2]
        image = axes.pcolormesh(edges, range(len(counts) + 1), counts, cmap=colors, norm=PowerNorm(0.5))
        axes.set_yticks(
            [i + 0.5 for i in range(len(counts))], [series.labels["le"].replace(".0", "") for series in buckets]
        )
        bar = self._figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
        bar.ax.tick_params(colors=self._style["dim"], labelsize=6.5, length=0)
        bar.outline.set_visible(False)

    def _draw_table(self, found: Sequence[tuple[Query, list[Series]]]) -> None:
        _, _, width, height = self._box
        (organize,) = self._panel["transformations"]
        order = sorted(organize["options"]["indexByName"], key=organize["options"]["indexByName"].__getitem__)
        titles = [organize["options"]["renameByName"].get(name, name) for name in order]
        rows = [
            [f"{one.values[-1]:g}" if name == "Value" else one.labels.get(name, "") for name in order]
            for one in found[0][1]
        ]
        rows.sort()
        lengths = [max(min(len(text), 24) for text in column) + 3 for column in zip(titles, *rows, strict=True)]
        axes = self._axes(0, 0, width, height)
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        scale = (width - 24) / sum(lengths)
        for i, cells in enumerate([titles, *rows]):
            x, y = 12.0, 40 + 22.0 * i
            for text, length in zip(cells, lengths, strict=True):
                color, weight = (self._style["dim"], "bold") if i == 0 else (self._style["text"], "normal")
                axes.text(x, y, text if len(text) <= 24 else text[:23] + "…", color=color, weight=weight, va="center")
                x += length * scale
            axes.plot([10, width - 10], [y + 11, y + 11], color=self._style["grid"], linewidth=0.8)


_SPAN = [0.0, 0.0]
"""The first and the last time of the run."""


class _BinaryLocator(MaxNLocator):
    """Chooses ticks at round numbers of KiB, MiB or GiB."""

    def tick_values(self, low: float, high: float) -> list[float]:
        """Return the places of the ticks between two values."""
        unit = 2.0 ** (10 * max(0, int(math.log2(max(high, 1)) // 10)))
        return [tick * unit for tick in MaxNLocator(5).tick_values(low / unit, high / unit)]


def with_gaps(series: Series) -> tuple[list[float], list[float]]:
    """Return times from the start and values, with NaN where values are missing, so that no line is drawn there."""
    times: list[float] = []
    values: list[float] = []
    for at, value in zip(series.times, series.values, strict=True):
        if times and at - _SPAN[0] - times[-1] > 1.5 * STEP_S:
            times.append(times[-1] + STEP_S)
            values.append(math.nan)
        times.append(at - _SPAN[0])
        values.append(value)
    return times, values


def _cycle(colors: Sequence[str]) -> Iterator[str]:
    while True:
        yield from colors


def legend_of(query: Query, series: Series) -> str:
    """Return the name of a series, from the template of its query."""
    name = query.legend
    for label, value in series.labels.items():
        name = name.replace("{{" + label + "}}", value)
    return name


def format_value(value: float, unit: str, decimals: int | None = None) -> str:
    """Format a value with one of Grafana's units that the dashboard uses."""
    scales: dict[str, Callable[[float], str]] = {
        "percentunit": lambda v: f"{v * 100:.{2 if decimals is None else decimals}f}".rstrip("0").rstrip(".") + " %",
        "s": lambda v: _scale(v, ((1, "s"), (1e-3, "ms"), (1e-6, "µs")), zero="0 s"),
        "bytes": lambda v: _scale(v, ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")), zero="0 B"),
        "Bps": lambda v: _scale(v, ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1, "B/s")), zero="0 B/s"),
        "reqps": lambda v: f"{v:.3g} req/s",
        "ops": lambda v: f"{v:.3g} /s",
    }
    return scales[unit](value) if unit in scales else f"{value:.3g}"


def _scale(value: float, units: Sequence[tuple[float, str]], *, zero: str) -> str:
    for size, name in units:
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return zero


def main(arguments: Sequence[str]) -> int:
    """Record a run, or read the answers of one, and draw it."""
    parser = argparse.ArgumentParser(prog="python -m tests.monitoring.picture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="duration of the run (default: %(default)s)")
    parser.add_argument(
        "--peak", type=float, default=40.0, help="requests per second of the overload (default: %(default)s)"
    )
    parser.add_argument("--answers", type=Path, help="file for Prometheus' answers; if it exists, there is no run")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "images", help="where the pictures go")
    options = parser.parse_args(arguments)
    if options.answers and options.answers.exists():
        stored = json.loads(options.answers.read_text("utf-8"))
        answers = {key: [Series(**series) for series in of_query] for key, of_query in stored.items()}
    else:
        answers = record(options.seconds, options.peak)
        if options.answers:
            plain = {key: [asdict(series) for series in of_query] for key, of_query in answers.items()}
            options.answers.write_text(json.dumps(plain), "utf-8")
    times = [at for of_query in answers.values() for series in of_query for at in series.times]
    _SPAN[:] = [min(times), max(times)]
    draw(answers, UPPER_ROWS, options.folder / "dashboard.png", LIGHT)
    draw(answers, UPPER_ROWS, options.folder / "dashboard-dark.png", DARK)
    draw(answers, LOWER_ROWS, options.folder / "dashboard-details.png", LIGHT)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
