"""What each augmentation is made of: its options, and the step that a batch goes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mixer_finetune.errors import UserError


class Step(NamedTuple):
    """An augmentation of a batch, and which uniform numbers of a sample are its own.

    Attributes:
        apply: `(images, targets, u) -> (images, targets)`; images (B, c, S, T) in 0..255, u (B, draws).
        first: Its first number among those of the sample. No two steps share one, and the numbers stay with their step
            for good: a step that moved would change every run with the same seed.
        draws: How many it takes.
    """

    apply: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    first: int
    draws: int


def check_between(low: float, high: float, **values: float) -> None:
    """Refuse an option outside its range.

    Raises:
        UserError: It is.
    """
    for name, value in values.items():
        if not low <= value <= high:
            raise UserError(f"{name} must be from {low:g} to {high:g}, got {value}", option=name)


def colors_of(images: Tensor) -> Tensor:
    """The channels of colour, (B, 1 or 3, S, T), of images (B, c, S, T): all but the alpha channel of four."""
    return images[:, :3]


def with_alpha(colors: Tensor, images: Tensor) -> Tensor:
    """Changed colours, (B, 1 or 3, S, T), with the alpha channel of the images that they are of, where there is one."""
    return colors if images.shape[1] <= 3 else torch.cat([colors, images[:, 3:].to(colors)], 1)
