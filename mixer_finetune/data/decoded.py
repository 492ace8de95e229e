"""Small images decoded once: in memory, or from some size on in a file that all processes of the machine map.

The file's name is a hash of the encoded images, so that it can't hold others than those that are asked for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.data.sources import Split
from mixer_finetune.files import sweep, write_atomically
from mixer_finetune.images import BadImage, open_photo, to_tensor

# A larger side is decoded again in each epoch: its crop costs more as matrix products than decoding does.
LARGEST_SIDE = 96
# Fewer bytes are kept by each process for itself, in silence.
SHARED_FROM = 2**24
# Where the disk can't take the file, what is no larger is kept by each process for itself.
MOST_IN_MEMORY = 2**30

log = logging.getLogger(__name__)


def decoded_pixels(split: Split, preprocessing: Preprocessing) -> Tensor | None:
    """All images of a split, (n, c, H, W) uint8.

    Returns:
        None unless they have one size of at most `LARGEST_SIDE` px, no larger than the backbone's, can all be decoded,
        and there is room for them.
    """
    if split.streamed:
        return None
    try:
        first = open_photo(split.image_records(np.array([0]))[0], split.name)
    except BadImage:
        return None  # the workers' path names and counts it
    (rows, columns), mode = preprocessing.image_size, preprocessing.mode
    if first.height > min(rows, LARGEST_SIDE) or first.width > min(columns, LARGEST_SIDE):
        return None
    if preprocessing.crop_mode == "border" and first.height * columns != first.width * rows:
        return None  # padded one by one
    shape = len(split), len(mode), first.height, first.width
    size = int(np.prod(shape))
    what = f"{len(split):,} images of {split.name}, {first.width} x {first.height} px"
    if size < SHARED_FROM:
        return _filled(torch.empty(shape, dtype=torch.uint8), split, mode)
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        file = folder / f"{_fingerprint(split, mode)}.{'x'.join(map(str, shape))}"
        if not file.is_file() or file.stat().st_size != size:
            if size > shutil.disk_usage(folder).free / 2:
                raise OSError(f"{folder} has too little room")
            log.info(f"decoding {what}, once, into a file that processes share: {file} ({_amount(size)})")
            write_atomically(file, lambda path: _write(path, shape, split, mode))
        return torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).view(shape)
    except (BadImage, _Unequal):
        return None
    except OSError as error:
        if size > MOST_IN_MEMORY:
            log.info(f"{what}, would take {_amount(size)} decoded ({error}): they are decoded anew in each epoch")
            return None
        log.info(f"decoding {what}, into the memory of each process ({_amount(size)}): {error}")
        return _filled(torch.empty(shape, dtype=torch.uint8), split, mode)


def _folder() -> Path:
    """Beside what was downloaded from the Hub, which users put where there is room."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "mixer_finetune" / "decoded"


class _Unequal(Exception):
    """The images have several sizes."""


def _write(path: Path, shape: tuple[int, ...], split: Split, mode: str) -> None:
    with open(path, "wb") as file:
        _reserve(file.fileno(), int(np.prod(shape)))
    pixels = np.memmap(path, np.uint8, "r+", shape=shape)
    if _filled(torch.from_numpy(pixels), split, mode) is None:
        raise _Unequal
    pixels.flush()


def _reserve(file: int, size: int) -> None:
    """Make a file that long; on a disk that has no room for it, now and not while it is mapped.

    Raises:
        OSError: There is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def _filled(pixels: Tensor, split: Split, mode: str) -> Tensor | None:
    """Decode the images into (n, c, H, W); None if one can't be, or has another size."""
    try:
        for i, record in enumerate(_records(split)):
            photo = open_photo(record, split.name)
            if (photo.height, photo.width) != tuple(pixels.shape[2:]):
                return None
            pixels[i] = to_tensor(photo.image(mode))
    except BadImage:
        return None
    return pixels


def _records(split: Split) -> Iterator[dict[str, Any]]:
    for start in range(0, len(split), 1024):
        yield from split.image_records(np.arange(start, min(start + 1024, len(split))))


def _fingerprint(split: Split, mode: str) -> str:
    """A hash of the encoded images in their order."""
    known = hashlib.blake2b(mode.encode(), digest_size=16)
    for record in _records(split):
        content = record["bytes"] if record.get("bytes") is not None else Path(record["path"]).read_bytes()
        known.update(len(content).to_bytes(8, "little"))
        known.update(content)
    return known.hexdigest()


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
