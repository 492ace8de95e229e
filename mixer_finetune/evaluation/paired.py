"""Tests of two answers to the same images: exact McNemar, Holm's correction, paired bootstrap.

Shapes: n images, C classes, m kinds of images that were labelled and answered alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000  # of three counts
F1_DRAWS = 1000  # of as many counts as there are kinds of images


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p value of the exact McNemar test: how likely a difference at least as large is by chance alone.

    Where both models are right or both wrong, an image says nothing about which is better. Of the others, were both as
    good, each would be as likely to be won by the one as by the other: their number is binomial (McNemar 1947).

    Args:
        only_first: Images that only the first model answered rightly.
        only_second: Images that only the second did.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    # In logarithms: 2 ** n has no float for thousands of images.
    terms = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(fewer + 1)]
    top = max(terms)
    tail = math.exp(top - n * math.log(2)) * math.fsum(math.exp(term - top) for term in terms)
    return min(1.0, 2 * tail)


def holm(values: Sequence[float]) -> list[float]:
    """P values of several tests, corrected so that one of them is below 0.05 by chance alone in 5% of cases.

    Args:
        values: Uncorrected; the corrected ones are in the same order (Holm 1979).
    """
    corrected, so_far = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        so_far = max(so_far, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = so_far
    return corrected


def share_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """How much larger the second share of right answers is, with its 95% interval by the paired percentile bootstrap.

    Args:
        first: (n,) which images the first model answered rightly.
        second: (n,) which the second did.
        seed: Of 10,000 draws of n images with replacement.
    """
    n = len(first)
    if not n:
        return 0.0, (-1.0, 1.0)
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    drawn = np.random.default_rng(seed).multinomial(n, [gained / n, lost / n, 1 - (gained + lost) / n], DRAWS)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, (0.025, 0.975))
    return (gained - lost) / n, (float(low), float(high))


def macro_f1_difference(
    labels: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64], classes: int, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """How much larger the second macro-F1 is, with its 95% interval by the paired percentile bootstrap.

    Args:
        labels: (n,) true classes.
        first: (n,) answers of the first model.
        second: (n,) answers of the second.
        classes: C.
        seed: Of 1,000 draws of n images with replacement.
    """
    n = len(labels)
    if not n:
        return 0.0, (-1.0, 1.0)
    kinds, images = np.unique(np.stack([labels, first, second], 1), axis=0, return_counts=True)
    true, *answers = kinds.T  # each (m,)

    def difference(counts: NDArray[np.int64]) -> float:
        labelled = np.bincount(true, counts, classes)
        scores = []
        for answer in answers:
            hits = answer == true
            right = np.bincount(true[hits], counts[hits], classes)
            sums = labelled + np.bincount(answer, counts, classes)
            occurs = sums > 0
            scores.append(float((2 * right[occurs] / sums[occurs]).mean()))
        return scores[1] - scores[0]

    draws = (np.random.default_rng((seed, draw)).multinomial(n, images / n) for draw in range(F1_DRAWS))
    low, high = np.quantile([difference(counts) for counts in draws], (0.025, 0.975))
    return difference(images), (float(low), float(high))
