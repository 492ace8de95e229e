"""What training minimises: the sum of a loss over the images of a micro-batch.

A loss beside the task's own is a file here, named as the loss, and its name in `LossName`. It has `per_image`, where
images may have several labels `of_each_class` (or the task does not name it among its `losses_allowed`), and
`BALANCES = True` where it corrects the imbalance of the classes by `Settings.log_prior`.

Shapes: b images, C classes. Targets are as the task has them: class numbers, (b,), or soft, (b, C).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mixer_finetune.errors import UserError
from mixer_finetune.training.losses.settings import Settings
from mixer_finetune.training.task import Task

LossName = Literal["cross_entropy", "binary", "focal", "logit_adjusted"]


@dataclass(frozen=True)
class Loss:
    """A loss, ready for the classes of the data.

    Attributes:
        task: Whose own loss `cross_entropy` is.
        name: One of `LossName`.
        settings: What it can be told.
        weights: Of the classes, as the task has them, (C,) or (2, C), or None. No batch is normalised by its weights,
            so that micro-batches change nothing.
    """

    task: Task
    name: LossName = "cross_entropy"
    settings: Settings = Settings()
    weights: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (b, C) and targets to the sum of the images' losses, a scalar."""
        smoothing = self.settings.label_smoothing
        if self.weights is not None and self.task.weighted is not None:
            return self.task.weighted(logits, targets, self.weights, smoothing).sum()
        if self.name == "cross_entropy":
            losses = self.task.losses(logits, targets, smoothing)  # (b,)
        else:
            per_image = getattr(_module(self.name), self.task.loss_form)
            losses = per_image(logits, self.task.soft(targets, logits, smoothing), self.settings)
        if self.weights is not None:
            losses = losses * (self.task.soft(targets, logits, 0.0) @ self.weights.to(logits))
        return losses.sum()


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{name}")


def make_loss(task: Task, options: Any, data: Any) -> Loss:
    """The loss for a data set.

    Args:
        task: What is asked of an image.
        options: Of the classifier: loss, label_smoothing, focal_gamma, and class_weights: balanced has classes weigh
            inversely to how often they occur, n / (C n_c), as scikit-learn's "balanced" (of several labels an image,
            each class as a problem of two).
        data: The data module; its training images are counted where the loss depends on how often a class occurs.

    Raises:
        UserError: They have to be counted, and can't be; or the imbalance would be corrected twice.
    """
    if task.losses_allowed is not None and options.loss not in task.losses_allowed:
        problem = f"the {options.loss.replace('_', '-')} loss needs one label an image, and these have several"
        raise UserError(problem, option="loss", choices=" or ".join(task.losses_allowed))
    made = Loss(task, options.loss, Settings(options.label_smoothing, options.focal_gamma))
    weighted, adjusted = options.class_weights == "balanced", _balances(options.loss)
    if not weighted and not adjusted:
        return made
    if weighted and task.weighted is not None and options.loss == "focal":
        problem = "class weights of several labels an image go with binary cross-entropy alone"
        raise UserError(problem, advice="leave out {class_weights} or {loss}")
    option, neutral = ("class_weights", "none") if weighted else ("loss", "cross_entropy")
    if getattr(data, "sampling", None) == "balanced":
        what = "class weights" if weighted else f"the {options.loss.replace('_', '-')} loss"
        problem = f"balanced sampling and {what} correct the same imbalance twice"
        raise UserError(problem, option=option, choices=neutral)
    counts = class_counts(data)
    if counts is None:
        problem = "how often each class occurs is not known: the data module has no training labels"
        raise UserError(problem, option=option, choices=neutral)
    if weighted:
        return replace(made, weights=task.balanced(counts, len(data.splits["train"])))
    return replace(made, settings=replace(made.settings, log_prior=(counts.double() / counts.sum()).log()))


def class_counts(data: Any) -> Tensor | None:
    """Training images of each class of a data module, (C,); None where it does not say."""
    split, names = getattr(data, "splits", {}).get("train"), getattr(data, "label_names", None)
    if split is None or names is None:
        return None
    return torch.from_numpy(split.class_counts(len(names)))


def check_loss(name: str, class_weights: str) -> None:
    """Refuse what no loss is.

    Raises:
        UserError: It is none.
    """
    if name not in get_args(LossName):
        raise UserError(f"unknown loss '{name}'", option="loss", choices=", ".join(get_args(LossName)))
    if class_weights not in ("none", "balanced"):
        raise UserError(f"unknown class_weights '{class_weights}'", option="class_weights", choices="none or balanced")
    if class_weights == "balanced" and _balances(name):
        raise UserError(
            f"the {name.replace('_', '-')} loss and balanced class weights correct the same imbalance twice",
            advice="leave out {class_weights} or {loss}",
        )


def _balances(name: str) -> bool:
    return name != "cross_entropy" and getattr(_module(name), "BALANCES", False)
