"""Confident learning: which labels are likely wrong, from probabilities of a model that has not seen them.

After Northcutt, Jiang and Chuang, "Confident Learning", 2021 (arXiv 1911.00068), section 3: a class is confident for
an image when its probability reaches the mean probability of that class over the images that have its label. An image
whose most probable confident class is not its label is an off-diagonal entry of the confident joint: a likely error.

Shapes: n images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Images whose probabilities are compared at once.
_ROWS = 2**14


@dataclass(frozen=True)
class LabelErrors:
    """Of all images.

    Attributes:
        margin: (n,) the probability of the label less that of the most probable other class, -1 to 1: the lower, the
            likelier is an error.
        suggested: (n,) the most probable class.
        likely: (n,) whether the label is likely wrong.
        thresholds: (K,) from which probability on a class is confident; above 1 for one that no image has.
    """

    margin: NDArray[np.float32]
    suggested: NDArray[np.int64]
    likely: NDArray[np.bool_]
    thresholds: NDArray[np.float64]

    @property
    def order(self) -> NDArray[np.int64]:
        """All images, the likeliest error first, (n,)."""
        return np.argsort(self.margin, kind="stable")


def find_label_errors(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> LabelErrors:
    """Compare labels with what a model says that has not seen them.

    Args:
        probabilities: (n, K).
        labels: (n,) class numbers.
    """
    n, classes = probabilities.shape
    own = probabilities[np.arange(n), labels].astype(np.float64)
    counts = np.bincount(labels, minlength=classes)
    thresholds = np.where(counts > 0, np.bincount(labels, own, classes) / np.maximum(counts, 1), 2.0)
    margin, suggested, likely = np.empty(n, np.float32), np.empty(n, np.int64), np.empty(n, np.bool_)
    for start in range(0, n, _ROWS):
        rows = slice(start, min(start + _ROWS, n))
        part, given = probabilities[rows].astype(np.float64), labels[rows]
        suggested[rows] = part.argmax(1)
        confident = np.where(part >= thresholds - 1e-6, part, -1.0)
        meant = confident.argmax(1)
        # One whose label is the most probable class is none, however rarely that class is so sure of itself.
        likely[rows] = (confident.max(1) >= 0) & (meant != given) & (suggested[rows] != given)
        part[np.arange(len(part)), given] = -1.0
        margin[rows] = own[rows] - part.max(1)
    return LabelErrors(margin, suggested, likely, thresholds)
