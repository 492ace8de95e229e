"""Encoded bytes to pixels: upright, 8 bits a channel, and no larger than is needed.

open_photo(record)  ->  Photo, its size known  ->  .pixels(): decoded, as a uint8 tensor that shares PIL's memory
"""

from __future__ import annotations

import importlib.util
import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

# Most pixels that are decoded of one image: PIL's own limit, 358 MB in its memory. A JPEG is decoded small before.
MAX_PIXELS = 89_478_485
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
_SIDEWAYS = (5, 6, 7, 8)
# A JPEG is decoded at half its size or less only where that leaves this many times the pixels that are asked for, so
# that the antialiased resize that follows still decides what they are.
_RESERVE = 2
_opening = threading.Lock()


class BadImage(Exception):
    """An image that can't be decoded; the message names it."""


@dataclass
class Photo:
    """An image whose pixels are decoded only when they are asked for, once.

    Attributes:
        name: What to call it in an error.
        height: Of the upright image, in pixels of the file.
        width: Likewise.
        note: What had to be assumed about its pixels.
    """

    name: str
    height: int
    width: int
    note: str | None
    _content: bytes
    _image: Image.Image
    _turn: Image.Transpose | None
    _max_pixels: int

    @property
    def transparent(self) -> bool:
        """Whether pixels have an alpha channel."""
        return self._image.mode in ("RGBA", "LA", "PA") or "transparency" in self._image.info

    def image(self, mode: str = "RGB", shrink: float = 1.0) -> Image.Image:
        """The upright image.

        Args:
            mode: PIL's name of the channels wanted: "L", "RGB" or "RGBA".
            shrink: How many times smaller it is going to be made; a JPEG is decoded at a fraction of its size where
                that leaves twice the pixels.

        Raises:
            BadImage: It is damaged, or too large.
        """
        image = self._image
        with _named(self.name):
            small = _fraction(shrink)
            image.draft("L" if mode == "L" else "RGB", (max(image.width // small, 1), max(image.height // small, 1)))
            _check_size(image, self._max_pixels)
            image.load()
            image, self.note = _eight_bit(image)
            if image.mode != mode:
                image = image.convert(mode)
            return image if self._turn is None else image.transpose(self._turn)

    def pixels(self, mode: str = "RGB", shrink: float = 1.0) -> Tensor:
        """The upright image as a tensor that shares its memory; arguments and errors as of `image`.

        Returns:
            (c, H, W) uint8, its channels last in memory. To RGB there may be a fourth channel, without meaning.
        """
        plain = self._image.format == "JPEG" and self._turn is None and _fraction(shrink) == 1
        if plain and (self._image.mode, mode) in (("RGB", "RGB"), ("L", "RGB"), ("L", "L")) and (fast := _decoder()):
            with _named(self.name):
                _check_size(self._image, self._max_pixels)
            try:
                return fast(torch.frombuffer(bytearray(self._content), dtype=torch.uint8), len(mode), False)
            except RuntimeError:
                pass  # PIL decodes more kinds, and says what is damaged
        return to_view(self.image(mode, shrink))


@cache
def _decoder() -> Callable[[Tensor, int, bool], Tensor] | None:
    """Torchvision's decoder of JPEGs; None where its library lacks it.

    It takes a fifth less time than PIL and gives the same pixels. The library alone is loaded: importing torchvision
    takes longer than importing torch.
    """
    found = importlib.util.find_spec("torchvision")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for file in (
            *Path(folder).glob("image_stable.*"),
            *Path(folder).glob("image.so"),
            *Path(folder).glob("image.pyd"),
        ):
            try:
                torch.ops.load_library(str(file))  # type: ignore[no-untyped-call]
                decoder: Callable[[Tensor, int, bool], Tensor] = torch.ops.image.decode_jpeg
                return decoder
            except (OSError, AttributeError, RuntimeError):
                continue
    return None


def _fraction(shrink: float) -> int:
    """Which fraction of its size a JPEG is decoded at."""
    return max(s for s in (1, 2, 4, 8) if s == 1 or s * _RESERVE <= shrink)


def open_photo(record: dict[str, Any], name: str, max_pixels: int = MAX_PIXELS) -> Photo:
    """Open what a `datasets` image column holds when it is not decoded: `bytes`, or the `path` of a file.

    Args:
        record: With `bytes` and `path`.
        name: What to call the image in an error, where it has no path.
        max_pixels: Most pixels to decode.

    Raises:
        BadImage: No image, or a damaged one.
    """
    name = record.get("path") or name
    with _named(name):
        content = record["bytes"] if record.get("bytes") is not None else Path(record["path"]).read_bytes()
        # PIL's check would refuse large JPEGs, which are decoded small; what is left is checked when it is decoded.
        with _opening:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(io.BytesIO(content))
            finally:
                Image.MAX_IMAGE_PIXELS = before
        if image.format not in ("JPEG", "MPO"):
            _check_size(image, max_pixels)
            image.load()  # the orientation may lie behind the pixels
        orientation = _orientation(image)
        sideways = orientation in _SIDEWAYS
        height, width = (image.width, image.height) if sideways else (image.height, image.width)
        return Photo(name, height, width, None, content, image, _TURNS.get(orientation), max_pixels)


def image_size(record: dict[str, Any]) -> tuple[int, int]:
    """Width and height as they stand in the file, by its head alone.

    Raises:
        BadImage: No image, or a damaged one.
    """
    with _named(record.get("path") or "the image"):
        source = io.BytesIO(record["bytes"]) if record.get("bytes") is not None else record["path"]
        with Image.open(source) as image:
            return image.size


def decode(record: dict[str, Any], name: str, size: int | None = None, mode: str = "RGB") -> Image.Image:
    """Decode what a `datasets` image column holds, as a PIL image.

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
    photo = open_photo(record, name)
    return photo.image(mode, min(photo.height, photo.width) / size if size else 1.0)


def as_mode(image: Image.Image, mode: str, name: str = "the image") -> Image.Image:
    """An image upright, with 8 bits a channel, in a mode.

    Args:
        image: As PIL opens it.
        mode: PIL's name of the channels wanted: "L", "RGB" or "RGBA".
        name: What to call the image in an error.

    Raises:
        BadImage: Its file is damaged, or its pixels have no known range.
    """
    with _named(name):
        image.load()
        turn = _TURNS.get(_orientation(image))
        upright = image if turn is None else image.transpose(turn)
        return _eight_bit(upright)[0].convert(mode)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Call whatever goes wrong with an image by its name.

    At a damaged file PIL raises what its parsers and decoders happen to raise: OSError, SyntaxError, struct.error,
    RuntimeError, MemoryError, ZeroDivisionError, AttributeError, ...
    """
    try:
        yield
    except Exception as error:
        # PIL names the stream by its address in memory, which would make another reason of each attempt.
        reason = re.sub(r" <\S+ object at 0x[0-9a-f]+>", "", str(error)) or type(error).__name__
        raise BadImage(f"{name} can't be decoded ({reason})".replace("\n", " ")) from error


def _check_size(image: Image.Image, most: int) -> None:
    if image.width * image.height > most:
        raise ValueError(
            f"{image.width:,} x {image.height:,} px are more than the limit of {most:,}: make it smaller, or raise "
            "max_image_pixels"
        )


def _orientation(image: Image.Image) -> int:
    """How the EXIF block says that the image lies, from 1 to 8; 1 where the block says nothing sensible.

    `ImageOps.exif_transpose` also copies the image, rewrites that block, and fails on odd tags.
    """
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # good pixels are not lost to bad metadata, whatever PIL's parser raises
        return 1
    return value if value in _TURNS else 1


def _eight_bit(image: Image.Image) -> tuple[Image.Image, str | None]:
    """Pixels of 16 bits scaled to 8, where PIL alone would cut them off at 255, with what was assumed; others as is.

    Raises:
        ValueError: Pixels without a known range.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, which have no fixed range: save it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image, None
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("its pixels have more than 16 bits: save it with 8 or 16")
    if 0 < pixels.max() <= 4095:  # of 12 bits, as cameras and scanners have; else nearly black
        note = "pixels of 16 bits with no value above 4,095 are taken for 12 bits, and stretched"
        return Image.fromarray(((pixels * 255 + 2047) // 4095).astype(np.uint8)), note
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8)), None


def to_tensor(image: Image.Image) -> Tensor:
    """A PIL image to (channels, H, W) uint8."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """(c, H, W) uint8 of one, three or four channels to a PIL image."""
    return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())


def to_view(image: Image.Image) -> Tensor:
    """A PIL image in mode "L", "RGB" or "RGBA" as (c, H, W) uint8 that shares its memory, where PIL can.

    PIL keeps RGB with a fourth byte for each pixel; that channel comes along.
    """
    if hasattr(image, "__arrow_c_array__"):  # Pillow 11.3
        try:
            array = pa.array(image)
        except ValueError:  # an image of more than 16 MB lies in several blocks
            return to_tensor(image)
        flat = array.flatten() if pa.types.is_nested(array.type) else array
        return from_dlpack(flat).view(image.height, image.width, -1).permute(2, 0, 1)
    return to_tensor(image)
