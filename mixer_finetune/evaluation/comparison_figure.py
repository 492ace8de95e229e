"""The picture of a comparison: the metric of each run with its interval, and the classes on which they differ."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixer_finetune.evaluation.comparison import ClassDifference, Comparison
from mixer_finetune.evaluation.figure_text import figure_texts
from mixer_finetune.evaluation.figures import _svg
from mixer_finetune.evaluation.results import metric_name

_MOST_CLASSES = 20
_BETTER, _WORSE = "#1f77b4", "#d2691e"


def comparison_figure(comparison: Comparison) -> Figure:
    """Left the first metric of each run with its 95% interval; right the classes on which the runs differ most."""
    figure = Figure(figsize=(11, max(_heights(comparison))), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_runs(left, comparison)
    _draw_classes(right, comparison)
    return figure


def comparison_svgs(comparison: Comparison) -> list[str]:
    """The two parts, one SVG each."""
    pictures = []
    parts = zip(("runs", "classes"), (_draw_runs, _draw_classes), _heights(comparison), strict=True)
    for name, draw, height in parts:
        figure = Figure(figsize=(5.2, height), layout="constrained")
        draw(figure.subplots(), comparison)
        pictures.append(_svg(figure, name))
    return pictures


def _heights(comparison: Comparison) -> tuple[float, float]:
    """Of the two parts, in inches."""
    return 0.35 * len(comparison.runs) + 1.3, 0.24 * max(len(_shown(comparison)), 3) + 1.3


def _shown(comparison: Comparison) -> list[ClassDifference]:
    return [each for each in comparison.classes if each.spread > 0][:_MOST_CLASSES][::-1]


def _draw_runs(axis: Axes, comparison: Comparison) -> None:
    name = next(iter(comparison.runs[0].metrics))
    letters = [each.letter for each in comparison.runs]
    for place, each in enumerate(reversed(comparison.runs)):
        value = each.metrics[name]
        low, high = each.measured[0].get(name, (value, value))
        # A bootstrap's interval may miss the value where there are few images.
        sides = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
        axis.errorbar(value, place, xerr=sides, fmt="o", capsize=4, color=_BETTER)
    axis.set_yticks(range(len(letters)), letters[::-1])
    axis.set(xlabel=f"{metric_name(name)}, 95% interval", ylim=(-0.6, len(letters) - 0.4), title="Runs")
    axis.grid(alpha=0.3, axis="x")


def _draw_classes(axis: Axes, comparison: Comparison) -> None:
    """Of two runs the difference of the recall, of more the recall of each."""
    classes, letters = _shown(comparison), [each.letter for each in comparison.runs]
    if len(letters) == 2:
        points = [100 * (each.right[1] - each.right[0]) / each.images for each in classes]
        axis.barh(range(len(classes)), points, color=[_BETTER if value > 0 else _WORSE for value in points])
        axis.axvline(0, color="#808080", linewidth=0.8)
        axis.set(xlabel=f"recall of {letters[1]} less that of {letters[0]}, points")
    else:
        for i, letter in enumerate(letters):
            recalls = [each.right[i] / each.images for each in classes]
            axis.plot(recalls, range(len(classes)), "o", label=letter, markersize=5)
        axis.set(xlabel="recall")
        if classes:
            axis.legend(fontsize="small")
    texts = figure_texts([each.name for each in classes])
    axis.set_yticks(range(len(classes)), texts.texts, fontfamily=texts.fonts, fontsize=8)
    axis.set_title("Classes that differ most" if classes else "All classes are equal")
    axis.grid(alpha=0.3, axis="x")
