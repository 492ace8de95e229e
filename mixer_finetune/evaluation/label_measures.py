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

# A draw of the bootstrap sorts no more: it costs about 20 ns for each image and class.
_MOST_DRAWN = 200_000_000


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
        seed: Of the bootstrap's draws; 1,000 of them, or as many as fit into some seconds.
    """
    n, classes = found.labels.shape
    intervals = {"exact_match": wilson(int(found.right.sum()), n)}
    if not n:
        return intervals
    draws = int(np.clip(_MOST_DRAWN // (n * classes), 100, BOOTSTRAP_DRAWS))
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws).astype(np.float64)  # (draws, n)
    right = weights @ (found.answers & found.labels)  # (draws, C)
    both = weights @ found.labels + weights @ found.answers
    f1 = np.divide(2 * right, both, out=np.full_like(right, np.nan), where=both > 0)
    areas = np.stack([_weighted_areas(found.probabilities[:, c], found.labels[:, c], weights) for c in range(classes)])
    with np.errstate(invalid="ignore"):
        scores = {
            "map": _mean(areas.T),
            "macro_f1": _mean(f1),
            "micro_f1": 2 * right.sum(1) / np.maximum(both.sum(1), 1),
        }
    for name, values in scores.items():
        low, high = np.quantile(values, (0.025, 0.975))
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
    """The average precision of a class with images counted so often, (draws,); no number where none has the label."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of each equal score
    seen = weights[:, order].cumsum(1)[:, last]
    hits = (weights[:, order] * labels[order]).cumsum(1)[:, last]
    gained = np.diff(hits, axis=1, prepend=0)
    areas: NDArray[np.float64] = (gained * hits / np.maximum(seen, 1)).sum(1)
    total = hits[:, -1]
    np.divide(areas, total, out=areas, where=total > 0)
    areas[total == 0] = np.nan
    return areas


def label_calibration_error(found: LabelSets) -> float:
    """Expected calibration error over all probabilities of all classes, in ten bins of equal width."""
    probabilities, labels = found.probabilities.ravel(), found.labels.ravel()
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    sums = np.bincount(bins, probabilities - labels, CALIBRATION_BINS)
    return float(np.abs(sums).sum() / max(counts.sum(), 1))
