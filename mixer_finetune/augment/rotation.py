"""Turning about the centre."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_finetune.augment.step import Step, check_between
from mixer_finetune.backbones.preprocessing import Preprocessing


@dataclass(frozen=True)
class Rotation:
    """Turning.

    Attributes:
        rotation: Turn training images by up to this many degrees, either way.
    """

    rotation: float = 0.0

    def check(self) -> None:
        """Refuse an angle out of range."""
        check_between(0, 180, rotation=self.rotation)

    def step(self, preprocessing: Preprocessing) -> Step | None:
        """Turning, where it is asked for."""
        return Step(partial(rotation, most=self.rotation), 9, 1) if self.rotation else None


def rotation(images: Tensor, targets: Tensor, u: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Turn each image by up to `most` degrees, either way; u (B, 1)."""
    return rotate_batch(images.float(), most * (2 * u[:, 0] - 1)), targets


def rotate_batch(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each of a batch of images about its centre, bilinearly; what comes into view repeats the edge.

    Args:
        images: (B, c, S, T) float32.
        degrees: (B,), anticlockwise.

    Returns:
        (B, c, S, T) float32.
    """
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    aspect = images.shape[-1] / images.shape[-2]  # coordinates run from -1 to 1 on both axes
    theta = torch.stack(
        [torch.stack([cos, -sin / aspect, zero], 1), torch.stack([sin * aspect, cos, zero], 1)], 1
    )  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
