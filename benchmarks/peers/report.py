"""The results as Markdown and as a plot."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.peers.contenders import OURS

Record = Mapping[str, Any]
Results = Mapping[str, Any]

_TITLES = {
    "clothing": "a JPEG file of {size} pixels → labels",
    "adult": "a row (JSON) → class",
    "imdb": "a text ({size}) → sentiment",
}


def markdown(results: Results) -> str:
    """Return the report: the machine, a table for each model, the settings of each server, and what is missing."""
    parts = [_conditions(results), *(_model_table(results, model) for model in _models(results)), _settings(results)]
    if results["unavailable"]:
        reasons = [
            f"- {_title(results, each['name'])}{_scope(each)}: {each['reason']}" for each in results["unavailable"]
        ]
        parts.append("Not measured:\n\n" + "\n".join(reasons))
    return "\n\n".join(parts)


def _scope(unavailable: Record) -> str:
    return f" with {unavailable['model']}" if unavailable["model"] else ""


def _conditions(results: Results) -> str:
    machine, plan = results["measured"], results["plan"]
    return (
        f"Measured on {machine['when'][:10]} at commit `{machine['commit']}`: servers and client on the same "
        f"{machine['cores']} cores of {machine['processor']}, Python {machine['python']}, ONNX Runtime "
        f"{machine['onnxruntime']}; {results['wrk']} pinned to one core. Medians of {plan['rounds']} interleaved "
        f"rounds of {plan['seconds']:g} s, with up to {plan['repeats']} more for noisy samples; {_noise(results)}"
    )


def _noise(results: Results) -> str:
    loads = [load for record in results["records"] for load in record["loads"]]
    samples = sum(len(load["samples"]) for load in loads)
    noisy = sum(load["noisy"] for load in loads)
    return f"{noisy} of {samples} samples were noisy."


def _model_table(results: Results, model: str) -> str:
    connections = results["plan"]["connections"]
    most = connections[-1]
    title = _TITLES.get(model, "").format(size=results["payloads"].get(model, ""))
    lines = [
        f"**{model}**: {title}. Requests per second by number of connections, the highest in bold; latencies at "
        f"{most} connections.",
        "",
        f"| server | {' | '.join(map(str, connections))} | p50, ms | p99, ms | errors | memory (PSS), MB | start, s |",
        "|---" * (len(connections) + 6) + "|",
    ]
    records = sorted(_records(results, model), key=lambda record: -record["loads"][-1]["per_second"])
    best = [max(record["loads"][i]["per_second"] for record in records) for i in range(len(connections))]
    for record in records:
        last = record["loads"][-1]
        rates = [
            f"**{rate(load['per_second'])}**" if load["per_second"] == top else rate(load["per_second"])
            for load, top in zip(record["loads"], best, strict=True)
        ]
        errors = sum(load["errors"] for load in record["loads"])
        cells = [_title(results, record["name"]), *rates, milliseconds(last["p50_ms"]), milliseconds(last["p99_ms"])]
        lines.append(f"| {' | '.join(cells)} | {errors} | {record['loaded_mb']:.0f} | {record['start_s']:.1f} |")
    lines += [_ratio_line(results, model)] if ratios(results, model) else []
    return "\n".join([*lines, *_engine_lines(results, model)])


def _engine_lines(results: Results, model: str) -> list[str]:
    """Say which share of the bare graph the service reaches. Rows per request and texts are one sample each."""
    engine, records = results["engine"].get(model), _records(results, model)
    ours = [load["per_second"] for record in records if record["name"].startswith(OURS) for load in record["loads"]]
    if not engine or not ours:
        return []
    return [
        "",
        f"The graph alone, on {_device(results)}, reaches {rate(engine['per_second'])} samples/s in batches of "
        f"{engine['batch']}; the service reaches {max(ours) / engine['per_second']:.1%} of it through HTTP.",
    ]


def _device(results: Results) -> str:
    return "all cores" if results["device"] == "cpu" else "the GPU"


def _ratio_line(results: Results, model: str) -> str:
    cells = [f"{ratio:.2f} ×" for ratio in ratios(results, model)]
    return f"| *ours ÷ best peer* | {' | '.join(cells)} | | | | | |"


def ratios(results: Results, model: str) -> list[float]:
    """Return, for each number of connections, our best rate divided by that of the best peer; empty without peers."""
    records = _records(results, model)
    ours = [record for record in records if record["name"].startswith(OURS)]
    peers = [record for record in records if not record["name"].startswith(OURS)]
    if not ours or not peers:
        return []
    return [
        max(record["loads"][i]["per_second"] for record in ours)
        / max(1e-9, *(record["loads"][i]["per_second"] for record in peers))
        for i in range(len(results["plan"]["connections"]))
    ]


def _settings(results: Results) -> str:
    lines = ["| server | version | settings |", "|---|---|---|"]
    lines += [
        f"| {contender['title']} | {contender['version']} | {contender['settings']} |"
        for contender in results["contenders"]
    ]
    return "\n".join(lines)


def rate(value: float) -> str:
    """Format requests per second."""
    return f"{value:,.0f}"


def milliseconds(value: float) -> str:
    """Format a latency."""
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def _models(results: Results) -> list[str]:
    measured = {record["model"] for record in results["records"]}
    return [model for model in results["plan"]["models"] if model in measured]


def _records(results: Results, model: str) -> list[Record]:
    return [record for record in results["records"] if record["model"] == model]


def _title(results: Results, name: str) -> str:
    titles: dict[str, str] = {contender["name"]: contender["title"] for contender in results["contenders"]}
    return titles.get(name, name)


_PLOTTED = 32
"""Connections of the bars: enough to batch, and not so many that only the queue is seen."""
_WIDTH, _LABEL, _BAR, _ROW, _HEAD = 300, 104, 128, 19, 46
_STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
.head { font-weight: 600; font-size: 13px; } .note { fill: #59636e; font-size: 11px; } .label { text-anchor: end; }
.ours { fill: #1a7f37; } .peer { fill: #8c959f; } .strong { font-weight: 600; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; } .note { fill: #9198a1; } .ours { fill: #3fb950; } .peer { fill: #6e7681; }
}
"""


