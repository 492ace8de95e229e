"""Random erasing (Zhong et al. 2017, arXiv 1708.04896)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mixer_finetune.augment.step import Step, check_between
from mixer_finetune.backbones.preprocessing import Preprocessing, per_channel


@dataclass(frozen=True)
class RandomErasing:
    """Random erasing.

    Attributes:
        random_erasing: Probability that a rectangle of 2% to 33% of the image is set to the mean colour.
    """

    random_erasing: float = 0.0

    def check(self) -> None:
        """Refuse what is no probability."""
        check_between(0, 1, random_erasing=self.random_erasing)

    def step(self, preprocessing: Preprocessing) -> Step | None:
        """Erasing, where it is asked for."""
        if not self.random_erasing:
            return None
        return Step(partial(random_erasing, probability=self.random_erasing, mean=preprocessing.mean), 4, 5)


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
