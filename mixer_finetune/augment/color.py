"""Brightness, contrast and saturation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mixer_finetune.augment.step import Step, check_between, colors_of, with_alpha
from mixer_finetune.backbones.preprocessing import Preprocessing


@dataclass(frozen=True)
class ColorJitter:
    """Colour jitter.

    Attributes:
        color_jitter: Brightness, contrast and saturation each vary by this much (0 to 1).
    """

    color_jitter: float = 0.0

    def check(self) -> None:
        """Refuse a strength out of range."""
        check_between(0, 1, color_jitter=self.color_jitter)

    def step(self, preprocessing: Preprocessing) -> Step | None:
        """Jitter, where it is asked for."""
        return Step(partial(color_jitter, strength=self.color_jitter), 1, 3) if self.color_jitter else None


def color_jitter(images: Tensor, targets: Tensor, u: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Scale brightness, contrast and saturation, each by a factor in 1 -+ strength; u (B, 3)."""
    factors = 1 + strength * (2 * u - 1)
    brightness, contrast, saturation = factors.T[..., None, None, None]  # each (B, 1, 1, 1)
    x = colors_of(images).float() * brightness
    x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrast)
    x = torch.lerp(x.mean(1, keepdim=True), x, saturation)
    return with_alpha(x.clamp_(0, 255), images), targets
