"""What predictions say where images have several labels: figures of each class, and intervals.

Shapes: n images, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mixer_finetune.evaluation.label_sets import LabelSets
from mixer_finetune.evaluation.measures import BOOTSTRAP_DRAWS, CALIBRATION_BINS, wilson
from mixer_finetune.training.metrics import average_precision

# A draw of the bootstrap costs about 10 ns for each image and class.
_MOST_DRAWN = 500_000_000
_FEWEST_DRAWS = 100  # that say anything about a 95% interval
_DRAWN_AT_ONCE = 64


class LabelFigures(NamedTuple):
    """What is measured of one class.

    Attributes:
        name: Of the class.
        images: That have the label.
        recall: Share of them that were answered so; None where there are none.
        precision: Share of the answers that are right; 0 where there is none.
        f1: Harmonic mean of the two.
        average_precision: Area under precision over recall; None where no image has the label.
    """

    name: str
    images: int
    recall: float | None
    precision: float
    f1: float
    average_precision: float | None


def label_figures(found: LabelSets) -> list[LabelFigures]:
    """Figures of each class, in the order of the classes."""
    right = (found.answers & found.labels).sum(0)
    images, answered = found.labels.sum(0), found.answers.sum(0)
    recall, precision = right / np.maximum(images, 1), right / np.maximum(answered, 1)
    f1 = 2 * right / np.maximum(images + answered, 1)
    areas = _average_precision(found.probabilities, found.labels)
    return [
        LabelFigures(
            name,
            int(images[i]),
            float(recall[i]) if images[i] else None,
            float(precision[i]),
            float(f1[i]),
            float(areas[i]) if images[i] else None,
        )
        for i, name in enumerate(found.names)
    ]


def _average_precision(probabilities: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    return average_precision(torch.from_numpy(probabilities), torch.from_numpy(labels)).double().numpy()


def label_intervals(found: LabelSets, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95% intervals: Wilson's for the share of exact matches, percentile bootstraps over the images for the rest.

    Args:
        found: Of the split.
        seed: Of the bootstrap's draws; 1,000 of them, or as many as fit into ten seconds. Where those are too few,
            there are only Wilson's.
    """
    n, classes = found.labels.shape
    intervals = {"exact_match": wilson(int(found.right.sum()), n)}
    draws = min(_MOST_DRAWN // max(n * classes, 1), BOOTSTRAP_DRAWS)
    if not n or draws < _FEWEST_DRAWS:
        return intervals
    rng = np.random.default_rng(seed)
    orders = [np.argsort(-found.probabilities[:, c], kind="stable") for c in range(classes)]
    right_answers, both_kinds = (found.answers & found.labels).astype(float), found.answers.astype(float) + found.labels
    scores: dict[str, list[NDArray[np.float64]]] = {"map": [], "macro_f1": [], "micro_f1": []}
    for start in range(0, draws, _DRAWN_AT_ONCE):
        # How often each image is drawn, (n, d).
        drawn = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(min(_DRAWN_AT_ONCE, draws - start))]
        weights = np.stack(drawn, axis=1).astype(np.float64)
        right, both = weights.T @ right_answers, weights.T @ both_kinds  # (d, C)
        f1 = np.divide(2 * right, both, out=np.full_like(right, np.nan), where=both > 0)
        areas = [
            _weighted_areas(found.probabilities[order, c], found.labels[order, c], weights[order])
            for c, order in enumerate(orders)
        ]
        scores["map"].append(_mean(np.stack(areas, axis=1)))
        scores["macro_f1"].append(_mean(f1))
        scores["micro_f1"].append(2 * right.sum(1) / np.maximum(both.sum(1), 1))
    for name, values in scores.items():
        low, high = np.quantile(np.concatenate(values), (0.025, 0.975))
        intervals[name] = (float(low), float(high))
    return intervals


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the classes that are numbers, (draws,); 0 where none is."""
    there = ~np.isnan(values)
    means: NDArray[np.float64] = np.where(there, values, 0).sum(1) / np.maximum(there.sum(1), 1)
    return means


def _weighted_areas(
    scores: NDArray[np.float64], labels: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The average precision of a class with images counted so often, (d,); no number where none has the label.

    Args:
        scores: (n,), the highest first.
        labels: (n,).
        weights: (n, d).
    """
    (hits,) = np.nonzero(labels)
    if not len(hits):
        return np.full(weights.shape[1], np.nan)
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # of each equal score
    at, starts = np.unique(ends[np.searchsorted(ends, hits)], return_index=True)
    gained = np.add.reduceat(weights[hits], starts, axis=0)
    right, seen = gained.cumsum(0), weights.cumsum(0)[at]
    total = right[-1]
    areas: NDArray[np.float64] = (gained * right / np.maximum(seen, 1)).sum(0)
    areas /= np.where(total > 0, total, np.nan)
    return areas


def label_calibration_error(found: LabelSets) -> float:
    """Expected calibration error over all probabilities of all classes, in ten bins of equal width."""
    probabilities, labels = found.probabilities.ravel(), found.labels.ravel()
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    sums = np.bincount(bins, probabilities - labels, CALIBRATION_BINS)
    return float(np.abs(sums).sum() / max(counts.sum(), 1))
