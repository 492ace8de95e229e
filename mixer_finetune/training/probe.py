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
from torch import Tensor, nn

from mixer_finetune.errors import UserError
from mixer_finetune.training.features import extractor_of, split_features
from mixer_finetune.training.ridge import Ridge

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
    ridge = Ridge.fit(features, labels, classes)
    if penalty is None:
        tried = [factor * ridge.scale for factor in _PENALTIES]
        errors = [float((ridge.left_out(each) - ridge.targets).square().sum()) for each in tried]
        penalty = tried[int(np.argmin(errors))]
    answers = ridge.left_out(penalty)
    several, right = labels.ndim == 2, ridge.targets > 0
    hits = (answers > 0) == right if several else answers.argmax(-1) == labels.cpu()
    return Probe(*ridge.solution(penalty), penalty, _best_scale(answers, right, several), float(hits.double().mean()))


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

    Processes share the work on the features (`features`), and each computes the same probe of them.

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


def pre_logits(module: Any, data: Any) -> tuple[Tensor, Tensor]:
    """Features (n, C) and labels (n,) of the training images that could be decoded, unaugmented, in their order."""
    features = split_features(extractor_of(module), data, "train")
    good = torch.from_numpy(features.good)
    return features.layer()[good], torch.from_numpy(data.splits["train"].labels)[good]
