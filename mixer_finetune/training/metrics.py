"""Metrics that torchmetrics has, in a form that stays cheap where there are many classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


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


class LabelF1(Metric):
    """F1 where an image has several labels: each class is an answer from a probability of one half on.

    Args:
        num_classes: C.
        average: "macro", the mean over the classes that occur, as label or as answer; or "micro", over all labels.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int, average: str) -> None:
        super().__init__()
        self.average = average
        # Of each class: answered rightly, answered, labelled.
        self.add_state("counts", torch.zeros(3, num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count logits (b, C) against targets (b, C)."""
        answers, labels = logits >= 0, targets > 0.5
        self.counts += torch.stack([(answers & labels).sum(0), answers.sum(0), labels.sum(0)])

    def compute(self) -> Tensor:
        """The mean, a scalar; 0 where nothing was counted."""
        right, both = self.counts[0], self.counts[1] + self.counts[2]
        if self.average == "micro":
            return 2 * right.sum() / both.sum().clamp(min=1)
        occurs = both > 0
        return (2 * right[occurs] / both[occurs]).sum() / occurs.sum().clamp(min=1)


class ExactMatch(Metric):
    """Share of images all of whose labels are answered rightly."""

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")  # right, all

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count logits (b, C) against targets (b, C)."""
        right = ((logits >= 0) == (targets > 0.5)).all(-1).sum()
        self.counts += torch.stack([right, torch.full_like(right, len(logits))])

    def compute(self) -> Tensor:
        """The share, a scalar; 0 where nothing was counted."""
        return self.counts[0] / self.counts[1].clamp(min=1)


class MeanAveragePrecision(Metric):
    """Mean of the classes' average precisions, of those that have images; exact, from all answers.

    Args:
        num_classes: C.
    """

    full_state_update = False
    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Keep logits (b, C) and targets (b, C)."""
        self.scores.append(logits.float())
        self.targets.append(targets > 0.5)

    def compute(self) -> Tensor:
        """The mean, a scalar; 0 where no class has an image."""
        of_each = average_precision(dim_zero_cat(self.scores), dim_zero_cat(self.targets))
        return of_each.nanmean().nan_to_num(0.0)


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Area under the curve of precision over recall, by steps, of each class, (C,); no number where it has no image.

    Args:
        scores: (n, C); equal ones count together.
        targets: (n, C), true where an image has a label.
    """
    found = scores.new_full((scores.shape[1],), torch.nan)
    for c in range(scores.shape[1]):
        ordered, at = scores[:, c].sort(descending=True, stable=True)
        right = targets[at, c].long().cumsum(0)  # of whole numbers: of others it is not deterministic on a GPU
        if not len(right) or right[-1] == 0:
            continue
        last = torch.cat([ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)])  # of each equal score
        hits, seen = right[last], torch.arange(1, len(right) + 1, device=right.device)[last]
        gained = torch.diff(hits, prepend=hits.new_zeros(1))
        found[c] = (gained * hits / seen).sum() / right[-1]
    return found
