"""Draw the picture of docs/resolution.md from the bundled weights: python docs/make_pictures.py.

With a run folder, also the pictures of README and docs/report.md: its two pictures in one, and a photograph of its
report, which needs chromium.

    mixer-finetune fit --recipe digits --output_dir pictures
    python docs/make_pictures.py pictures/digits/*
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image

from mixer_finetune import load_backbone

DOCS = Path(__file__).resolve().parent
UNIT, FILTER = 11, 30  # a hidden unit of the first token MLP and a patch filter that are easy to see
ROWS = {
    None: "as trained",
    "interpolate": "interpolate",
    "block_diagonal": "block_diagonal\n(the paper's)",
    "features": "features",
    "patch": "patch",
}
COLUMNS = (
    "the image and its patches",
    "where a hidden unit of\ntoken mixing looks",
    "a filter of the\npatch embedding",
)


def resize_picture(target: Path, size: int = 64) -> None:
    """The four ways from 32 px to `size` px: patches, a row of W1 of the first block, a patch filter, what it costs."""
    image = _digit()
    figure, axes = plt.subplots(len(ROWS), 4, figsize=(7.6, 9.4), width_ratios=(1, 1, 1, 1.25), layout="constrained")
    figure.patch.set_facecolor("white")
    for row, (method, title) in zip(axes, ROWS.items(), strict=True):
        side = size if method else 32
        backbone = load_backbone("mixer_nano", image_size=side, resize=method or "auto").eval()
        geometry, weights = backbone.geometry, backbone.state_dict()
        rows, columns = geometry.grid
        unit = weights["blocks.0.mlp_tokens.fc1.weight"][UNIT]
        grid = geometry.mixing_grid
        _image(row[0], image.resize((side, side), Image.Resampling.BICUBIC), geometry.patch_size, size)
        _map(row[1], unit.view(grid).numpy(), side / size)
        _filter(row[2], weights["stem.proj.weight"][FILTER].numpy(), geometry.patch_size / 8)
        if method == "block_diagonal":
            _lines(row[0], side, side // 2, "tab:orange", 2)
            _lines(row[1], grid[0], grid[0] // 2, "tab:orange", 2)
        parameters = sum(value.numel() for value in weights.values()) / 1e6
        hidden = len(weights["blocks.0.mlp_tokens.fc1.weight"])
        facts = [
            f"{side} px, {rows} x {columns} = {rows * columns} tokens",
            f"token matrices {hidden} x {unit.numel()}",
            f"{parameters:.2f} M parameters",
            *([f"tokens are brought to {grid[0]} x {grid[1]}\naround each mixing"] if method == "features" else []),
        ]
        row[0].set_ylabel(title, fontsize=10, fontweight="bold")
        row[3].axis("off")
        row[3].text(0, 0.5, "\n".join(facts), va="center", fontsize=9, linespacing=1.5, transform=row[3].transAxes)
    for axis, title in zip(axes[0], COLUMNS, strict=False):
        axis.set_title(title, fontsize=9)
    figure.savefig(target, dpi=110)
    plt.close(figure)
    _lighter(target)


def _digit() -> Image.Image:
    """One of the bundled digits."""
    (file,) = DOCS.parent.glob("mixer_finetune/assets/digits/data/test-*.parquet")
    return Image.open(io.BytesIO(pq.read_table(file)["image"][4].as_py()["bytes"])).convert("L")


def run_picture(run: Path, target: Path) -> None:
    """Loss and accuracy over the steps beside the confusion matrix, as the run drew them."""
    curves, matrix = (Image.open(run / name).convert("RGB") for name in ("learning_curves.png", "confusion_matrix.png"))
    curves = curves.crop((0, 0, curves.width * 2 // 3 - 14, curves.height))  # the third panel is the rate
    matrix = matrix.resize((matrix.width * curves.height // matrix.height, curves.height), Image.Resampling.LANCZOS)
    both = Image.new("RGB", (curves.width + matrix.width, curves.height), "white")
    both.paste(curves, (0, 0))
    both.paste(matrix, (curves.width, 0))
    both.save(target)
    _lighter(target)


def report_picture(run: Path, target: Path) -> None:
    """Photograph the beginning of a run's report at 1,000 pixels."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("photographing a report needs chromium")
    options = ("--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1000,930", f"--screenshot={target}")
    subprocess.run([chromium, *options, (run / "report.html").resolve().as_uri()], check=True, capture_output=True)
    _lighter(target)


def _lighter(path: Path) -> None:
    """Keep 200 colours of a picture: a third of the bytes."""
    image = Image.open(path).convert("RGB")
    image.quantize(200, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _lines(axis: Axes, side: float, step: float, color: str, width: float) -> None:
    for at in np.arange(0, side + step, step) - 0.5:
        axis.plot([at, at], [-0.5, side - 0.5], color=color, linewidth=width)
        axis.plot([-0.5, side - 0.5], [at, at], color=color, linewidth=width)


def _image(axis: Axes, image: Image.Image, patch: int, size: int) -> None:
    """An image under the grid of its patches; smaller images are drawn smaller."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    _lines(axis, image.width, patch, "tab:cyan", 0.5)
    _scaled(axis, image.width, image.width / size)


def _map(axis: Axes, values: NDArray[np.float32], share: float) -> None:
    bound = np.abs(values).max()
    axis.imshow(values, cmap="RdBu_r", vmin=-bound, vmax=bound)
    _scaled(axis, len(values), share)


def _filter(axis: Axes, values: NDArray[np.float32], share: float) -> None:
    """A filter (3, P, P) in its own colours."""
    axis.imshow((values / np.abs(values).max() / 2 + 0.5).transpose(1, 2, 0))
    _scaled(axis, values.shape[-1], share)


def _scaled(axis: Axes, side: int, share: float) -> None:
    """Have `side` units take that share of the axis, from the top left corner."""
    _bare(axis)
    axis.set_xlim(-0.5, side / share - 0.5)
    axis.set_ylim(side / share - 0.5, -0.5)


if __name__ == "__main__":
    resize_picture(DOCS / "resize.png")
    for run in map(Path, sys.argv[1:]):
        run_picture(run, DOCS / "digits.png")
        report_picture(run, DOCS / "report.png")
