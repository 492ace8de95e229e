"""What is measured on a split, over all devices: metrics, loss and, for a test, each image's answer.

Shapes: b images of a batch, n of the split, C classes, k most probable classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric, MetricCollection

from mixer_finetune.training.task import Task


class SplitMetrics(nn.Module):
    """Metrics and mean loss of a split.

    Args:
        task: What is asked of an image.
        classes: C.
        prefix: Of the metrics' names: "val/" or "test/".
    """

    def __init__(self, task: Task, classes: int, prefix: str) -> None:
        super().__init__()
        self.task, self.prefix = task, prefix
        self.metrics = MetricCollection(dict(task.metrics(classes)), prefix=prefix, compute_groups=False)
        self.loss = MeanMetric(nan_strategy="disable")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take a batch: logits (b, C) and its targets."""
        self.metrics.update(logits, targets)
        self.loss.update(self.task.losses(logits, targets, 0.0).mean(), len(logits))

    @property
    def batches(self) -> int:
        """Batches taken on this device."""
        return self.loss.update_count

    def compute(self) -> dict[str, Tensor]:
        """Each metric and the loss by name; a new split begins."""
        values = {**self.metrics.compute(), f"{self.prefix}loss": self.loss.compute()}
        with torch.inference_mode(False):  # else a `validate` before `fit` leaves tensors that training may not change
            self.metrics.reset()
            self.loss.reset()
        return values


class Answers(nn.Module):
    """A table of answers, one row an image: its index, and what the task keeps."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        # A probability may be no number.
        self.rows = CatMetric(nan_strategy="disable")
        self.seen = 0

    def update(self, logits: Tensor, targets: Tensor, indices: NDArray[np.int64] | None) -> None:
        """Take a batch.

        Args:
            logits: (b, C).
            targets: As the task has them.
            indices: (b,) positions of the images in the split; None for images that come in its order.
        """
        if indices is None:
            indices = np.arange(self.seen, self.seen + len(logits))
        self.seen += len(logits)
        # The model's type in bf16-true can't count.
        self.rows.set_dtype(torch.float32)
        index = torch.from_numpy(indices).to(logits.device)
        row = [index[:, None], *self.task.rows(targets, self.task.probabilities(logits))]
        self.rows.update(torch.cat([part.float() for part in row], dim=1))

    def compute(self) -> Tensor:
        """The table over all devices, (n, columns), on the CPU; a new split begins."""
        table: Tensor = self.rows.compute().cpu()
        with torch.inference_mode(False):
            self.rows.reset()
        self.seen = 0
        return table
