"""What each augmentation is made of: its options, and the step that a batch goes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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