def svg(results: Results) -> str:
    """Return bars of requests per second at 32 connections, a panel for each model, for light and dark pages."""
    models = _models(results)
    connections = _plotted(results["plan"]["connections"])
    rows = max((len(_records(results, model)) for model in models), default=0)
    width, height = _WIDTH * len(models), _HEAD + _ROW * rows + 8
    panels = [_panel(results, model, i * _WIDTH, connections) for i, model in enumerate(models)]
    title = f"Requests per second at {results['plan']['connections'][connections]} connections"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><title>{title}</title><style>{_STYLE}</style>\n' + "\n".join(panels) + "\n</svg>\n"
    )


def _plotted(connections: Sequence[int]) -> int:
    """Return the index of the number of connections that is plotted: 32, or the last."""
    return list(connections).index(_PLOTTED) if _PLOTTED in connections else len(connections) - 1


def _panel(results: Results, model: str, left: int, index: int) -> str:
    records = sorted(_records(results, model), key=lambda record: -record["loads"][index]["per_second"])
    top = max((record["loads"][index]["per_second"] for record in records), default=1.0) or 1.0
    number = results["plan"]["connections"][index]
    lines = [
        f'<text class="head" x="{left + 8}" y="17">{escape(model)}</text>',
        f'<text class="note" x="{left + 8}" y="34">requests/s, {number} connections</text>',
    ]
    for i, record in enumerate(records):
        y, value = _HEAD + _ROW * i, record["loads"][index]["per_second"]
        is_ours = record["name"].startswith(OURS)
        kind, strong = ("ours", " strong") if is_ours else ("peer", "")
        title = escape(_title(results, record["name"]).replace("*", ""))
        length = max(1.0, _BAR * value / top)
        lines += [
            f'<text class="label{strong}" x="{left + _LABEL}" y="{y + 12}">{title}</text>',
            f'<rect class="{kind}" x="{left + _LABEL + 6}" y="{y + 2}" width="{length:.1f}" height="13" rx="2"/>',
            f'<text class="note{strong}" x="{left + _LABEL + 10 + length:.1f}" y="{y + 12}">{rate(value)}</text>',
        ]
    return "\n".join(lines)
