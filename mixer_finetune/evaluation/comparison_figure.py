"""The picture of a comparison: the metric of each run with its interval, and the classes on which they differ."""

from __future__ import annotations

from matplotlib.figure import Figure

from mixer_finetune.evaluation.comparison import Comparison
from mixer_finetune.evaluation.figure_text import figure_texts
from mixer_finetune.evaluation.results import metric_name

_MOST_CLASSES = 20


def comparison_figure(comparison: Comparison) -> Figure:
    """Left the first metric of each run with its 95% interval; right the classes on which two runs differ most.

    Of more than two runs the right side has a mark for each run.
    """
    classes = [each for each in comparison.classes if each.spread > 0][:_MOST_CLASSES][::-1]
    height = max(2.4, 0.35 * len(comparison.runs) + 1.2, 0.24 * len(classes) + 1.2)
    figure = Figure(figsize=(11, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    name = next(iter(comparison.runs[0].metrics))
    letters = [each.letter for each in comparison.runs]
    for place, each in enumerate(reversed(comparison.runs)):
        value = each.metrics[name]
        low, high = each.measured[0].get(name, (value, value))
        left.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", capsize=4, color="#1f77b4")
    left.set_yticks(range(len(letters)), letters[::-1])
    left.set(xlabel=f"{metric_name(name)}, 95% interval", ylim=(-0.6, len(letters) - 0.4))
    texts = figure_texts([each.name for each in classes])
    if len(letters) == 2:
        differences = [100 * (each.right[1] - each.right[0]) / each.images for each in classes]
        colours = ["#1f77b4" if value > 0 else "#d2691e" for value in differences]
        right.barh(range(len(classes)), differences, color=colours)
        right.axvline(0, color="#808080", linewidth=0.8)
        right.set(xlabel=f"recall of {letters[1]} less that of {letters[0]}, points")
    else:
        for i, letter in enumerate(letters):
            recalls = [each.right[i] / each.images for each in classes]
            right.plot(recalls, range(len(classes)), "o", label=letter, markersize=5)
        right.set(xlabel="recall")
        if classes:
            right.legend(fontsize="small")
    right.set_yticks(range(len(classes)), texts.texts, fontfamily=texts.fonts, fontsize=8)
    right.set_title("Classes that differ most" if classes else "All classes are equal")
    for axis in (left, right):
        axis.grid(alpha=0.3, axis="x")
    return figure
