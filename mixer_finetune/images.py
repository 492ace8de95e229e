"""Encoded bytes to PIL images and uint8 tensors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


class BadImage(Exception):
    """An image that can't be decoded; the message names it."""


def decode(record: dict[str, Any], name: str, size: int | None = None, mode: str = "RGB") -> Image.Image:
    """Decode what a `datasets` image column holds when it is not decoded: `bytes`, or the `path` of a file.

    Args:
        record: With `bytes` and `path`.
        name: What to call the image in an error.
        size: Side that will be asked for; a JPEG much larger than that is decoded at a fraction of its size.
        mode: PIL's name of the channels wanted: "L", "RGB" or "RGBA".

    Returns:
        The upright image, in that mode.

    Raises:
        BadImage: No image, or a damaged one.
    """
    try:
        image = Image.open(io.BytesIO(record["bytes"]) if record.get("bytes") is not None else record["path"])
        if size is not None:
            # Twice the asked side, so that the antialiased resize that follows still decides the pixels.
            image.draft("L" if mode == "L" else "RGB", (2 * size, 2 * size))
        return _eight_bit(ImageOps.exif_transpose(image)).convert(mode)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, Image.DecompressionBombError) as error:
        raise BadImage(f"{record.get('path') or name} can't be decoded ({error})".replace("\n", " ")) from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Pixels of 16 bits scaled to 8, where PIL alone would cut them off at 255; others as they are.

    Raises:
        ValueError: Pixels without a known range.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, which have no fixed range: save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("its pixels have more than 16 bits: save it with 8 or 16")
        return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    return image


def to_tensor(image: Image.Image) -> Tensor:
    """A PIL image to (channels, H, W) uint8."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
