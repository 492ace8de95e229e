"""The logits of a dev split, gathered over all devices, and how a temperature does on a test split.

Shapes: b images of a batch, n of a split, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import CatMetric

from mixer_finetune.errors import UserError
from mixer_finetune.training.calibration import Calibration
from mixer_finetune.training.task import Task

# Logits of a dev split that are looked at; of a larger one those of every second, third, ... image.
MOST_LOGITS = 2**25
BINS = 10
# Coverages that are tried on the test split, for the report.
COVERAGES = (0.8, 0.9, 0.95, 0.99)


class DevLogits(nn.Module):
    """A row for each image: its index, its target and its logits.

    Args:
        task: What is asked of an image.
        images: Of the split, by which the rows are thinned out where they would be too many.
        classes: C.
    """

    def __init__(self, task: Task, images: int, classes: int) -> None:
        super().__init__()
        self.task, self.classes = task, classes
        self.every = max(1, -(-images * classes // MOST_LOGITS))
        self.rows = CatMetric(nan_strategy="disable")
        self.seen = 0

    def update(self, logits: Tensor, targets: Tensor, indices: NDArray[np.int64] | None) -> None:
        """Take a batch; arguments as for `measuring.Answers`."""
        if indices is None:
            indices = np.arange(self.seen, self.seen + len(logits))
        self.seen += len(logits)
        kept = torch.from_numpy(indices % self.every == 0).to(logits.device)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        self.rows.set_dtype(dtype)
        index = torch.from_numpy(indices).to(logits.device)
        row = [index[:, None], targets.reshape(len(targets), -1), logits]
        self.rows.update(torch.cat([part.to(dtype) for part in row], 1)[kept])

    def compute(self) -> tuple[Tensor, Tensor]:
        """Logits (n, C) and targets of all devices, on the CPU, in the order of the split."""
        table: Tensor = self.rows.compute().cpu().reshape(-1, 1 + self.task.target_columns(self.classes) + self.classes)
        table = table[table[:, 0].argsort(stable=True)]
        targets, logits = table[:, 1 : -self.classes], table[:, -self.classes :]
        return logits, self.task.as_targets(targets)


class Reliability:
    """Sums over a test split: the loss and the calibration with and without a temperature, and the sets' coverage.

    Args:
        task: What is asked of an image.
        calibration: Of the model, whose head is divided by the temperature already.
    """

    def __init__(self, task: Task, calibration: Calibration) -> None:
        self.task, self.calibration = task, calibration
        self.levels: list[tuple[float, float]] = []
        for coverage in COVERAGES if calibration.true is not None else ():
            try:
                self.levels.append((coverage, calibration.set_threshold(coverage)))
            except UserError:
                break  # the dev split is too small for it, and for higher ones
        # Images; loss before and after, their squares, that of the difference; three numbers a bin, before and after;
        # for each level hits and labels.
        self.loss = np.zeros(6)
        self.bins = np.zeros((2, BINS, 3))
        self.covered = np.zeros((len(self.levels), 2))

    @torch.no_grad()
    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take a batch: logits (b, C) as exported, and its targets."""
        logits = logits.cpu().double()
        targets = targets.cpu()
        losses = []
        for i, each in enumerate((logits * self.calibration.temperature, logits)):
            losses.append(self.task.losses(each, targets, 0.0).numpy())
            self.bins[i] += binned(*self.task.confidences(targets, self.task.probabilities(each)))
        before, after = losses
        self.loss += [
            len(logits), before.sum(), after.sum(), (before**2).sum(), (after**2).sum(), ((after - before) ** 2).sum()
        ]  # fmt: skip
        for i, (_, threshold) in enumerate(self.levels):
            inside = self.calibration.sets(logits, threshold)
            self.covered[i] += [float(inside.gather(1, targets[:, None]).sum()), float(inside.sum())]

    def compute(self, summed: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The figures.

        Args:
            summed: Gives the sum over all devices of a tensor.

        Returns:
            `images`; `before` and `after`, each with `nll`, its 95% interval `nll_interval`, and `calibration_error`;
            `nll_change` and `nll_change_interval`, paired on the same images; `sets`, for each coverage its `coverage`,
            the share `covered` of images whose true label is in the set, and the mean number of `labels`.
        """
        flat = np.concatenate([self.loss, self.bins.ravel(), self.covered.ravel()])
        total = summed(torch.from_numpy(flat)).cpu().numpy()
        loss, rest = total[:6], total[6:]
        bins, covered = rest[: self.bins.size].reshape(self.bins.shape), rest[self.bins.size :].reshape(-1, 2)
        n, before, after = loss[0], loss[1], loss[2]
        if not n:
            return {"images": 0}
        found: dict[str, Any] = {"images": int(n)}
        for i, name in enumerate(("before", "after")):
            mean, interval = _mean(loss[1 + i], loss[3 + i], n)
            found[name] = {"nll": mean, "nll_interval": interval, "calibration_error": calibration_error(bins[i])}
        found["nll_change"], found["nll_change_interval"] = _mean(after - before, loss[5], n)
        found["sets"] = [
            {"coverage": coverage, "covered": round(float(hits / n), 5), "labels": round(float(labels / n), 5)}
            for (coverage, _), (hits, labels) in zip(self.levels, covered, strict=True)
        ]
        return found


def binned(confidence: Tensor, right: Tensor) -> NDArray[np.float64]:
    """Sums over ten bins of equal width, (bins, 3): answers, their confidence, how many are right."""
    sure, hits = confidence.double().numpy(), right.double().numpy()
    # Rounded as in predictions.csv, so that an answer is in the same bin in both.
    bins = np.minimum((sure.round(6) * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(bins, weights, BINS) for weights in (np.ones_like(sure), sure, hits)], 1)


def calibration_error(bins: NDArray[np.float64]) -> float:
    """The expected calibration error of the sums of `binned`."""
    return round(float(np.abs(bins[:, 1] - bins[:, 2]).sum() / max(bins[:, 0].sum(), 1)), 6)


def _mean(total: float, squares: float, n: float) -> tuple[float, tuple[float, float]]:
    """A mean and its 95% interval by the normal distribution, from the sum and the sum of squares."""
    mean = total / n
    half = 1.959963984540054 * np.sqrt(max(squares / n - mean**2, 0.0) / max(n - 1, 1))
    return round(float(mean), 6), (round(float(mean - half), 6), round(float(mean + half), 6))
