"""Figures by matplotlib: curves and the confusion matrix as PNG for the run folder, curves as SVG for the report."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mixer_finetune.evaluation.figure_text import figure_texts, figure_title
from mixer_finetune.evaluation.measures import CalibrationBin, ConfusionMatrix
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.results import Results
from mixer_finetune.files import write_atomically
from mixer_finetune.runs import RunFolder
from mixer_finetune.training.metrics_file import read_rows

DPI = 120
MOST_NUMBERED_CLASSES = 25
MOST_NAMED_CLASSES = 200
MOST_PIXELS = 1000  # on a side of a confusion matrix without names
MOST_MARKERS = 40  # on a curve
PANELS = ("loss", "accuracy", "learning rate")
_AXES = {"loss": "loss", "accuracy": "top-1 accuracy", "learning rate": "learning rate"}
# What is plotted of a dev split where images have several labels: the share all of whose labels are right.
_SEVERAL = "exact_match"


class Curve(NamedTuple):
    """Values of one thing over the steps."""

    label: str
    steps: list[int]
    values: list[float]


def curves(rows: list[dict[str, str]], panel: str) -> list[Curve]:
    """The curves of a panel that the rows have values for.

    The training curve is made of means over whole epochs where there are at least two of them, else of means over the
    steps since the row before.

    Args:
        rows: Of metrics.csv.
        panel: One of PANELS.
    """
    if panel == "learning rate":
        found = [_curve(rows, "train/lr", "learning rate")]
    else:
        train = _curve(rows, f"train/{panel}_epoch", "train, mean of an epoch")
        if len(train.steps) < 2:
            train = _curve(rows, f"train/{panel}", "train")
        dev = _SEVERAL if panel == "accuracy" and _several(rows) else panel
        found = [train, _curve(rows, f"val/{dev}", "dev")]
        if dev == _SEVERAL:
            found.append(_curve(rows, "val/map", "dev, mean average precision"))
    return [curve for curve in found if curve.steps]


def _several(rows: list[dict[str, str]]) -> bool:
    return any(row.get(f"val/{_SEVERAL}") for row in rows)


def _curve(rows: list[dict[str, str]], column: str, label: str) -> Curve:
    filled = [row for row in rows if row.get(column)]
    return Curve(label, [int(row["step"]) for row in filled], [float(row[column]) for row in filled])


def _plot(axis: Axes, rows: list[dict[str, str]], panel: str) -> None:
    shown = curves(rows, panel)
    for curve in shown:
        marker = "o" if len(curve.steps) <= MOST_MARKERS else None
        axis.plot(curve.steps, curve.values, label=curve.label, marker=marker, markersize=3)
    last = max((int(row["step"]) for row in rows), default=1)
    label = "all labels right" if panel == "accuracy" and _several(rows) else _AXES[panel]
    axis.set(xlabel="step", ylabel=label, title=panel.capitalize())
    axis.set_xlim(-0.02 * last, 1.02 * last)  # the same steps in all panels
    axis.grid(alpha=0.3)
    if panel != "learning rate" and shown:
        axis.legend()


def learning_curves_figure(rows: list[dict[str, str]]) -> Figure:
    """Loss, accuracy and learning rate over the steps.

    Args:
        rows: Of metrics.csv.
    """
    figure = Figure(figsize=(14, 4), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        _plot(axis, rows, panel)
    return figure


def learning_curves_svg(rows: list[dict[str, str]]) -> list[str]:
    """Loss, accuracy and learning rate over the steps, one SVG each.

    Args:
        rows: Of metrics.csv.
    """
    pictures = []
    for panel in PANELS:
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        _plot(figure.subplots(), rows, panel)
        pictures.append(_svg(figure, panel))
    return pictures


def reliability_svg(bins: Sequence[CalibrationBin]) -> str:
    """Accuracy against confidence, as SVG."""
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axis = figure.subplots()
    confidence, accuracy, images = np.array(bins).T
    axis.plot([0, 1], [0, 1], linestyle="--", color="#808080", label="calibrated")
    axis.plot(confidence, accuracy, color="#1f77b4", linewidth=1)
    axis.scatter(confidence, accuracy, s=20 + 180 * images / images.sum(), color="#1f77b4", label="bin (size: images)")
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left")
    return _svg(figure, "reliability")


def risk_coverage_svg(answered: NDArray[np.float64], wrong: NDArray[np.float64]) -> str:
    """The share of wrong answers over the share of images that get one, as SVG.

    Args:
        answered: Shares of images with an answer, ascending.
        wrong: Shares of these answers that are wrong.
    """
    figure = Figure(figsize=(4.2, 3), layout="constrained")
    axis = figure.subplots()
    # Many points would make a large page.
    shown = np.unique(np.linspace(0, len(answered) - 1, min(len(answered), 300)).round().astype(int))
    axis.plot(answered[shown], wrong[shown], color="#1f77b4")
    axis.set(xlabel="share of images with an answer, the surest", ylabel="share of them that is wrong", xlim=(0, 1.02))
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    return _svg(figure, "risk")


def confusion_matrix_figure(matrix: ConfusionMatrix, names: list[str], title: str) -> Figure:
    """The confusion matrix of the classes that occur, coloured by the share of each true class.

    Above 200 classes the axes bear no names, and above 1,000 neighbouring classes share a pixel.

    Args:
        matrix: Of the split.
        names: Of the classes.
        title: Above the matrix.
    """
    classes = matrix.occurring
    counts = matrix.binned(MOST_PIXELS)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    named = len(classes) <= MOST_NAMED_CLASSES
    side = float(np.clip(0.5 * len(classes) + 2, 5, 20)) if named else 10.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    notes = ["predicted"]
    if len(classes) < matrix.classes:
        notes.append(f"{matrix.classes - len(classes):,} of {matrix.classes:,} classes do not occur and are left out")
    if named:
        labels = figure_texts(names)
        if labels.numbered:
            names_have = "1 name has" if labels.numbered == 1 else f"{labels.numbered} names have"
            notes.append(f"{names_have} characters that no installed font has: numbers count from 0")
        style: dict[str, Any] = {"fontsize": float(np.clip(400 / len(classes), 3, 10)), "fontfamily": labels.fonts}
        axis.set_xticks(range(len(classes)), [labels.texts[i] for i in classes], rotation=90, **style)
        axis.set_yticks(range(len(classes)), [labels.texts[i] for i in classes], **style)
    else:
        axis.set(xticks=[], yticks=[])
        notes.append(f"{len(classes):,} classes in the order of the data")
    if len(classes) <= MOST_NUMBERED_CLASSES:
        for i, j in np.argwhere(counts):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8, color=colour)
    text, fonts = figure_title(title)
    axis.set_title(text, fontfamily=fonts)
    axis.set(xlabel="\n".join(notes), ylabel="true")
    return figure


def write_pictures(run: RunFolder, predictions: Predictions | None, results: Results) -> None:
    """Write learning_curves.png and, where something was evaluated, confusion_matrix.png.

    Args:
        run: With its metrics.csv.
        predictions: Of the evaluated split; None where nothing was evaluated.
        results: Of the run.
    """
    _save(learning_curves_figure(read_rows(run.metrics_file)), run.curves_picture)
    if predictions is not None:
        matrix = ConfusionMatrix.of(predictions)
        accuracy = matrix.right.sum() / max(len(predictions), 1)
        title = f"{results.split}: {accuracy:.2%} right of {results.measured_on} images"
        _save(confusion_matrix_figure(matrix, predictions.names, title), run.confusion_picture)


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element whose ink is the page's, so that it can be read on a dark one too."""
    buffer = io.StringIO()
    # Text stays text. Ids come from the name: two figures on a page share none, and a run's report is repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" |height="[^"]*pt" ', r"\1", text, count=2)
    text = text.replace("#000000", "currentColor")
    # Text has no fill of its own; the legend's box is white.
    text = text.replace("<text ", '<text fill="currentColor" ').replace("fill: #ffffff; opacity: 0.8", "fill: none")
    return re.sub(r'id="(?!p|m|\w*image)[^"]*"', "", text)


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=DPI, format="png"))
