"""Logit-adjusted cross-entropy (arXiv 2007.07314): rare classes must win by more."""

from __future__ import annotations

from torch import Tensor

from mixer_finetune.training.losses.settings import Settings

# It corrects the imbalance of the classes, and needs to know it.
BALANCES = True


def per_image(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """Logits and targets, (b, C) each, to the losses, (b,)."""
    assert settings.log_prior is not None
    return -(targets * (logits + settings.log_prior.to(logits)).log_softmax(-1)).sum(-1)
