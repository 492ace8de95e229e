"""Focal loss (arXiv 1708.02002): what is answered rightly and surely counts less."""

from __future__ import annotations

from torch import Tensor

from mixer_finetune.training.losses.settings import Settings


def per_image(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """Logits and targets, (b, C) each, to the losses, (b,)."""
    log_p = logits.log_softmax(-1)
    return -(targets * (1 - log_p.exp()) ** settings.focal_gamma * log_p).sum(-1)
