"""Encoded bytes to PIL images and uint8 tensors."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What PIL raises at a damaged file.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


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
    name = record.get("path") or name
    try:
        image = Image.open(io.BytesIO(record["bytes"]) if record.get("bytes") is not None else record["path"])
        if size is not None:
            # Twice the asked side, so that the antialiased resize that follows still decides the pixels.
            image.draft("L" if mode == "L" else "RGB", (2 * size, 2 * size))
    except _DAMAGE as error:
        raise _bad_image(name, error) from error
    return as_mode(image, mode, name)


def as_mode(image: Image.Image, mode: str, name: str = "the image") -> Image.Image:
    """An image upright, with 8 bits a channel, in a mode.

    Args:
        image: As PIL opens it.
        mode: PIL's name of the channels wanted: "L", "RGB" or "RGBA".
        name: What to call the image in an error.

    Raises:
        BadImage: Its file is damaged, or its pixels have no known range.
    """
    try:
        return _eight_bit(_upright(image)).convert(mode)
    except _DAMAGE as error:
        raise _bad_image(name, error) from error


def _bad_image(name: str, error: Exception) -> BadImage:
    return BadImage(f"{name} can't be decoded ({error})".replace("\n", " "))


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF block says.

    `ImageOps.exif_transpose` also rewrites that block, and fails on odd tags.
    """
    image.load()  # the block may lie behind the pixels
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


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
