"""Batches of a split: decoded image by image in workers, or gathered from memory where the images are small."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixer_finetune.augment import Augmentation, crop_shapes, place_crop
from mixer_finetune.backbones.cropping import cut_out, evaluation_photo
from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.data.decoded import decoded_pixels
from mixer_finetune.data.sampling import MicroBatch
from mixer_finetune.data.sizes import SizePlan
from mixer_finetune.data.sources import Split
from mixer_finetune.errors import UserError
from mixer_finetune.images import MAX_PIXELS, BadImage, open_photo
from mixer_finetune.memory import keep_freed_memory

# Most worker processes of a run's process: more cores than these decode for wait for the device.
_MOST_WORKERS = 16

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What a training or evaluation step gets.

    Attributes:
        images: (b, c, S, T): uint8 from the loader, normalised float32 once on the device; or (b, C) features of a
            frozen backbone.
        labels: (b,) int64, or (b, classes) float32 where images have several.
        indices: (b,) int64, of the samples in their split; on the CPU a NumPy array.
        keys: (b,) int64, of the samples, for what is drawn at random: see `MicroBatch`.
        epoch: Counted from 0.
        first: Position of the first sample in the global batch.
        global_size: Samples in the whole global batch.
        cropped: Whether the images have their S x T pixels; small images are cropped on the device.
        bad: Positions of images that could not be decoded, each with its name and the reason.
        notes: What had to be assumed about pixels.
        partner: Whether the first sample is there only to be mixed into the second.
        failed: Why the images can't be had at all; empty where they can.
        unpaired: Which of the others are mixed with nothing, since the one before could not be decoded.
        size: (S, T), where it is not the backbone's own.
    """

    images: Tensor
    labels: Tensor
    indices: NDArray[np.int64]
    keys: NDArray[np.int64]
    epoch: int
    first: int
    global_size: int
    cropped: bool
    bad: tuple[tuple[int, str], ...]
    notes: tuple[str, ...] = ()
    failed: str = ""
    partner: bool = False
    unpaired: tuple[int, ...] = ()
    size: tuple[int, int] | None = None


class DecodedImages(Dataset[Batch]):
    """A split whose images are decoded in the workers, one by one, and given out as uint8 batches."""

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        max_pixels: int = MAX_PIXELS,
        largest: tuple[int, int] | None = None,
    ) -> None:
        self.split, self.preprocessing, self.augmentation, self.seed = split, preprocessing, augmentation, seed
        self.max_pixels, self.largest = max_pixels, largest or preprocessing.image_size

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, micro: MicroBatch) -> Batch:
        preprocessing = self.preprocessing
        size = micro.size or preprocessing.image_size
        images = torch.empty(len(micro.indices), len(preprocessing.mean), *size, dtype=torch.uint8)
        good: list[int] = []
        bad: list[tuple[int, str]] = []
        notes: list[str] = []
        if self.augmentation is not None:
            shapes = crop_shapes(self.augmentation, self.seed, micro.epoch, micro.keys).tolist()
        try:
            records = self.split.image_records(micro.indices)
        except UserError as error:  # in a worker, out of which no error comes whole
            return Batch(
                images[:0],
                _targets(self.split.labels[:0]),
                micro.indices[:0],
                micro.keys[:0],
                micro.epoch,
                micro.first,
                micro.global_size,
                cropped=True,
                bad=(),
                failed=str(error),
            )
        for i, record in enumerate(records):
            index = micro.indices[i : i + 1]
            name = f"{self.split.name}[{int(self.split.rows[index[0]])}]"
            into = images[len(good)]
            try:
                photo = open_photo(record, name, self.max_pixels)
                if self.augmentation is None:
                    evaluation_photo(photo, preprocessing, into)
                else:
                    wide, tall, x, y = shapes[i]
                    box = place_crop(wide, tall, x, y, photo.height, photo.width, size, preprocessing.crop_mode)
                    cut_out(photo, box, preprocessing, into)
            except BadImage as error:
                bad.append((int(index[0]), str(error)))
                continue
            if photo.note and photo.note not in notes:
                notes.append(photo.note)
            good.append(i)
        unpaired: tuple[int, ...] = ()
        if micro.partner and good:
            there = set(good)
            unpaired = tuple(i - (good[0] == 0) for i, at in enumerate(good) if at and at - 1 not in there)
            if good[0]:  # the partner was bad; any image may stand in its place
                images = torch.cat([images[:1], images[: len(good)]])
                good.insert(0, good[0])
        indices = micro.indices[good]
        return Batch(
            images[: len(good)],
            _targets(self.split.labels[indices]),
            indices,
            micro.keys[good],
            micro.epoch,
            micro.first,
            micro.global_size,
            cropped=True,
            bad=tuple(bad),
            notes=tuple(notes),
            partner=micro.partner,
            unpaired=unpaired,
            size=micro.size,
        )


class SmallImages(Dataset[Batch]):
    """A split of small images of one size, decoded once and kept in memory: a batch is one gather.

    Args:
        pixels: (n, c, H, W) uint8.
        labels: (n,) int64, or (n, classes) float32.
    """

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitems__(self, micro: MicroBatch) -> Batch:
        at = torch.from_numpy(micro.indices)
        return Batch(
            self.pixels.index_select(0, at),
            self.labels[at],
            micro.indices,
            micro.keys,
            micro.epoch,
            micro.first,
            micro.global_size,
            cropped=False,
            bad=(),
            partner=micro.partner,
            size=micro.size,
        )


