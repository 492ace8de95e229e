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
        return ImageOps.exif_transpose(image).convert(mode)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, Image.DecompressionBombError) as error:
        raise BadImage(f"{record.get('path') or name} can't be decoded ({error})".replace("\n", " ")) from error


def to_tensor(image: Image.Image) -> Tensor:
    """A PIL image to (channels, H, W) uint8."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
