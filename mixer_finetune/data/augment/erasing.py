"""Random erasing (Zhong et al. 2017, arXiv 1708.04896)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixer_finetune.backbones.preprocessing import per_channel


def random_erasing(
    images: Tensor, targets: Tensor, u: Tensor, probability: float, mean: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Set a rectangle of 2% to 33% of an image to the mean colour, with that probability; u (B, 5)."""
    blank = _rectangles(u[:, 1:], *images.shape[-2:]) & (u[:, 0] < probability)[:, None, None, None]
    return torch.where(blank, 255 * per_channel(mean, images), images), targets


def _rectangles(u: Tensor, rows: int, columns: int) -> Tensor:
    """Which pixels lie in each image's rectangle, (B, 1, rows, columns); u (B, 4)."""
    area = (0.02 + (0.33 - 0.02) * u[:, 0]) * rows * columns
    aspect = torch.exp((2 * u[:, 1] - 1) * math.log(10 / 3))
    height, width = (area * aspect).sqrt().clamp(max=rows), (area / aspect).sqrt().clamp(max=columns)
    top, left = u[:, 2] * (rows - height), u[:, 3] * (columns - width)
    y, x = torch.arange(rows, device=u.device) + 0.5, torch.arange(columns, device=u.device) + 0.5
    in_rows = (y >= top[:, None]) & (y < (top + height)[:, None])  # (B, rows)
    in_columns = (x >= left[:, None]) & (x < (left + width)[:, None])
    return in_rows[:, None, :, None] & in_columns[:, None, None, :]
