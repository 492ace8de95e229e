"""What is asked of an image, and how an answer is judged. Nothing else asks which task it is.

Shapes: B images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from mixer_finetune.errors import UserError
from mixer_finetune.training.metrics import ExactMatch, LabelF1, MacroF1, MeanAveragePrecision

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
        rows: (targets, probabilities (B, C)) to what is kept of each image for its predictions, as parts (B, columns).
        confidences: (targets, probabilities (B, C)) to the probability of each answer and whether
            it is right, (n,) both.
        as_targets: Targets as rows (B, columns) of floats to what they were.
        target_columns: Number of classes to the columns of such rows.
        losses_allowed: Names of the losses that fit; None for all.
        loss_form: Which function of their files is the task's.
        balanced: (images of each class (C,), all images) to weights of the classes that balance them, as scikit-learn's
            "balanced".
        weighted: (logits (B, C), targets, those weights, label smoothing) to the loss of each image, (B,); None where
            it is the loss times the weight of the image's class.
        check: Raises a UserError for targets that are not the task's.
        divergences: (logits (B, C), a teacher's (B, C)) to the Kullback-Leibler divergence of each image's
            probabilities from the teacher's, (B,).
        answers: Logits (B, C) to what they say, as hard targets.
    """

    name: str
    losses: Callable[[Tensor, Tensor, float], Tensor]
    soft: Callable[[Tensor, Tensor, float], Tensor]
    probabilities: Callable[[Tensor], Tensor]
    right: Callable[[Tensor, Tensor], Tensor]
    metrics: Callable[[int], dict[str, Metric]]
    monitor: str
    rows: Callable[[Tensor, Tensor], list[Tensor]]
    confidences: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    as_targets: Callable[[Tensor], Tensor]
    target_columns: Callable[[int], int]
    losses_allowed: tuple[str, ...] | None
    loss_form: str
    balanced: Callable[[Tensor, int], Tensor]
    weighted: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None
    check: Callable[[Tensor], None]
    divergences: Callable[[Tensor, Tensor], Tensor]
    answers: Callable[[Tensor], Tensor]


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


def _most_probable(labels: Tensor, probabilities: Tensor) -> list[Tensor]:
    top = probabilities.topk(min(TOP_K, probabilities.shape[-1]))
    return [labels[:, None], top.indices, top.values]


def _first_answers(labels: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    first = probabilities.max(-1)
    return first.values, first.indices == labels


def _half_way(targets: Tensor, logits: Tensor, label_smoothing: float) -> Tensor:
    """Targets, each brought that share of the way to one half."""
    return targets.to(logits) * (1 - label_smoothing) + label_smoothing / 2


def _binary(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    soft = _half_way(targets, logits, label_smoothing)
    return F.binary_cross_entropy_with_logits(logits, soft, reduction="none").sum(-1)


def _balanced_of_each(counts: Tensor, images: int) -> Tensor:
    """Weights of the images without and with each class, (2, C): each class is a problem of two of its own."""
    return images / (2 * torch.stack([images - counts, counts]).double().clamp(min=1))


def _weighted_binary(logits: Tensor, targets: Tensor, weights: Tensor, label_smoothing: float) -> Tensor:
    soft, (without, with_it) = _half_way(targets, logits, label_smoothing), weights.to(logits)
    weight = torch.lerp(without, with_it, targets.to(logits))
    return F.binary_cross_entropy_with_logits(logits, soft, weight, reduction="none").sum(-1)


def _divergences(logits: Tensor, teachers: Tensor) -> Tensor:
    wanted = teachers.log_softmax(-1)
    return F.kl_div(logits.log_softmax(-1), wanted, reduction="none", log_target=True).sum(-1)


def _divergences_of_each(logits: Tensor, teachers: Tensor) -> Tensor:
    """The sum over the classes, each of which is a problem of two of its own."""
    wanted = teachers.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (cross - F.binary_cross_entropy_with_logits(teachers, wanted, reduction="none")).sum(-1)


def _multilabel_metrics(classes: int) -> dict[str, Metric]:
    return {
        "map": MeanAveragePrecision(classes),
        "macro_f1": LabelF1(classes, "macro"),
        "micro_f1": LabelF1(classes, "micro"),
        "exact_match": ExactMatch(),
    }


def _check_distribution(targets: Tensor) -> None:
    if targets.ndim == 2 and not torch.allclose(targets.float().sum(-1), targets.new_ones(()).float(), atol=1e-2):
        problem = "the targets are (B, classes), and those of an image do not add up to 1, so it has not one label"
        raise UserError(problem, option="task", choices="multi_label")


def _check_of_each(targets: Tensor) -> None:
    if targets.ndim != 2:
        problem = f"targets of several labels an image are (B, classes) of 0 and 1, got {tuple(targets.shape)}"
        raise UserError(problem, option="task", choices="single_label")


# One label an image: targets are class numbers, (B,), or where training mixes images a distribution, (B, C).
SINGLE_LABEL = Task(
    name="single_label",
    losses=_cross_entropy,
    soft=_distribution,
    probabilities=lambda logits: logits.softmax(-1),
    right=_right,
    metrics=_multiclass_metrics,
    monitor="accuracy",
    rows=_most_probable,
    confidences=_first_answers,
    as_targets=lambda rows: rows[:, 0].long(),
    target_columns=lambda classes: 1,
    losses_allowed=None,
    loss_form="per_image",
    balanced=lambda counts, images: counts.sum() / (len(counts) * counts.double()),
    weighted=None,
    check=_check_distribution,
    divergences=_divergences,
    answers=lambda logits: logits.argmax(-1),
)

# Several labels an image: targets are 0 or 1 for each class, (B, C), or where training mixes images between them.
MULTI_LABEL = Task(
    name="multi_label",
    losses=_binary,
    soft=_half_way,
    probabilities=lambda logits: logits.sigmoid(),
    right=lambda logits, targets: ((logits >= 0) == (targets > 0.5)).all(-1).sum(),
    metrics=_multilabel_metrics,
    monitor="map",
    rows=lambda targets, probabilities: [targets, probabilities],
    confidences=lambda targets, probabilities: (probabilities.flatten(), targets.flatten() > 0.5),
    as_targets=lambda rows: rows,
    target_columns=lambda classes: classes,
    losses_allowed=("cross_entropy", "binary", "focal"),
    loss_form="of_each_class",
    balanced=_balanced_of_each,
    weighted=_weighted_binary,
    check=_check_of_each,
    divergences=_divergences_of_each,
    answers=lambda logits: (logits >= 0).to(logits),
)
TASKS = {task.name: task for task in (SINGLE_LABEL, MULTI_LABEL)}
