"""Mirroring left-right."""

from __future__ import annotations

import torch
from torch import Tensor


def flip(images: Tensor, targets: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror half of the images; u (B, 1)."""
    mirrored = u[:, 0] < 0.5
    if images.device.type != "cpu":
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images), targets
    images = images.clone()
    for i in mirrored.nonzero()[:, 0].tolist():  # a tenth of the time that it takes at once
        images[i] = images[i].flip(-1)
    return images, targets
