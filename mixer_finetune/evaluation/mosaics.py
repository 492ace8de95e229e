"""Weights and images as pixels, and pixels as the text that a page takes."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
# Between the units of a mosaic: grey is neither ink nor paper, so it serves light and dark pages.
MOSAIC_GAP = 128


def mosaic(units: Pixels, columns: int) -> Pixels:
    """Lay pictures out on a grid with a pixel between them.

    Args:
        units: (n, h, w, 3).
        columns: Pictures in a row.

    Returns:
        (H, W, 3).
    """
    rows = -(-len(units) // columns)
    height, width = units.shape[1:3]
    cells = np.full((rows * columns, height + 1, width + 1, 3), MOSAIC_GAP, np.uint8)
    cells[: len(units), 1:, 1:] = units
    sheet = rearrange(cells, "(r c) h w d -> (r h) (c w) d", c=columns)
    return np.pad(sheet, ((0, 1), (0, 1), (0, 0)), constant_values=MOSAIC_GAP)


def signed_units(units: NDArray[np.float32]) -> Pixels:
    """Maps (n, h, w) as pictures (n, h, w, 3): red above zero, blue below, each scaled by its own largest value."""
    scaled = units / np.maximum(np.abs(units).max((1, 2), keepdims=True), 1e-12)
    return _coloured("RdBu_r", (scaled + 1) / 2)


def colour_units(units: NDArray[np.float32]) -> Pixels:
    """Filters (n, channels, h, w) as pictures (n, h, w, 3): grey is zero, each scaled by its own largest value."""
    scaled = units / np.maximum(np.abs(units).max((1, 2, 3), keepdims=True), 1e-12)
    colours = scaled[:, :3] if scaled.shape[1] >= 3 else np.repeat(scaled[:, :1], 3, axis=1)
    pixels: Pixels = ((rearrange(colours, "n c h w -> n h w c") + 1) * 127.5).astype(np.uint8)
    return pixels


def confusion_pixels(counts: NDArray[np.int64]) -> Pixels:
    """A confusion matrix (s, s) as pixels (s, s, 3): black is none, yellow all of the true class.

    A single image out of hundreds would not show on a linear scale: shares are shown by their square root.
    """
    return _coloured("inferno", np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1)))


def overlay(image: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """The image in grey with the evidence over it, from nothing to yellow.

    Args:
        image: H x W pixels.
        heat: (H, W) in 0..1.
    """
    grey = np.asarray(image.convert("L"), np.float32)[..., None] / 255 * np.ones(3, np.float32)
    glow = matplotlib.colormaps["inferno"](heat)[..., :3]
    share = 0.75 * np.sqrt(heat)[..., None]
    return Image.fromarray(((grey * (1 - share) + glow * share) * 255).astype(np.uint8))


def data_uri(picture: Image.Image | Pixels, lossless: bool = True) -> str:
    """A picture as the text that an `img` element's `src` takes: PNG, or JPEG where losses do not matter."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=85)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _coloured(colormap: str, values: NDArray[np.floating]) -> Pixels:
    pixels: Pixels = (matplotlib.colormaps[colormap](values)[..., :3] * 255).astype(np.uint8)
    return pixels
