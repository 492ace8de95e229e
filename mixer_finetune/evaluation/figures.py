"""Pictures: curves and matrices by matplotlib, weights as mosaics; PNG for the run folder, SVG and data URIs for the report."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from einops import rearrange  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402

from mixer_finetune.files import write_atomically  # noqa: E402

DPI = 120
MOST_NUMBERED_CLASSES = 25
# Between the units of a mosaic: grey is neither ink nor paper, so it serves light and dark pages.
MOSAIC_GAP = 128


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def plot_curves(axis: Axes, rows: list[dict[str, str]], kind: str) -> None:
    """Draw "loss" or "accuracy" over the steps."""
    columns = {"loss": (("train/loss", "train"),), "accuracy": (("train/accuracy", "train"), ("val/accuracy", "dev"))}
    for column, label in columns[kind]:
        points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, marker="o" if label == "dev" else None, markersize=3)
    axis.set(xlabel="step", ylabel={"loss": "cross-entropy", "accuracy": "top-1 accuracy"}[kind], title=kind.capitalize())
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend()


def learning_curves_figure(metrics: Path, path: Path) -> None:
    """Loss and accuracy over the steps, as PNG.

    Args:
        metrics: The run's metrics.csv.
        path: Of the PNG.
    """
    rows = read_metrics(metrics)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, kind in zip(axes, ("loss", "accuracy"), strict=True):
        plot_curves(axis, rows, kind)
    _save(figure, path)


def learning_curves_svg(metrics: Path) -> list[str]:
    """Loss and accuracy over the steps, one SVG each."""
    rows, pictures = read_metrics(metrics), []
    for kind in ("loss", "accuracy"):
        figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
        plot_curves(axis, rows, kind)
        pictures.append(_svg(figure, kind))
    return pictures


def reliability_svg(points: Sequence[tuple[float, float, int]]) -> str:
    """Accuracy against confidence.

    Args:
        points: (mean confidence, accuracy, images) of each bin.
    """
    figure, axis = plt.subplots(figsize=(4.2, 4), layout="constrained")
    confidence, accuracy, images = np.array(points).T
    axis.plot([0, 1], [0, 1], linestyle="--", color="#808080", label="calibrated")
    axis.plot(confidence, accuracy, color="#1f77b4", linewidth=1)
    axis.scatter(confidence, accuracy, s=20 + 180 * images / images.sum(), color="#1f77b4", label="bin (size: images)")
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left")
    return _svg(figure, "reliability")


def confusion_matrix_figure(counts: NDArray[np.int64], names: list[str], title: str, path: Path) -> None:
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


def confusion_pixels(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The confusion matrix as (classes, classes, 3) pixels, one an entry: black is none, yellow all of the true class.

    A single image out of hundreds would not show on a linear scale: shares are shown by their square root.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return (matplotlib.colormaps["inferno"](np.sqrt(shares))[..., :3] * 255).astype(np.uint8)


def mosaic(units: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Lay pictures out on a grid with a pixel between them.

    Args:
        units: (n, h, w, 3).
        columns: Pictures a row.
    """
    rows = -(-len(units) // columns)
    height, width = units.shape[1:3]
    cells = np.full((rows * columns, height + 1, width + 1, 3), MOSAIC_GAP, np.uint8)
    cells[: len(units), 1:, 1:] = units
    sheet = rearrange(cells, "(r c) h w d -> (r h) (c w) d", c=columns)
    return np.pad(sheet, ((0, 1), (0, 1), (0, 0)), constant_values=MOSAIC_GAP)


def signed_units(units: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Maps (n, h, w) as pictures (n, h, w, 3): red above zero, blue below, each scaled by its own largest value."""
    scaled = units / np.maximum(np.abs(units).max((1, 2), keepdims=True), 1e-12)
    return (matplotlib.colormaps["RdBu_r"]((scaled + 1) / 2)[..., :3] * 255).astype(np.uint8)


def colour_units(units: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Filters (n, channels, h, w) as pictures (n, h, w, 3), grey being zero, each scaled by its own largest value."""
    scaled = units / np.maximum(np.abs(units).max((1, 2, 3), keepdims=True), 1e-12)
    colours = scaled[:, :3] if scaled.shape[1] >= 3 else np.repeat(scaled[:, :1], 3, axis=1)
    return ((rearrange(colours, "n c h w -> n h w c") + 1) * 127.5).astype(np.uint8)


def data_uri(picture: Image.Image | NDArray[np.uint8], lossless: bool = True) -> str:
    """A picture as the text that an `img` element's `src` takes: PNG, or JPEG where losses do not matter."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=85)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _svg(figure: plt.Figure, name: str) -> str:
    """The figure as an SVG element whose ink is the page's, so that it can be read on a dark one too."""
    buffer = io.StringIO()
    # Text stays text; ids come from the name, so that two figures on a page do not share them and a run's report is repeatable.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" |height="[^"]*pt" ', r"\1", text, count=2)
    text = text.replace("#000000", "currentColor")
    # Text has no fill of its own; the legend's box is white.
    text = text.replace("<text ", '<text fill="currentColor" ').replace("fill: #ffffff; opacity: 0.8", "fill: none")
    return re.sub(r'id="(?!p|m|\w*image)[^"]*"', "", text)


def _save(figure: plt.Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=DPI, format="png"))
    plt.close(figure)
