"""Brightness, contrast and saturation."""

from __future__ import annotations

import torch
from torch import Tensor


def color_jitter(images: Tensor, targets: Tensor, u: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Scale brightness, contrast and saturation, each by a factor in 1 -+ strength; u (B, 3)."""
    factors = 1 + strength * (2 * u - 1)
    brightness, contrast, saturation = factors.T[..., None, None, None]  # each (B, 1, 1, 1)
    x = images.float() * brightness
    x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrast)
    x = torch.lerp(x.mean(1, keepdim=True), x, saturation)
    return x.clamp_(0, 255), targets
