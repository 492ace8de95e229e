"""Mirroring left-right."""

from __future__ import annotations

import torch
from torch import Tensor


def flip(images: Tensor, targets: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror half of the images; u (B, 1)."""
    return torch.where((u[:, 0] < 0.5)[:, None, None, None], images.flip(-1), images), targets
