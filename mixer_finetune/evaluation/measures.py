"""What predictions say: accuracies with intervals, figures of each class, confusions, calibration.

All comes from the entries of the confusion matrix that are not zero, at most one for each image, so that nothing grows
with the square of the number of classes.

Shapes: n images, C classes, m entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.evaluation.predictions import Predictions

Counts = NDArray[np.int64]

Z95 = 1.959963984540054  # of a two-sided 95% interval of the normal distribution
BOOTSTRAP_DRAWS = 1000
# A draw costs about 60 to 120 ns for each entry of the matrix, or about 10 ns for each image.
MOST_DRAWN_ENTRIES = 10_000
DRAWN_AT_ONCE = 2**20  # counts, 8 MiB
CALIBRATION_BINS = 10


class ClassFigures(NamedTuple):
    """What is measured of one class.

    Attributes:
        name: Of the class.
        images: Of the class in the split.
        recall: Share of its images that were called so; None where it has no images.
        precision: Share of the images called so that are of the class; 0 where no image was called so.
        f1: Harmonic mean of the two.
    """

    name: str
    images: int
    recall: float | None
    precision: float
    f1: float


class Confusion(NamedTuple):
    """Images of class `true` that were called `predicted`."""

    true: int
    predicted: int
    images: int


class CalibrationBin(NamedTuple):
    """Answers of similar confidence: their mean confidence, the share that is right, and how many they are."""

    confidence: float
    accuracy: float
    images: int


@dataclass(frozen=True)
class ConfusionMatrix:
    """The entries of a confusion matrix that are not zero, row by row.

    Attributes:
        classes: C.
        true: (m,) row of each entry.
        predicted: (m,) its column.
        images: (m,) how many images of the one class were called the other.
    """

    classes: int
    true: Counts
    predicted: Counts
    images: Counts

    @classmethod
    def of(cls, predictions: Predictions) -> ConfusionMatrix:
        """The matrix of a split."""
        classes = len(predictions.names)
        cells, images = np.unique(predictions.labels * classes + predictions.top[:, 0], return_counts=True)
        return cls(classes, cells // classes, cells % classes, images.astype(np.int64))

    @cached_property
    def right(self) -> Counts:
        """(C,) images of each class that were called so."""
        return self._sums(self.true, np.where(self.true == self.predicted, self.images, 0))

    @cached_property
    def labelled(self) -> Counts:
        """(C,) images of each class: the sums of the rows."""
        return self._sums(self.true, self.images)

    @cached_property
    def called(self) -> Counts:
        """(C,) images that were called so: the sums of the columns."""
        return self._sums(self.predicted, self.images)

    @property
    def occurring(self) -> NDArray[np.intp]:
        """Classes that have images or were an answer, in order."""
        return np.flatnonzero(self.labelled + self.called)

    @property
    def without_images(self) -> int:
        """How many classes have no image in the split."""
        return int((self.labelled == 0).sum())

    def dense(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Counts:
        """The counts at some rows and columns: (rows, columns)."""
        return self._placed(_positions(rows, self.classes), _positions(columns, self.classes), len(rows), len(columns))

    def binned(self, side: int) -> Counts:
        """The counts of the occurring classes, with neighbours taken together where there are more than `side` classes.

        Returns:
            (s, s) with s at most `side`: images of the classes of one group that were called a class of another group.
        """
        occurring = self.occurring
        size = min(side, len(occurring))
        groups = np.full(self.classes, -1)
        groups[occurring] = np.arange(len(occurring)) * size // max(len(occurring), 1)
        return self._placed(groups, groups, size, size)

    def _placed(self, row_of: NDArray[np.intp], column_of: NDArray[np.intp], rows: int, columns: int) -> Counts:
        i, j = row_of[self.true], column_of[self.predicted]
        shown = (i >= 0) & (j >= 0)
        counts = np.zeros((rows, columns), np.int64)
        np.add.at(counts, (i[shown], j[shown]), self.images[shown])
        return counts

    def _sums(self, at: Counts, images: Counts) -> Counts:
        sums = np.zeros(self.classes, np.int64)
        np.add.at(sums, at, images)
        return sums


def _positions(classes: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Of each of `count` classes its position in `classes`; -1 where it is not there."""
    positions = np.full(count, -1)
    positions[classes] = np.arange(len(classes))
    return positions


