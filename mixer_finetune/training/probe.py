"""LP-FT: a head that starts from a linear probe, computed before the first step (arXiv 2202.10054).

The probe is a ridge regression of targets +-1 on the pre-logits of the training images, as they are evaluated, in
closed form, in float64: what scikit-learn's RidgeClassifier computes. Its penalty is the one of the smallest
leave-one-out error, which has a closed form too, and so no other images are needed.

Shapes: n images, C channels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_finetune.data.batches import batch_dataset, batch_loader
from mixer_finetune.data.preparing import evaluation_images
from mixer_finetune.data.sampling import EvaluationSampler
from mixer_finetune.errors import UserError

# Penalties that are tried, in units of the mean eigenvalue of the features' scatter.
_PENALTIES = tuple(10.0**exponent for exponent in range(-6, 3))


@dataclass(frozen=True)
class Probe:
    """A ridge regression, and the scale that makes logits of it.

    Attributes:
        weight: (K, C), of the regression to +-1.
        bias: (K,).
        penalty: On the squared weights.
        scale: What the regression is multiplied by to be logits: the one of the smallest leave-one-out cross-entropy.
            Without it the first steps would do little but lengthen the head.
        accuracy: Share of the images that are answered rightly by the regression on all the others; of several labels,
            the share of the labels.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    scale: float
    accuracy: float


@torch.no_grad()
def fit_probe(features: Tensor, labels: Tensor, classes: int, penalty: float | None = None) -> Probe:
    """The ridge regression of the labels on the features.

    Args:
        features: (n, C).
        labels: (n,) class numbers, or (n, K) of 0 and 1 where images may have several.
        classes: K.
        penalty: On the squared weights (scikit-learn's `alpha`); the one of the smallest leave-one-out error when not
            given.
    """
    x, n = features.double().cpu(), len(features)
    several = labels.ndim == 2
    y = 2 * (labels.cpu() if several else F.one_hot(labels.cpu(), classes)).double() - 1
    x_mean, y_mean = x.mean(0), y.mean(0)
    centred = x - x_mean
    values, vectors = torch.linalg.eigh(centred.T @ centred)  # (C,), (C, C)
    values = values.clamp(min=0)
    turned = centred @ vectors  # (n, C)
    products = turned.T @ (y - y_mean)  # (C, K)

    def left_out(penalty: float) -> Tensor:
        """What the regression on all other images answers for each image, (n, K)."""
        shrunk = 1 / (values + penalty)
        leverage = 1 / n + (turned.square() @ shrunk)
        residuals = y - y_mean - turned @ (shrunk[:, None] * products)
        answers: Tensor = y - residuals / (1 - leverage).clamp(min=1e-9)[:, None]
        return answers

    if penalty is None:
        tried = [factor * max(float(values.mean()), 1e-12) for factor in _PENALTIES]
        errors = [float((left_out(each) - y).square().sum()) for each in tried]
        penalty = tried[int(np.argmin(errors))]
    weight = (vectors @ (products / (values + penalty)[:, None])).T  # (K, C)
    answers = left_out(penalty)
    return Probe(
        weight,
        y_mean - weight @ x_mean,
        penalty,
        _best_scale(answers, y > 0, several),
        float(((answers > 0) == (y > 0) if several else answers.argmax(-1) == labels.cpu()).double().mean()),
    )


def _best_scale(answers: Tensor, right: Tensor, several: bool) -> float:
    """The scale of the smallest cross-entropy, in [0.1, 100]: by bisection of its derivative, which only grows.

    Args:
        answers: (n, K).
        right: (n, K), true for the labels of an image.
        several: Whether each class has a sigmoid of its own.
    """
    low, high = 0.1, 100.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        logits = middle * answers
        probabilities = logits.sigmoid() if several else logits.softmax(-1)
        slope = float(((probabilities - right.double()) * answers).sum(-1).mean())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return low


def start_from_probe(module: Any, data: Any) -> str:
    """Give a MixerClassifier's head the weights of a probe on the training images of its data module.

    Every process takes all images, in the same batches, and so computes the same probe.

    Args:
        module: On its device.
        data: An ImageDataModule.

    Returns:
        What was done, in a few words for the user.

    Raises:
        UserError: The data module has no splits to take images of.
    """
    head = module.head
    if not hasattr(data, "splits") or not isinstance(head, nn.Linear):
        problem = "a probe needs the images of an ImageDataModule, and a linear head"
        raise UserError(problem, option="head", choices="new")
    features, labels = pre_logits(module, data)
    probe = fit_probe(features, labels, head.out_features)
    with torch.no_grad():
        head.weight.copy_(probe.scale * probe.weight)
        head.bias.copy_(probe.scale * probe.bias)
    return (
        f"head of {head.out_features} classes from a probe on {len(labels):,} training images "
        f"({probe.accuracy:.1%} of {'labels' if labels.ndim == 2 else 'images'} left out are answered rightly)"
    )


@torch.no_grad()
def pre_logits(module: Any, data: Any) -> tuple[Tensor, Tensor]:
    """Features (n, C) and labels (n,) of the training split, unaugmented, in its order."""
    split, preprocessing = data.require("train"), data.preprocessing
    images = batch_dataset(split, preprocessing)
    loader = batch_loader(images, EvaluationSampler(len(split), data.eval_batch_size), data.num_workers)
    backbone, training = module.backbone, module.training
    features, labels = [], []
    module.eval()
    for batch in loader:
        batch = data.on_before_batch_transfer(batch, 0)
        batch = data.transfer_batch_to_device(batch, module.device, 0)
        if len(batch.images):
            features.append(backbone(evaluation_images(batch, preprocessing).to(module.dtype)).cpu())
            labels.append(batch.labels.cpu())
    module.train(training)
    return torch.cat(features), torch.cat(labels)
