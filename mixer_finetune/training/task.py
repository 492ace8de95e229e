"""What is asked of an image, and how an answer is judged. Nothing else asks which task it is.

Shapes: B images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from mixer_finetune.training.metrics import MacroF1

TOP_K = 5


@dataclass(frozen=True)
class Task:
    """A kind of classification.

    Attributes:
        name: For results and files.
        losses: (logits (B, C), targets, label smoothing) to the loss of each image, (B,).
        soft: (targets, logits (B, C), label smoothing) to targets of each class, (B, C).
        probabilities: Logits (B, C) to the probability of each class, (B, C).
        right: (logits (B, C), targets) to the number of images that are answered rightly, a scalar.
        metrics: Number of classes to what is measured on a split, by name.
        monitor: The metric that tells better weights from worse ones; more is better.
    """

    name: str
    losses: Callable[[Tensor, Tensor, float], Tensor]
    soft: Callable[[Tensor, Tensor, float], Tensor]
    probabilities: Callable[[Tensor], Tensor]
    right: Callable[[Tensor, Tensor], Tensor]
    metrics: Callable[[int], dict[str, Metric]]
    monitor: str


def _cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")


def _distribution(targets: Tensor, logits: Tensor, label_smoothing: float) -> Tensor:
    """A share of each target spread evenly over the classes."""
    classes = logits.shape[-1]
    soft = F.one_hot(targets, classes).to(logits) if targets.ndim == 1 else targets.to(logits)
    return soft * (1 - label_smoothing) + label_smoothing / classes


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    labels = targets if targets.ndim == 1 else targets.argmax(-1)
    return (logits.argmax(-1) == labels).sum()


def _multiclass_metrics(classes: int) -> dict[str, Metric]:
    measured: dict[str, Metric] = {
        "accuracy": MulticlassAccuracy(classes, average="micro"),
        "macro_f1": MacroF1(classes),
    }
    if classes > TOP_K:  # else every answer is among them
        measured["top5_accuracy"] = MulticlassAccuracy(classes, average="micro", top_k=TOP_K)
    return measured


# One label an image: targets are class numbers, (B,), or where training mixes images a distribution, (B, C).
SINGLE_LABEL = Task(
    name="single_label",
    losses=_cross_entropy,
    soft=_distribution,
    probabilities=lambda logits: logits.softmax(-1),
    right=_right,
    metrics=_multiclass_metrics,
    monitor="accuracy",
)
