"""Confident learning: which labels are likely wrong, from probabilities of a model that has not seen the images.

After Northcutt, Jiang and Chuang, "Confident Learning", 2021 (arXiv 1911.00068). A class is confident for an image when
its probability reaches the mean probability of that class over the images that have its label. Counting labels against
the most probable confident class gives the confident joint, and from it how many images of each label belong to each
other class; so many are taken, those whose probabilities of the two differ most ("prune by noise rate").

Shapes: n images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Below that probability a model says nothing for the other class: one that is rarely right would doubt most labels.
SURE = 0.5
# Images whose probabilities are compared at once.
_ROWS = 2**14


@dataclass(frozen=True)
class LabelErrors:
    """Of all images.

    Attributes:
        confidence: (n,) the probability of the label.
        margin: (n,) that less the probability of the most probable other class, -1 to 1.
        suggested: (n,) the most probable class.
        likely: (n,) whether the label is likely wrong.
        counts: (K, K) how many images of a label (row) are estimated to be of a class (column).
    """

    confidence: NDArray[np.float32]
    margin: NDArray[np.float32]
    suggested: NDArray[np.int64]
    likely: NDArray[np.bool_]
    counts: NDArray[np.int64]

    @property
    def order(self) -> NDArray[np.int64]:
        """All images, (n,): those that are likely wrong by the label's probability, then the others by the margin."""
        return np.lexsort((np.where(self.likely, self.confidence, self.margin), ~self.likely))


def find_label_errors(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> LabelErrors:
    """Compare labels with what a model says that has not seen them.

    Args:
        probabilities: (n, K).
        labels: (n,) class numbers.
    """
    n, classes = probabilities.shape
    own = probabilities[np.arange(n), labels].astype(np.float64)
    of_class = np.bincount(labels, minlength=classes)
    means = np.bincount(labels, own, classes) / np.maximum(of_class, 1)
    thresholds = np.where(of_class > 0, means, 2.0) - 1e-6  # of rounding
    joint = np.zeros((classes, classes))
    suggested, best, margin = np.empty(n, np.int64), np.empty(n), np.empty(n)
    for start in range(0, n, _ROWS):
        rows = slice(start, min(start + _ROWS, n))
        part, given = probabilities[rows].astype(np.float64), labels[rows]
        suggested[rows], best[rows] = part.argmax(1), part.max(1)
        confident = np.where(part >= thresholds, part, -1.0)
        there = confident.max(1) >= 0
        np.add.at(joint, (given[there], confident.argmax(1)[there]), 1)
        part[np.arange(len(part)), given] = -1.0
        margin[rows] = own[rows] - part.max(1)
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))
    counts = np.rint(joint / joint.sum(1, keepdims=True) * of_class[:, None]).astype(np.int64)
    likely = np.zeros(n, np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        part = probabilities[members].astype(np.float64)
        for other in np.flatnonzero(counts[label]):
            if other != label:
                apart = part[:, label] - part[:, other]
                likely[members[np.argsort(apart, kind="stable")[: counts[label, other]]]] = True
    likely &= (suggested != labels) & (best >= SURE)
    return LabelErrors(own.astype(np.float32), margin.astype(np.float32), suggested, likely, counts)
