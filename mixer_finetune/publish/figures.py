"""Pictures of a run, as PNG."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from mixer_finetune.runs import write_atomically  # noqa: E402

DPI = 120
MOST_NUMBERED_CLASSES = 25


def learning_curves_figure(metrics: Path, path: Path) -> None:
    """Loss and accuracy over the steps.

    Args:
        metrics: The run's metrics.csv.
        path: Of the PNG.
    """
    with open(metrics, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, column, label in (
        (loss, "train/loss", "train"),
        (accuracy, "train/accuracy", "train"),
        (accuracy, "val/accuracy", "dev"),
    ):
        points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, marker="o" if label == "dev" else None, markersize=3)
    loss.set(xlabel="step", ylabel="cross-entropy", title="Loss")
    accuracy.set(xlabel="step", ylabel="top-1 accuracy", title="Accuracy")
    accuracy.legend()
    for axis in (loss, accuracy):
        axis.grid(alpha=0.3)
    _save(figure, path)


def confusion_matrix_figure(counts: np.ndarray, names: list[str], title: str, path: Path) -> None:
    """The confusion matrix, coloured by the share of each true class.

    Args:
        counts: (classes, classes): images of class i (row) that were called class j (column).
        names: Of the classes.
        title: Above the matrix.
        path: Of the PNG.
    """
    n = len(names)
    side = float(np.clip(0.5 * n + 2, 5, 20))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    size = float(np.clip(400 / n, 3, 10))
    axis.set_xticks(range(n), names, rotation=90, fontsize=size)
    axis.set_yticks(range(n), names, fontsize=size)
    axis.set(xlabel="predicted", ylabel="true", title=title)
    if n <= MOST_NUMBERED_CLASSES:
        for i, j in np.argwhere(counts):
            axis.text(
                j,
                i,
                str(int(counts[i, j])),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[i, j] > 0.5 else "black",
            )
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=DPI, format="png"))
    plt.close(figure)
