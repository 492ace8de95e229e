"""Which steps a batch of training images goes through, in which order, and each one's share of the random numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixer_finetune.backbones.preprocessing import Preprocessing, normalize
from mixer_finetune.data.augment.color import color_jitter
from mixer_finetune.data.augment.erasing import random_erasing
from mixer_finetune.data.augment.flip import flip
from mixer_finetune.data.augment.rotation import rotation
from mixer_finetune.data.augment.settings import Augmentation
from mixer_finetune.randomness import AUGMENT, uniform


class Step(NamedTuple):
    """An augmentation of a batch, and which uniform numbers of a sample are its own.

    Attributes:
        apply: `(images, targets, u) -> (images, targets)`; u (B, draws).
        first: Its first number among those of the sample; no two steps share one.
        draws: How many it takes.
    """

    apply: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    first: int
    draws: int


def steps_of(augmentation: Augmentation, preprocessing: Preprocessing, flipped: bool = False) -> tuple[Step, ...]:
    """The steps that are asked for, in order.

    Args:
        augmentation: What is asked for.
        preprocessing: Of the backbone.
        flipped: Whether the images are mirrored already.
    """
    asked = augmentation
    # The numbers stay with their step for good: a step that moved would change every run with the same seed.
    steps = (
        (asked.flip and not flipped, Step(flip, 0, 1)),
        (asked.rotation, Step(partial(rotation, most=asked.rotation), 9, 1)),
        (asked.color_jitter, Step(partial(color_jitter, strength=asked.color_jitter), 1, 3)),
        (
            asked.random_erasing,
            Step(partial(random_erasing, probability=asked.random_erasing, mean=preprocessing.mean), 4, 5),
        ),
    )
    return tuple(step for wanted, step in steps if wanted)


def augment_batch(
    images: Tensor,
    targets: Tensor,
    steps: tuple[Step, ...],
    preprocessing: Preprocessing,
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
) -> tuple[Tensor, Tensor]:
    """Take a training batch through the steps and normalise it, on the batch's device.

    Args:
        images: (B, c, S, T), uint8 or float32, in 0..255.
        targets: Of the samples, (B, ...).
        steps: From `steps_of`.
        preprocessing: Mean and standard deviation.
        seed: Of the run.
        epoch: Counted from 0.
        indices: Of the samples, (B,).

    Returns:
        Images (B, c, S, T) float32, normalised, and their targets.
    """
    if not len(images):  # none could be decoded
        return images.float(), targets
    if steps:
        draws = max(step.first + step.draws for step in steps)
        u = torch.from_numpy(uniform(seed, AUGMENT, epoch, indices, draws)).float()
        u = u.to(images.device, non_blocking=True)
        for step in steps:
            images, targets = step.apply(images, targets, u[:, step.first : step.first + step.draws])
    return normalize(images, preprocessing), targets
