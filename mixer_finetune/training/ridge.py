"""Ridge regression of classes, in closed form: one eigendecomposition serves all penalties.

Minimises |Y - X W - b|^2 + penalty |W|^2, as scikit-learn's Ridge, with targets of +1 for an image's class (or classes)
and -1 for the others, as its RidgeClassifier.

Shapes: n images, m others, C channels, K classes, r = min(n, C) directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Penalties that are tried, in units of the mean eigenvalue of the features' scatter.
PATH = tuple(10.0**exponent for exponent in np.arange(-6, 2.5, 0.5).tolist())
# Rows that are in float64 at once.
_ROWS = 2**15


@dataclass(frozen=True)
class Ridge:
    """The regression on some features, for any penalty.

    Where there are at least as many images as channels it works with the scatter matrix X'X = V diag(values) V', else
    with the Gram matrix XX' = U diag(values) U', which has the same eigenvalues.

    Attributes:
        features: (n, C), as given.
        targets: (n, K) float64, +-1.
        x_mean: (C,); zero without an intercept.
        y_mean: (K,); likewise.
        values: (r,) eigenvalues, at least 0.
        left: (C, r): V, or X'U.
        right: (r, K): V'X'Y, or U'Y.
        vectors: (n, r) U where the Gram matrix was taken; None else.
        intercept: Whether there is a bias.
    """

    features: Tensor
    targets: Tensor
    x_mean: Tensor
    y_mean: Tensor
    values: Tensor
    left: Tensor
    right: Tensor
    vectors: Tensor | None
    intercept: bool = True

    @classmethod
    @torch.no_grad()
    def fit(cls, features: Tensor, labels: Tensor, classes: int, intercept: bool = True) -> Ridge:
        """Decompose.

        Args:
            features: (n, C), of any dtype; all is computed in float64.
            labels: (n,) class numbers, or (n, K) of 0 and 1 where an image may have several classes.
            classes: K.
            intercept: Whether there is a bias b, which is not penalised.
        """
        n, channels = features.shape
        labels = labels.cpu()
        y = 2 * (labels if labels.ndim == 2 else F.one_hot(labels, classes)).double() - 1
        x_mean, y_mean = torch.zeros(channels, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
        if intercept:
            x_mean = torch.stack([rows.sum(0) for rows in _in_float64(features)]).sum(0) / n
            y_mean = y.mean(0)
        if n < channels:
            x = features.double().cpu() - x_mean
            values, vectors = torch.linalg.eigh(x @ x.T)  # (n,), (n, n)
            left, right = x.T @ vectors, vectors.T @ (y - y_mean)
            return cls(features, y, x_mean, y_mean, values.clamp(min=0), left, right, vectors, intercept)
        scatter = torch.zeros(channels, channels, dtype=torch.float64)
        products = torch.zeros(channels, classes, dtype=torch.float64)
        for rows, targets in zip(_in_float64(features), torch.split(y, _ROWS), strict=True):
            x = rows - x_mean
            scatter.addmm_(x.T, x)
            products.addmm_(x.T, targets - y_mean)
        values, vectors = torch.linalg.eigh(scatter)
        return cls(features, y, x_mean, y_mean, values.clamp(min=0), vectors, vectors.T @ products, None, intercept)

    @property
    def scale(self) -> float:
        """The mean eigenvalue of the scatter matrix."""
        return max(float(self.values.sum()) / self.features.shape[1], 1e-12)

    def solution(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Weight (K, C) and bias (K,) for a penalty, float64."""
        weight = (self.left @ (self.right / (self.values + penalty)[:, None])).T
        return weight, self.y_mean - weight @ self.x_mean

    def answers(self, features: Tensor, penalties: Sequence[float]) -> Iterator[tuple[slice, list[Tensor]]]:
        """What the regression answers to other images, for each penalty.

        Args:
            features: (m, C).
            penalties: Each above 0.

        Yields:
            Which images, so that not all are in float64 at once, and for each penalty their answers (rows, K).
        """
        start = 0
        for rows in _in_float64(features):
            turned = (rows - self.x_mean) @ self.left  # (rows, r)
            yield (
                slice(start, start + len(rows)),
                [self.y_mean + turned @ (self.right / (self.values + penalty)[:, None]) for penalty in penalties],
            )
            start += len(rows)

    @torch.no_grad()
    def accuracies(self, features: Tensor, labels: Tensor, penalties: Sequence[float]) -> list[float]:
        """Share of other images that are answered rightly, for each penalty; arguments as for `answers`."""
        right = [0] * len(penalties)
        for rows, answers in self.answers(features, penalties):
            for i, each in enumerate(answers):
                right[i] += int((each.argmax(-1) == labels[rows].cpu()).sum())
        return [count / len(labels) for count in right]

    @torch.no_grad()
    def left_out(self, penalty: float) -> Tensor:
        """What the regression on all other images answers for each image, (n, K), in closed form."""
        x = self.features.double().cpu() - self.x_mean
        turned = x @ self.left  # (n, r)
        other = turned if self.vectors is None else self.vectors
        shrunk = 1 / (self.values + penalty)
        centred = 1 / len(x) if self.intercept else 0.0
        leverage = centred + (turned * other) @ shrunk
        residuals = self.targets - self.y_mean - turned @ (shrunk[:, None] * self.right)
        answers: Tensor = self.targets - residuals / (1 - leverage).clamp(min=1e-9)[:, None]
        return answers


def _in_float64(features: Tensor) -> Iterator[Tensor]:
    for rows in torch.split(features, _ROWS):
        yield rows.double().cpu()
