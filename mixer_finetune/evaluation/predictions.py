"""What a run's predictions say: accuracies with intervals, classes, confusions, calibration and mistakes.

Everything is computed from `predictions.csv`, so that report and card can be made again without model or data.

Shapes: n images, C classes, k most probable classes of an image.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.errors import UserError

Z95 = 1.959963984540054  # of a two-sided 95% interval of the normal distribution
BOOTSTRAP_DRAWS = 1000
CALIBRATION_BINS = 10


class ClassFigures(NamedTuple):
    """What is measured of one class."""

    name: str
    images: int
    recall: float
    precision: float
    f1: float


class Confusion(NamedTuple):
    """Images of class `true` that were called `predicted`."""

    true: int
    predicted: int
    images: int


@dataclass(frozen=True)
class Evaluation:
    """A split, classified.

    Attributes:
        names: Of the C classes.
        files: Name of each image, n of them.
        indices: (n,) position of each image in its split.
        labels: (n,) true class.
        top: (n, k) the most probable classes, best first.
        probabilities: (n, k) theirs.
    """

    names: list[str]
    files: list[str]
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    top: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @classmethod
    def read(cls, path: Path, names: list[str]) -> Evaluation:
        """Read a run's `predictions.csv`.

        Args:
            path: Of the file.
            names: Of the classes, in order.

        Raises:
            UserError: The file is not one that `fit` writes.
        """
        number = {name: i for i, name in enumerate(names)}
        try:
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                rows = list(reader)
                k = sum(column.startswith("label_") for column in reader.fieldnames or ())
            indices = np.array([int(row["index"]) for row in rows], np.int64)
            labels = np.array([number[row["label"]] for row in rows], np.int64)
            top = [[number[row[f"label_{i}"]] for i in range(1, k + 1)] for row in rows]
            probabilities = [[float(row[f"probability_{i}"]) for i in range(1, k + 1)] for row in rows]
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror})") from error
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path} is not the predictions.csv that fit writes: {error!r}") from error
        shape = (len(rows), k)
        return cls(
            names,
            [row["file"] for row in rows],
            indices,
            labels,
            np.array(top, np.int64).reshape(shape),
            np.array(probabilities, np.float64).reshape(shape),
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,) whether the most probable class is the true one."""
        return self.top[:, 0] == self.labels

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """(C, C): images of class i (row) that were called class j (column)."""
        counts = np.zeros((len(self.names), len(self.names)), np.int64)
        np.add.at(counts, (self.labels, self.top[:, 0]), 1)
        return counts

    def intervals(self, seed: int = 0) -> dict[str, tuple[float, float]]:
        """95% intervals of the metrics: Wilson's score interval for accuracies, a percentile bootstrap for macro-F1."""
        n = len(self)
        within = (self.top == self.labels[:, None]).any(1)
        cells, counts = np.nonzero(self.confusion), self.confusion[np.nonzero(self.confusion)]
        rng = np.random.default_rng(seed)
        drawn = np.zeros_like(self.confusion)
        scores = []
        for sample in rng.multinomial(n, counts / n, BOOTSTRAP_DRAWS):
            drawn[cells] = sample
            scores.append(macro_f1(drawn))
        low, high = np.quantile(scores, (0.025, 0.975))
        return {
            "accuracy": wilson(int(self.right.sum()), n),
            "top5_accuracy": wilson(int(within.sum()), n),
            "macro_f1": (float(low), float(high)),
        }

    def classes(self) -> list[ClassFigures]:
        """Figures of each class, in the classes' order."""
        right = np.diag(self.confusion)
        images, called = self.confusion.sum(1), self.confusion.sum(0)
        recall, precision = right / np.maximum(images, 1), right / np.maximum(called, 1)
        f1 = 2 * right / np.maximum(images + called, 1)
        return [
            ClassFigures(name, int(images[i]), float(recall[i]), float(precision[i]), float(f1[i]))
            for i, name in enumerate(self.names)
        ]

    def confusions(self, most: int) -> list[Confusion]:
        """The most frequent confusions, the most frequent first."""
        wrong = self.confusion * (1 - np.eye(len(self.names), dtype=np.int64))
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        return [Confusion(int(i), int(j), int(wrong[i, j])) for i, j in pairs if wrong[i, j]]

    def mistakes(self) -> NDArray[np.int64]:
        """Rows that are wrong, the most confident first."""
        (wrong,) = np.nonzero(~self.right)
        return wrong[np.argsort(-self.probabilities[wrong, 0], kind="stable")]

    def calibration(self) -> tuple[list[tuple[float, float, int]], float]:
        """How far confidence can be believed.

        Returns:
            (mean confidence, accuracy, images) of each of ten bins of equal width that is not empty, and the expected
            calibration error: the mean difference of the two, weighted by images (Guo et al., arXiv 1706.04599).
        """
        confidence = self.probabilities[:, 0]
        bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        points = [
            (float(confidence[bins == b].mean()), float(self.right[bins == b].mean()), int((bins == b).sum()))
            for b in np.unique(bins)
        ]
        error = sum(count * abs(mean - accuracy) for mean, accuracy, count in points) / max(len(self), 1)
        return points, error


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a share (Wilson 1927), which stays within 0 and 1 and has a width at both ends."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Mean F1 of the classes that occur, as true class or as prediction."""
    right, sums = np.diag(confusion), confusion.sum(0) + confusion.sum(1)
    occurs = sums > 0
    return float((2 * right[occurs] / sums[occurs]).mean()) if occurs.any() else 0.0
