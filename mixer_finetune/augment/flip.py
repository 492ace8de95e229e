"""Mirroring left-right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixer_finetune.augment.step import Step
from mixer_finetune.backbones.preprocessing import Preprocessing


@dataclass(frozen=True)
class Flip:
    """Mirroring.

    Attributes:
        flip: Mirror training images left-right, half of the time.
    """

    flip: bool = True

    def step(self, preprocessing: Preprocessing) -> Step | None:
        """Mirroring, where it is asked for."""
        return Step(flip, 0, 1) if self.flip else None


def flip(images: Tensor, targets: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror half of the images; u (B, 1)."""
    mirrored = u[:, 0] < 0.5
    if images.device.type != "cpu":
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images), targets
    images = images.clone()
    for i in mirrored.nonzero()[:, 0].tolist():  # a tenth of the time that it takes at once
        images[i] = images[i].flip(-1)
    return images, targets
