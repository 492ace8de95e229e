"""A sigmoid for each class, summed over the classes.

As in big_vision and in "ResNet strikes back" (arXiv 2110.00476); timm's mean is that over the number of classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mixer_finetune.training.losses.settings import Settings


def per_image(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """Logits and targets, (b, C) each, to the losses, (b,)."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)


of_each_class = per_image
