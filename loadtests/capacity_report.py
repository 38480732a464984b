"""The report of `loadtests.capacity`: a table, curves of goodput over offered load, a section of docs/capacity.md."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loadtests.document import with_section

HEADROOM = 0.7
"""The fraction of its capacity at which a pod is planned to run."""
_HEADER = (
    "| traffic | p99 within | requests/s | between | p50, ms | p99, ms | goodput at twice that ÷ peak |\n"
    "|---|---|---|---|---|---|---|"
)
_BAR = 40


def table(results: Mapping[str, Any], *, header: bool = True) -> str:
    """Return the results as Markdown."""
    lines = [_HEADER] if header else []
    for model in results["models"]:
        upper = "–" if model["upper"] is None else number(model["upper"])
        cells = [
            model["name"],
            f"{model['objective_ms']:g} ms",
            f"≥ {number(model['per_second'])} (void above: {model['limit']})"
            if model["limit"]
            else number(model["per_second"]),
            f"{number(model['per_second'])} – {upper}",
            *("–" if model[key] is None else f"{model[key]:.0f}" for key in ("p50_ms", "p99_ms")),
            _overload(model),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Format a rate with as many digits as it deserves."""
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def _overload(model: Mapping[str, Any]) -> str:
    if model["goodput_at_twice"] is None or not model["peak_goodput"]:
        return "–"
    return f"{model['goodput_at_twice'] / model['peak_goodput']:.2f}"


def text_plot(results: Mapping[str, Any]) -> str:
    """Return goodput over offered load as bars of text."""
    lines = []
    for model in results["models"]:
        peak = model["peak_goodput"] or 1.0
        lines.append(f"{model['name']}: offered/s, answered in time/s")
        for point in model["curve"]:
            bar = "#" * min(_BAR, round(_BAR * point["goodput_per_s"] / peak))
            lines.append(f"  {number(point['offered_per_s']):>8} {number(point['goodput_per_s']):>8} {bar}")
    return "\n".join(lines)


def draw(results: Mapping[str, Any], file: Path) -> str:
    """Draw the curves to a PNG or SVG file; without matplotlib, return them as text."""
    if find_spec("matplotlib") is None:
        return (
            text_plot(results)
            + "\n(No plot was drawn: matplotlib is not installed; it comes with requirements/train.txt.)"
        )
    from matplotlib.figure import Figure

    models = [model for model in results["models"] if model["curve"] and model["per_second"]]
    columns = min(3, max(1, len(models)))
    rows = max(1, -(-len(models) // columns))
    figure = Figure(figsize=(3.6 * columns, 2.8 * rows), layout="constrained", dpi=120)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, model in zip(axes, models, strict=False):
        _draw_model(axis, model)
    for axis in axes[len(models) :]:
        axis.set_axis_off()
    figure.supxlabel("offered, requests/s", fontsize=9)
    figure.supylabel("answered within the objective, requests/s", fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return f"Plot: {file}"


def _draw_model(axis: Any, model: Mapping[str, Any]) -> None:
    points: Sequence[Mapping[str, Any]] = model["curve"]
    limit = 1.05 * max(point["offered_per_s"] for point in points)
    axis.plot([0, limit], [0, limit], color="0.8", linewidth=1)
    offered, goodput = ([point[key] for point in points] for key in ("offered_per_s", "goodput_per_s"))
    axis.plot(offered, goodput, "o", color="tab:blue", markersize=3.5, alpha=0.8)
    axis.axvline(model["per_second"], color="tab:red", linewidth=1, linestyle="--")
    axis.set_title(f"{model['name']}: {number(model['per_second'])}/s, p99 ≤ {model['objective_ms']:g} ms", fontsize=9)
    axis.set_xlim(0, limit)
    axis.set_ylim(0, 1.25 * max(goodput) or 1.0)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def section(results: Mapping[str, Any]) -> str:
    """Return the generated part of the document."""
    machine = results["measured"]
    busy = ""
    if machine.get("load") is not None and machine["load"] > 2 * machine["cores"]:
        busy = f" The load average of the machine was {machine['load']:g}: take the rates as lower bounds."
    lines = [
        f"Measured on {machine['when'][:10]} at commit `{machine['commit']}`: server and client on the same "
        f"{machine['cores']} cores of {machine['processor']}, Python {machine['python']}, ONNX Runtime "
        f"{machine['onnxruntime']}; trials of at least {results['seconds']:g} s, up to {results['repeats']} at each "
        f"rate.{busy}",
        "",
        table(results),
        "",
        f"At {HEADROOM:.0%} of its capacity, for 100 requests/s of one model:",
        "",
        "| traffic | a pod is planned for, requests/s | pods for 100 requests/s |",
        "|---|---|---|",
    ]
    lines += [
        f"| {model['name']} | {number(HEADROOM * model['per_second'])} | {pods(100, model['per_second'])} |"
        for model in results["models"]
        if model["per_second"]
    ]
    return "\n".join(lines)


def pods(rate: float, capacity: float, *, headroom: float = HEADROOM) -> int:
    """Return how many pods a rate needs, each at `headroom` of its capacity. Raises ValueError without capacity."""
    if capacity <= 0:
        raise ValueError("A pod without capacity cannot be counted on: no rate kept the objective.")
    return max(1, -int(-rate // (headroom * capacity)))


def write_document(document: Path, results: Mapping[str, Any]) -> None:
    """Write the section into the document."""
    document.write_text(with_section(document.read_text("utf-8"), "capacity", section(results)), "utf-8")
