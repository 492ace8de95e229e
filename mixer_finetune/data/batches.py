"""Batches of a split: decoded image by image in workers, or gathered from memory where the images are small."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixer_finetune.backbones.preprocessing import Preprocessing, evaluation_crop, normalize, pil_filter
from mixer_finetune.data.augment import Augmentation, crop_boxes
from mixer_finetune.data.sampling import MicroBatch
from mixer_finetune.data.sources import Split
from mixer_finetune.images import BadImage, decode, to_tensor

DECODED_CACHE_BYTES = 2**30


class Batch(NamedTuple):
    """What a training or evaluation step gets.

    Attributes:
        images: (b, c, S, T): uint8 from the loader, normalised float32 once on the device.
        labels: (b,) int64.
        indices: (b,) int64, of the samples in their split; on the CPU a NumPy array.
        epoch: Counted from 0.
        first: Position of the first sample in the global batch.
        global_size: Samples in the whole global batch.
        cropped: Whether the images have their S x T pixels; small images are cropped on the device.
        bad: Positions of images that could not be decoded, each with its name and the reason.
    """

    images: Tensor
    labels: Tensor
    indices: NDArray[np.int64]
    epoch: int
    first: int
    global_size: int
    cropped: bool
    bad: tuple[tuple[int, str], ...]


class DecodedImages(Dataset[Batch]):
    """A split whose images are decoded in the workers, one by one, and given out as uint8 batches."""

    def __init__(
        self, split: Split, preprocessing: Preprocessing, augmentation: Augmentation | None, seed: int
    ) -> None:
        self.split, self.preprocessing, self.augmentation, self.seed = split, preprocessing, augmentation, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, micro: MicroBatch) -> Batch:
        size, mode = self.preprocessing.image_size, self.preprocessing.mode
        images = torch.empty(len(micro.indices), len(mode), *size, dtype=torch.uint8)
        good: list[int] = []
        bad: list[tuple[int, str]] = []
        for i, record in enumerate(self.split.image_records(micro.indices)):
            index = micro.indices[i : i + 1]
            try:
                name = f"{self.split.name}[{int(self.split.rows[index[0]])}]"
                image = decode(record, name, self._decode_size(), mode)
            except BadImage as error:
                bad.append((int(index[0]), str(error)))
                continue
            if self.augmentation is None:
                image = evaluation_crop(image, self.preprocessing)
            else:
                box = crop_boxes(self.augmentation, self.seed, micro.epoch, index, image.height, image.width, size)[0]
                image = image.resize(size[::-1], pil_filter(self.preprocessing), box=tuple(box))
            images[len(good)] = to_tensor(image)
            good.append(i)
        indices = micro.indices[good]
        labels = torch.from_numpy(self.split.labels[indices])
        return Batch(
            images[: len(good)], labels, indices, micro.epoch, micro.first, micro.global_size, True, tuple(bad)
        )

    def _decode_size(self) -> int:
        """The side, in pixels, below which a shrunk decode could lose detail that the crop shows."""
        size = max(self.preprocessing.image_size)
        if self.augmentation is None:
            return math.ceil(size / self.preprocessing.crop_pct)
        return math.ceil(size / math.sqrt(self.augmentation.crop_area[0]))


class SmallImages(Dataset[Batch]):
    """A split of small images of one size, decoded once and kept in memory: a batch is one gather.

    Args:
        pixels: (n, c, H, W) uint8.
        labels: (n,) int64.
    """

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitems__(self, micro: MicroBatch) -> Batch:
        at = torch.from_numpy(micro.indices)
        return Batch(
            self.pixels[at],
            self.labels[at],
            micro.indices,
            micro.epoch,
            micro.first,
            micro.global_size,
            cropped=False,
            bad=(),
        )


def batch_dataset(
    split: Split, preprocessing: Preprocessing, augmentation: Augmentation | None = None, seed: int = 0
) -> Dataset[Batch]:
    """The split as a data set that gives whole batches, from memory if its images are small.

    Args:
        split: Images and labels.
        preprocessing: Of the backbone.
        augmentation: For training; None gives the evaluation crop.
        seed: Of the run.
    """
    return _small_images(split, preprocessing) or DecodedImages(split, preprocessing, augmentation, seed)


class EpochLoader(DataLoader[Batch]):
    """A loader that asks where to begin whenever it is iterated.

    Lightning tells epochs only to samplers of its own kind, and creates the first iterator of a resumed run before it
    tells anything; workers begin to fetch at that moment.

    Args:
        begin: Puts the sampler where the run is.

    Attributes:
        waited: Seconds that its user has waited for batches.
    """

    def __init__(self, *args: Any, begin: Callable[[], None] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin = begin
        self.waited = 0.0

    def __iter__(self) -> Any:
        if self._begin is not None:
            self._begin()
        return self._timed(super().__iter__())

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch


def batch_loader(
    data: Dataset[Batch],
    sampler: Any,
    num_workers: int | None,
    persistent: bool = False,
    begin: Callable[[], None] | None = None,
) -> EpochLoader:
    """A loader of the micro-batches that a sampler names.

    Args:
        data: From `batch_dataset`.
        sampler: Yields `MicroBatch`es.
        num_workers: Processes that decode; None for one a core, at most 8. Images in memory need none.
        persistent: Keep the workers from epoch to epoch.
        begin: Called whenever the loader is iterated, to put the sampler where the run is.
    """
    workers = 0
    if isinstance(data, DecodedImages):
        workers = min(min(os.cpu_count() or 1, 8) if num_workers is None else num_workers, len(sampler))
    return EpochLoader(
        data,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_identity,
        persistent_workers=persistent and workers > 0,
        pin_memory=torch.cuda.is_available(),
        begin=begin,
    )


def evaluation_images(batch: Batch, preprocessing: Preprocessing) -> Tensor:
    """A batch's images as the backbone takes them: (b, c, S, T) float32, unaugmented, normalised."""
    images = batch.images if batch.cropped else evaluation_crop(batch.images, preprocessing)
    return normalize(images, preprocessing)


def _identity(batch: Batch) -> Batch:
    return batch


def _small_images(split: Split, preprocessing: Preprocessing) -> SmallImages | None:
    """The split decoded into memory; None unless its images have one size, no larger than the input, and fit there."""
    (height, width), mode = preprocessing.image_size, preprocessing.mode
    try:
        first = decode(split.image_records(np.array([0]))[0], split.name, mode=mode)
        too_many = len(split) * len(mode) * first.width * first.height > DECODED_CACHE_BYTES
        if first.width > width or first.height > height or too_many:
            return None
        pixels = torch.empty(len(split), len(mode), first.height, first.width, dtype=torch.uint8)
        for start in range(0, len(split), 1024):
            indices = np.arange(start, min(start + 1024, len(split)))
            for i, record in zip(indices, split.image_records(indices), strict=True):
                image = decode(record, split.name, mode=mode)
                if image.size != first.size:
                    return None
                pixels[i] = to_tensor(image)
    except BadImage:
        return None  # the workers' path names and counts it
    return SmallImages(pixels, torch.from_numpy(split.labels))
