"""The figures of a report on texts, as PNG files."""

from collections.abc import Mapping, Sequence

from training.reporting.plots import BLUE, GREY, ORANGE, new_figure, style_axes, to_png


def by_length(groups: Sequence[tuple[str, float, float, float]]) -> bytes:
    """(name, accuracy, lower bound, upper bound) of each group of lengths."""
    sheet = new_figure(7, 3.6)
    axes = sheet.subplots()
    names, accuracies, lows, highs = zip(*groups, strict=True)
    below = [accuracy - low for accuracy, low in zip(accuracies, lows, strict=True)]
    above = [high - accuracy for accuracy, high in zip(accuracies, highs, strict=True)]
    axes.errorbar(range(len(names)), accuracies, yerr=[below, above], color=BLUE, marker="o", capsize=3)
    axes.set_xticks(range(len(names)), names)
    style_axes(axes, "Accuracy by length, with 95 % intervals", "tokens", "share that is right")
    return to_png(sheet)


def words(shown: Mapping[str, Sequence[tuple[str, float]]]) -> bytes:
    """(word, weight) for each label, side by side."""
    longest = max(map(len, shown.values()))
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    sheet = new_figure(4.2 * columns, rows * (1.0 + 0.24 * longest))
    grid = sheet.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.axis("off")
    for i, (axes, (label, found)) in enumerate(zip(grid.flat, shown.items(), strict=False)):
        names, weights = zip(*found, strict=True)
        axes.barh(range(len(names)), weights, color=(ORANGE, BLUE)[i % 2])
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        style_axes(axes, label, "added to its score, logits", "")
    return to_png(sheet)


def comparison(curves: Mapping[str, Sequence[float]], title: str, across: str, up: str) -> bytes:
    """A line for each thing compared, by epoch; each named where it ends."""
    sheet = new_figure(8, 4.6)
    axes = sheet.subplots()
    for i, (name, values) in enumerate(curves.items()):
        shade = i / max(1, len(curves) - 1)
        colour = ORANGE if i == len(curves) - 1 else (0.75 - 0.6 * shade, 0.8 - 0.45 * shade, 0.9 - 0.25 * shade)
        axes.plot(range(1, len(values) + 1), values, color=colour)
        axes.annotate(f" {name}", (len(values), values[-1]), fontsize=8, va="center", color=GREY)
    axes.margins(x=0.02)
    axes.set_xlim(right=max(len(values) for values in curves.values()) * 1.28)
    style_axes(axes, title, across, up)
    return to_png(sheet)
