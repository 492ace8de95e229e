"""A batch of training images, from the crop to what the backbone takes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixer_finetune.augment.mix import DRAWS, mix_batch
from mixer_finetune.augment.settings import Augmentation
from mixer_finetune.augment.step import Step
from mixer_finetune.backbones.preprocessing import Preprocessing, normalize
from mixer_finetune.randomness import AUGMENT, MIX, uniform


def augment_batch(
    images: Tensor,
    targets: Tensor,
    steps: tuple[Step, ...],
    preprocessing: Preprocessing,
    seed: int,
    epoch: int,
    keys: NDArray[np.int64],
) -> tuple[Tensor, Tensor]:
    """Take a training batch through the steps and normalise it, on the batch's device.

    Args:
        images: (B, c, S, T), uint8 or float32, in 0..255.
        targets: Of the samples, (B, ...).
        steps: From `Augmentation.steps`.
        preprocessing: Mean and standard deviation.
        seed: Of the run.
        epoch: Counted from 0.
        keys: Of the samples, (B,): their indices, where none comes twice.

    Returns:
        Images (B, c, S, T) float32, normalised, and their targets.
    """
    if not len(images):  # none could be decoded
        return images.float(), targets
    if steps:
        draws = max(step.first + step.draws for step in steps)
        u = torch.from_numpy(uniform(seed, AUGMENT, epoch, keys, draws)).float()
        u = u.to(images.device, non_blocking=True)
        for step in steps:
            images, targets = step.apply(images, targets, u[:, step.first : step.first + step.draws])
    return normalize(images, preprocessing), targets


def mix_samples(
    images: Tensor,
    targets: Tensor,
    augmentation: Augmentation,
    classes: int,
    seed: int,
    epoch: int,
    keys: NDArray[np.int64],
    unpaired: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Mix each image of a micro-batch with the one before it, as `mix_batch` says.

    Args:
        images: (1 + b, c, S, T) float32, normalised.
        targets: Of the samples, (1 + b, ...).
        augmentation: How they are mixed.
        classes: C.
        seed: Of the run.
        epoch: Counted from 0.
        keys: Of the samples, (1 + b,).
        unpaired: Which of the b images stay as they are.

    Returns:
        Images (b, c, S, T) and soft targets (b, C) float32.
    """
    u = torch.from_numpy(uniform(seed, MIX, epoch, keys[1:], DRAWS)).float().to(images.device, non_blocking=True)
    return mix_batch(images, targets, u, augmentation, classes, unpaired)
