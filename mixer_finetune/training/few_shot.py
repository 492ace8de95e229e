"""Few-shot accuracy as big_vision measures it (`evaluators/fewshot_lsr.py`), which the papers' few-shot figures are of.

Pre-logits standardised by the chosen images (standard deviation + 1e-5), a bias feature of 100, targets +-1, ridge
regression with a penalty of 2^10. The images of a seed are big_vision's where the data is in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixer_finetune.training.ridge import Ridge

SHOTS = (1, 5, 10, 25)
PENALTY = 2.0**10
_BIAS, _SMALLEST_STD = 100.0, 1e-5


def chosen_images(labels: NDArray[np.int64], classes: int, seed: int) -> list[NDArray[np.int64]]:
    """The images of each class in the order of that seed: a few-shot task takes the first of each.

    Args:
        labels: (n,) class numbers.
        classes: How many there are.
        seed: Of NumPy's default generator.
    """
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(labels == each)) for each in range(classes)]


@torch.no_grad()
def few_shot_accuracies(
    features: Tensor,
    labels: NDArray[np.int64],
    classes: int,
    others: Tensor,
    answers: NDArray[np.int64],
    shots: Sequence[int] = SHOTS,
    seeds: int = 3,
) -> dict[int, list[float]]:
    """Share of other images that are answered rightly, for each number of shots a list over seeds.

    Args:
        features: (n, C) of the images to choose from.
        labels: (n,) theirs.
        classes: Of the data.
        others: (m, C) of the images to classify.
        answers: (m,) theirs.
        shots: Images of a class; a class that has fewer gives all it has.
        seeds: How often images are chosen, with the seeds 0, 1, ...
    """
    found: dict[int, list[float]] = {count: [] for count in shots}
    for seed in range(seeds):
        of_class = chosen_images(labels, classes, seed)
        for count in shots:
            at = torch.from_numpy(np.concatenate([images[:count] for images in of_class]))
            x = features[at].double()
            mean, std = x.mean(0), x.std(0, correction=0) + _SMALLEST_STD
            ridge = Ridge.fit(_with_bias((x - mean) / std), torch.from_numpy(labels)[at], classes, intercept=False)
            right = 0
            for rows, labelled in zip(
                torch.split(others, 2**15), torch.split(torch.from_numpy(answers), 2**15), strict=True
            ):
                right += round(ridge.accuracies(_with_bias((rows.double() - mean) / std), labelled, [PENALTY])[0]
                               * len(rows))  # fmt: skip
            found[count].append(right / len(answers))
    return found


def _with_bias(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, 1), value=_BIAS)
