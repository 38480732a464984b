"""Plots of a report on texts, as PNG files."""

from collections.abc import Mapping, Sequence

from training.reporting.plots import BLUE, GREY, ORANGE, new_figure, style_axes, to_png


def draw_accuracy_by_length(groups: Sequence[tuple[str, float, float, float]]) -> bytes:
    """Draw (name, accuracy, lower bound, upper bound) of each group of lengths."""
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    names, accuracies, lows, highs = zip(*groups, strict=True)
    # The bound of an accuracy of 0 or 1 may differ from it by a rounding error, in either direction.
    below = [max(0.0, accuracy - low) for accuracy, low in zip(accuracies, lows, strict=True)]
    above = [max(0.0, high - accuracy) for accuracy, high in zip(accuracies, highs, strict=True)]
    axes.errorbar(range(len(names)), accuracies, yerr=[below, above], color=BLUE, marker="o", capsize=3)
    axes.set_xticks(range(len(names)), names)
    style_axes(axes, "Accuracy by length, with 95 % intervals", "tokens", "accuracy")
    return to_png(figure)


def draw_word_weights(weights: Mapping[str, Sequence[tuple[str, float]]]) -> bytes:
    """Draw (word, weight) of each label, side by side."""
    max_words = max(map(len, weights.values()))
    columns = min(3, len(weights))
    rows = -(-len(weights) // columns)
    figure = new_figure(4.2 * columns, rows * (1.0 + 0.24 * max_words))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(weights) :]:
        axes.axis("off")
    for i, (axes, (label, words)) in enumerate(zip(grid.flat, weights.items(), strict=False)):
        names, values = zip(*words, strict=True)
        axes.barh(range(len(names)), values, color=(ORANGE, BLUE)[i % 2])
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        style_axes(axes, label, "contribution to the logit", "")
    return to_png(figure)


def draw_curves(curves: Mapping[str, Sequence[float]], title: str, x_label: str, y_label: str) -> bytes:
    """Draw one line over epochs per series, with its name at the end."""
    figure = new_figure(8, 4.6)
    axes = figure.subplots()
    for i, (name, values) in enumerate(curves.items()):
        shade = i / max(1, len(curves) - 1)
        colour = ORANGE if i == len(curves) - 1 else (0.75 - 0.6 * shade, 0.8 - 0.45 * shade, 0.9 - 0.25 * shade)
        axes.plot(range(1, len(values) + 1), values, color=colour)
        axes.annotate(f" {name}", (len(values), values[-1]), fontsize=8, va="center", color=GREY)
    axes.margins(x=0.02)
    axes.set_xlim(right=max(len(values) for values in curves.values()) * 1.28)
    style_axes(axes, title, x_label, y_label)
    return to_png(figure)
