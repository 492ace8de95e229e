"""What training minimises: the sum of a loss over the images of a micro-batch.

Shapes: b images, C classes. Targets are class numbers, (b,), or soft: a distribution over the classes, (b, C).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_finetune.errors import UserError
from mixer_finetune.training.task import Task

LossName = Literal["cross_entropy", "binary", "focal", "logit_adjusted"]


@dataclass(frozen=True)
class Loss:
    """A loss, ready for the classes of the data.

    Attributes:
        task: Whose own loss `cross_entropy` is.
        name: cross_entropy; binary (a sigmoid for each class, summed over the classes, as in big_vision and in
            "ResNet strikes back", arXiv 2110.00476); focal (1708.02002); logit_adjusted (2007.07314).
        label_smoothing: Share of the target spread evenly over the classes.
        focal_gamma: Exponent of the focal loss; 0 is cross-entropy.
        weights: Of the classes, (C,), or None. The loss of an image is multiplied by its class's, and no batch is
            normalised by its weights, so that micro-batches change nothing.
        log_prior: Logarithm of the classes' shares of the training images, (C,), for `logit_adjusted`.
    """

    task: Task
    name: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    weights: Tensor | None = None
    log_prior: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (b, C) and targets to the sum of the images' losses, a scalar."""
        if self.name in ("cross_entropy", "logit_adjusted"):
            if self.log_prior is not None:
                logits = logits + self.log_prior.to(logits)
            if self.weights is None:
                return self.task.loss(logits, targets, self.label_smoothing)
        smooth = smoothed(targets, logits, self.label_smoothing)  # (b, C)
        if self.name == "binary":
            losses = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").sum(-1)
        else:
            log_p = logits.log_softmax(-1)
            factors = (1 - log_p.exp()) ** self.focal_gamma if self.name == "focal" else 1.0
            losses = -(smooth * factors * log_p).sum(-1)  # (b,)
        if self.weights is not None:
            weights = self.weights.to(logits)
            losses = losses * (weights[targets] if targets.ndim == 1 else targets.to(logits) @ weights)
        return losses.sum()


def smoothed(targets: Tensor, logits: Tensor, label_smoothing: float) -> Tensor:
    """Targets as distributions, (b, C): a share of each spread evenly over the classes."""
    classes = logits.shape[-1]
    soft = F.one_hot(targets, classes).to(logits) if targets.ndim == 1 else targets.to(logits)
    return soft * (1 - label_smoothing) + label_smoothing / classes


def make_loss(task: Task, options: Any, data: Any) -> Loss:
    """The loss for a data set.

    Args:
        task: What is asked of an image.
        options: Of the classifier: loss, label_smoothing, focal_gamma, and class_weights: balanced has classes weigh
            inversely to how often they occur, n / (C n_c), as scikit-learn's "balanced".
        data: The data module; its training images are counted where the loss depends on how often a class occurs.

    Raises:
        UserError: They have to be counted, and can't be; or the imbalance would be corrected twice.
    """
    made = Loss(task, options.loss, options.label_smoothing, options.focal_gamma)
    balanced, adjusted = options.class_weights == "balanced", options.loss == "logit_adjusted"
    if not balanced and not adjusted:
        return made
    option, neutral = ("class_weights", "none") if balanced else ("loss", "cross_entropy")
    if getattr(data, "sampling", None) == "balanced":
        problem = f"balanced sampling and {option.replace('_', ' ')} correct the same imbalance twice"
        raise UserError(problem.replace("and loss", "and the logit-adjusted loss"), option=option, choices=neutral)
    counts = class_counts(data)
    if counts is None:
        problem = "how often each class occurs is not known: the data module has no training labels"
        raise UserError(problem, option=option, choices=neutral)
    share = counts.double() / counts.sum()
    if balanced:
        return replace(made, weights=1 / (len(counts) * share))
    return replace(made, log_prior=share.log())


def class_counts(data: Any) -> Tensor | None:
    """Training images of each class of a data module, (C,); None where it does not say."""
    split, names = getattr(data, "splits", {}).get("train"), getattr(data, "label_names", None)
    if split is None or names is None:
        return None
    return torch.bincount(torch.from_numpy(split.labels), minlength=len(names))


def check_loss(name: str, class_weights: str) -> None:
    """Refuse what no loss is.

    Raises:
        UserError: It is none.
    """
    if name not in get_args(LossName):
        raise UserError(f"unknown loss '{name}'", option="loss", choices=", ".join(get_args(LossName)))
    if class_weights not in ("none", "balanced"):
        raise UserError(f"unknown class_weights '{class_weights}'", option="class_weights", choices="none or balanced")
    if name == "logit_adjusted" and class_weights == "balanced":
        raise UserError(
            "the logit-adjusted loss and balanced class weights correct the same imbalance twice",
            advice="leave out {class_weights} or {loss}",
        )
