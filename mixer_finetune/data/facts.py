"""What can be told of each image by decoding it once: its size, hashes, a small copy, how much there is on it.

Shapes: n images.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixer_finetune.data.exclude import content_digest
from mixer_finetune.data.sources import Split
from mixer_finetune.images import MAX_PIXELS, BadImage, open_photo

# Side of the small copies that images are compared by.
SIDE = 16
# Contrast is of a copy of about that side, so that noise of a sensor or of a JPEG's blocks counts little.
_LOOKED_AT = 64
_CHUNK = 512
_SAY_EVERY = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """Of the images of a split, in their order.

    Attributes:
        sizes: (n, 2) width and height of the upright image, in pixels; 0 where it can't be decoded.
        pixels: (n, 16) uint8, a hash of size and pixels: the same for pixel-identical images of any file format.
        digests: Of each file, as in a table of images to leave out.
        small: (n, SIDE, SIDE, 3) uint8, squashed copies in RGB.
        contrast: (n,) standard deviation of the grey levels (0 to 255) of a channel, the mean over the channels.
        bad: Images that can't be decoded, by position, each with its name and the reason.
    """

    sizes: NDArray[np.int32]
    pixels: NDArray[np.uint8]
    digests: list[str]
    small: NDArray[np.uint8]
    contrast: NDArray[np.float32]
    bad: dict[int, str]


def facts_of(split: Split, threads: int = 1, max_pixels: int = MAX_PIXELS) -> Facts:
    """Decode each image once.

    Args:
        split: The images.
        threads: That decode at once.
        max_pixels: Most pixels to decode of an image.
    """
    n = len(split)
    found = Facts(
        np.zeros((n, 2), np.int32),
        np.zeros((n, 16), np.uint8),
        [""] * n,
        np.zeros((n, SIDE, SIDE, 3), np.uint8),
        np.zeros(n, np.float32),
        {},
    )
    started = said = time.monotonic()
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for start in range(0, n, _CHUNK):
            at = range(start, min(start + _CHUNK, n))
            records = split.image_records(np.arange(at.start, at.stop))
            names = [f"{split.name}[{int(split.rows[i])}]" for i in at]
            list(pool.map(lambda i, record, name: _look(found, i, record, name, max_pixels), at, records, names))
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                rate = at.stop / (said - started)
                log.info(
                    f"looked at   {at.stop:,} images, {rate:,.0f} a second, {(n - at.stop) / rate / 60:.0f} min left"
                )
    return found


def _look(found: Facts, i: int, record: Mapping[str, Any], name: str, max_pixels: int) -> None:
    found.digests[i] = content_digest(record)
    try:
        photo = open_photo(dict(record), name, max_pixels)
        image = photo.image("RGBA" if photo.transparent else "RGB")
    except BadImage as error:
        found.bad[i] = str(error)
        return
    found.sizes[i] = image.size
    digest = hashlib.blake2b(repr((image.size, image.mode)).encode(), digest_size=16)
    digest.update(image.tobytes())
    found.pixels[i] = np.frombuffer(digest.digest(), np.uint8)
    image = image.convert("RGB")
    if factor := min(image.size) // _LOOKED_AT:
        image = image.reduce(factor)
    found.contrast[i] = np.asarray(image, np.float32).std((0, 1)).mean()
    found.small[i] = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))