def intervals(predictions: Predictions, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95% intervals of the metrics: Wilson's score interval for accuracies, a percentile bootstrap for macro-F1.

    Args:
        predictions: Of the split.
        seed: Of the bootstrap.
    """
    n = len(predictions)
    return {
        "accuracy": wilson(int(predictions.right.sum()), n),
        "top5_accuracy": wilson(int(predictions.within_top.sum()), n),
        "macro_f1": macro_f1_interval(ConfusionMatrix.of(predictions), seed),
    }


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a share (Wilson 1927): within 0 and 1, and of some width at both ends.

    Args:
        right: Images of the share.
        n: All images.
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def macro_f1(matrix: ConfusionMatrix) -> float:
    """Mean F1 of the classes that occur, as true class or as answer."""
    return _mean_f1(matrix.right, matrix.labelled + matrix.called)


def _mean_f1(right: Counts, sums: Counts) -> float:
    occurs = sums > 0
    return float((2 * right[occurs] / sums[occurs]).mean()) if occurs.any() else 0.0


def macro_f1_interval(matrix: ConfusionMatrix, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of macro-F1 from 1,000 draws of n images with replacement (Efron's percentile bootstrap).

    Args:
        matrix: Of the split.
        seed: Of the draws.
    """
    true, predicted, images = matrix.true, matrix.predicted, matrix.images
    if not len(images):
        return 0.0, 1.0
    if len(images) > MOST_DRAWN_ENTRIES:  # each image is an entry of its own
        true, predicted = np.repeat(true, images), np.repeat(predicted, images)
        images = np.ones(len(true), np.int64)
    (hits,) = np.nonzero(true == predicted)
    by_column = np.argsort(predicted, kind="stable")
    right = _ClassSums(true[hits], matrix.classes)
    labelled, called = _ClassSums(true, matrix.classes), _ClassSums(predicted[by_column], matrix.classes)
    scores = [
        _mean_f1(right(drawn[hits]), labelled(drawn) + called(drawn[by_column]))
        for drawn in _bootstrap_draws(images, np.random.default_rng(seed))
    ]
    low, high = np.quantile(scores, (0.025, 0.975))
    return float(low), float(high)


class _ClassSums:
    """Sums of counts by class, (C,), of entries that are in the order of their classes."""

    def __init__(self, of: Counts, classes: int) -> None:
        self.classes = classes
        self.present, self.starts = np.unique(of, return_index=True)

    def __call__(self, counts: Counts) -> Counts:
        sums = np.zeros(self.classes, np.int64)
        if len(self.present):
            sums[self.present] = np.add.reduceat(counts, self.starts)
        return sums


def _bootstrap_draws(images: Counts, rng: np.random.Generator) -> Iterator[Counts]:
    """How often each entry is drawn, (m,), in each draw of as many images as there are, with replacement."""
    n, m = int(images.sum()), len(images)
    if m > MOST_DRAWN_ENTRIES:
        for _ in range(BOOTSTRAP_DRAWS):
            yield np.bincount(rng.integers(0, n, n), minlength=m)
        return
    at_once = max(1, DRAWN_AT_ONCE // m)
    for start in range(0, BOOTSTRAP_DRAWS, at_once):
        yield from rng.multinomial(n, images / n, min(at_once, BOOTSTRAP_DRAWS - start))


def class_figures(matrix: ConfusionMatrix, names: list[str]) -> list[ClassFigures]:
    """Figures of each class, in the order of the classes."""
    right, images, called = matrix.right, matrix.labelled, matrix.called
    recall, precision = right / np.maximum(images, 1), right / np.maximum(called, 1)
    f1 = 2 * right / np.maximum(images + called, 1)
    return [
        ClassFigures(name, int(images[i]), float(recall[i]) if images[i] else None, float(precision[i]), float(f1[i]))
        for i, name in enumerate(names)
    ]


def most_confused(matrix: ConfusionMatrix, most: int) -> list[Confusion]:
    """The most frequent confusions, the most frequent first.

    Args:
        matrix: Of the split.
        most: How many at most.
    """
    (wrong,) = np.nonzero(matrix.true != matrix.predicted)
    order = wrong[np.argsort(-matrix.images[wrong], kind="stable")][:most]
    return [Confusion(int(matrix.true[i]), int(matrix.predicted[i]), int(matrix.images[i])) for i in order]


def calibration(predictions: Predictions) -> tuple[list[CalibrationBin], float]:
    """How far confidence can be believed.

    Returns:
        Ten bins of equal width, without the empty ones, and the expected calibration error: the mean difference of
        confidence and accuracy, weighted by images (Guo et al., arXiv 1706.04599).
    """
    confidence, right = predictions.confidence, predictions.right
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    points = [
        CalibrationBin(float(confidence[bins == b].mean()), float(right[bins == b].mean()), int((bins == b).sum()))
        for b in np.unique(bins)
    ]
    error = sum(b.images * abs(b.confidence - b.accuracy) for b in points) / max(len(predictions), 1)
    return points, error