class FeatureRows(Dataset[Batch]):
    """A split as features of a frozen backbone, in the place of its images.

    Args:
        features: (n, C).
        labels: Of the split.
        bad: Images without features, by their position, each with its name and the reason.
    """

    def __init__(self, features: Tensor, labels: NDArray[Any], bad: Mapping[int, str]) -> None:
        self.features, self.labels, self.bad = features, _targets(labels), bad

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, micro: MicroBatch) -> Batch:
        good = ~np.isin(micro.indices, list(self.bad))
        indices = micro.indices[good]
        at = torch.from_numpy(indices)
        return Batch(
            self.features.index_select(0, at),
            self.labels[at],
            indices,
            micro.keys[good],
            micro.epoch,
            micro.first,
            micro.global_size,
            cropped=True,
            bad=tuple((index, self.bad[index]) for index in micro.indices[~good].tolist()),
        )


def batch_dataset(
    split: Split,
    preprocessing: Preprocessing,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    plan: SizePlan | None = None,
) -> Dataset[Batch]:
    """The split as a data set that gives whole batches, from memory if its images are small.

    Args:
        split: Images and labels.
        preprocessing: Of the backbone.
        augmentation: For training; None gives the evaluation crop.
        seed: Of the run.
        max_pixels: Most pixels that are decoded of one image.
        plan: Of the training images' sizes, where they have several.
    """
    # From memory images are only enlarged, and not padded.
    narrowest = preprocessing if plan is None else replace(preprocessing, image_size=plan.narrowest)
    padded = plan is not None and preprocessing.crop_mode == "border"
    pixels = None if padded else decoded_pixels(split, narrowest)
    if pixels is not None:
        return SmallImages(pixels, _targets(split.labels))
    largest = preprocessing.image_size if plan is None else plan.largest
    return DecodedImages(split, preprocessing, augmentation, seed, max_pixels, largest)


def _targets(labels: NDArray[Any]) -> Tensor:
    targets = torch.from_numpy(labels)
    return targets.float() if targets.ndim == 2 else targets


class EpochLoader(DataLoader[Batch]):
    """A loader that asks where to begin when the first batch of an iteration is asked for.

    Lightning tells epochs only to samplers of its own kind. It makes the first iterator of a run before it tells
    anything, and before its batch size finders set the size that they try.

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
        batches = super().__iter__()
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
    processes: int = 1,
) -> EpochLoader:
    """A loader of the micro-batches that a sampler names.

    Args:
        data: From `batch_dataset`.
        sampler: Yields `MicroBatch`es.
        num_workers: Processes that decode; None for as many as the machine has cores for them. Images in memory, and a
            single batch of few, need none.
        persistent: Keep the workers from epoch to epoch.
        begin: Called whenever the loader is iterated, to put the sampler where the run is.
        processes: Of the run on this machine, which share its cores.
    """
    workers, prefetch = 0, None
    if isinstance(data, DecodedImages):
        workers, prefetch = _workers(data, sampler, num_workers, processes)
    return EpochLoader(
        data,
        batch_sampler=sampler,
        num_workers=workers,
        prefetch_factor=prefetch,
        collate_fn=_identity,
        worker_init_fn=_begin_worker,
        persistent_workers=persistent and workers > 0,
        pin_memory=torch.cuda.is_available(),
        begin=begin,
    )


def _begin_worker(_: int) -> None:
    keep_freed_memory()


def _identity(batch: Batch) -> Batch:
    return batch


def _workers(data: DecodedImages, sampler: Any, asked: int | None, processes: int) -> tuple[int, int | None]:
    """How many processes decode, and how many batches each of them holds ready.

    Batches wait in shared memory, of which containers often have little (Docker: 64 MB).
    """
    if asked is None:
        asked = 0 if len(sampler) == 1 else min(max(usable_cores() // processes, 1), _MOST_WORKERS)
    workers = min(asked, len(sampler))
    if not workers:
        return 0, None
    batch = len(data.preprocessing.mean) * math.prod(data.largest) * sampler.largest
    room = _shared_memory() / 2 / processes
    prefetch = next((n for n in (4, 3, 2, 1) if workers * (n + 1) * batch <= room), 0)
    if not prefetch:
        prefetch, fitting = 1, int(room / (2 * batch))
        if fitting < workers:
            log.info(
                f"shared memory holds batches of {fitting} worker processes, not of {workers}: decoding with {fitting} "
                "(raise the size of /dev/shm)"
            )
            workers = fitting
    return workers, prefetch if workers else None


def usable_cores() -> int:
    """Cores that this process may use: of the machine, its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(min(cores, math.ceil(int(quota) / int(period))), 1)
    except (OSError, ValueError):  # no quota
        return cores


def _shared_memory() -> float:
    """Free bytes of shared memory."""
    try:
        return float(shutil.disk_usage("/dev/shm").free)
    except OSError:  # another system, which has no such limit
        return math.inf
