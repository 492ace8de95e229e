"""Probabilities of a linear probe for images that it has not seen.

Shapes: n images, m others, C channels, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixer_finetune.training.probe import fit_probe
from mixer_finetune.training.ridge import Ridge


@torch.no_grad()
def probe_probabilities(
    features: Tensor, labels: Tensor, classes: int, others: dict[str, Tensor]
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]], float]:
    """Probabilities of a ridge regression, its logits scaled to the smallest cross-entropy.

    Of each image that it is fitted to, the answer of the regression on all the others, in closed form: as many folds
    as there are images.

    Args:
        features: (n, C) of the images that it is fitted to.
        labels: (n,) class numbers.
        classes: K.
        others: Features (m, C) of images that it is not fitted to, by name.

    Returns:
        Probabilities (n, K), those (m, K) of the others, and the share of the n that are answered rightly.
    """
    probe = fit_probe(features, labels, classes)
    ridge = Ridge.fit(features, labels, classes)
    own = (probe.scale * ridge.left_out(probe.penalty)).softmax(-1).float().numpy()
    answered = {}
    for name, values in others.items():
        parts = [parts[0] for _, parts in ridge.answers(values, [probe.penalty])]
        answered[name] = torch.cat([(probe.scale * part).softmax(-1).float() for part in parts]).numpy()
    return own, answered, probe.accuracy
