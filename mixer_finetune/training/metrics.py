"""Metrics that torchmetrics has, in a form that stays cheap where there are many classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MacroF1(Metric):
    """Mean F1 of the classes that occur, as label or as answer: `MulticlassF1Score(average="macro")` of torchmetrics.

    Where algorithms are to be deterministic, theirs compares each image with each of C x C pairs of classes; this one
    counts.

    Args:
        num_classes: C.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # Of each class: answered rightly, answered, labelled.
        self.add_state("counts", torch.zeros(3, num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count logits (b, C) against labels (b,)."""
        answers = logits.argmax(-1)
        self.counts[0].index_add_(0, labels, (answers == labels).long())
        self.counts[1].index_add_(0, answers, torch.ones_like(answers))
        self.counts[2].index_add_(0, labels, torch.ones_like(labels))

    def compute(self) -> Tensor:
        """The mean, a scalar; 0 where nothing was counted."""
        right, both = self.counts[0], self.counts[1] + self.counts[2]
        occurs = both > 0
        return (2 * right[occurs] / both[occurs]).sum() / occurs.sum().clamp(min=1)
