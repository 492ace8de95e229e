"""Focal loss (arXiv 1708.02002): what is answered rightly and surely counts less."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mixer_finetune.training.losses.settings import Settings


def per_image(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """Logits and targets, (b, C) each, to the losses, (b,)."""
    log_p = logits.log_softmax(-1)
    return -(targets * (1 - log_p.exp()) ** settings.focal_gamma * log_p).sum(-1)


def of_each_class(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """The same with a sigmoid for each class, as in the paper, without its alpha; summed over the classes."""
    log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
    yes = targets * log_no.exp() ** settings.focal_gamma * log_yes
    no = (1 - targets) * log_yes.exp() ** settings.focal_gamma * log_no
    return -(yes + no).sum(-1)
