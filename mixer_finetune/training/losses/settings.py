"""What losses can be told."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """Of a loss.

    Attributes:
        label_smoothing: Share of the target spread evenly over the classes.
        focal_gamma: Exponent of the focal loss; 0 is cross-entropy.
        log_prior: Logarithm of the classes' shares of the training images, (C,), for losses that correct imbalance.
    """

    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    log_prior: Tensor | None = None
