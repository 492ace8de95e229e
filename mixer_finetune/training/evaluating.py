"""How a classifier is evaluated: metrics of the dev and test splits, over all devices, and the table of answers."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.func import functional_call

from mixer_finetune.data.batches import Batch
from mixer_finetune.errors import NoImagesError
from mixer_finetune.training.averages import WeightEma
from mixer_finetune.training.measuring import Answers, SplitMetrics
from mixer_finetune.training.reliability import DevLogits, Reliability
from mixer_finetune.training.task import SINGLE_LABEL


class EvaluatedModule(pl.LightningModule):
    """A module whose `forward` gives logits, evaluated on batches of (images, targets).

    Attributes:
        ema: The average of the weights, measured beside them on the dev split; None where there is none.
        task: What is asked of an image.
        test_table: After a test: a row for each image, its index and what the task keeps.
        gathered: Takes the logits of a dev split, where they are wanted.
        reliability: Takes those of a test, to measure how far its probabilities can be trusted, where that is wanted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.task = SINGLE_LABEL
        self.test_table: Tensor | None = None
        self.ema: WeightEma | None = None
        self.gathered: DevLogits | None = None
        self.reliability: Reliability | None = None

    def make_metrics(self, classes: int) -> None:
        """Make metrics of the task for that many classes."""
        self.answers = Answers(self.task)
        self.dev, self.dev_ema, self.test = (
            SplitMetrics(self.task, classes, prefix) for prefix in ("val/", "val/ema_", "test/")
        )

    def validation_step(self, batch: Batch | tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the dev metrics."""
        images, targets = batch[0], batch[1]
        if len(images):  # else none of its images could be decoded
            logits = self(images)
            self.dev.update(logits, targets)
            if self.gathered is not None:
                self.gathered.update(logits, targets, batch.indices if isinstance(batch, Batch) else None)
            if self.ema is not None:
                self.dev_ema.update(functional_call(self, self.ema.as_in(self), (images,)), targets)

    def on_validation_epoch_end(self) -> None:
        """Log dev metrics and loss, over the whole split and all devices."""
        self.log_dict(self._measured(self.dev, "dev"))
        if self.ema is not None:
            self.log_dict(self._measured(self.dev_ema, "dev"))

    def test_step(self, batch: Batch | tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the test metrics and the table of answers."""
        if len(batch[0]):
            logits = self(batch[0])  # (b, classes)
            self.test.update(logits, batch[1])
            self.answers.update(logits, batch[1], batch.indices if isinstance(batch, Batch) else None)
            if self.reliability is not None:
                self.reliability.update(logits, batch[1])

    def on_test_epoch_end(self) -> None:
        """Log test metrics and loss and keep the answers, over the whole split and all devices."""
        self.log_dict(self._measured(self.test, "evaluated"))
        self.test_table = self.answers.compute()

    def _measured(self, metrics: SplitMetrics, split: str) -> dict[str, Tensor]:
        everywhere = self.trainer.strategy.reduce(torch.tensor(metrics.batches, device=self.device), reduce_op="sum")
        if not self.trainer.sanity_checking and not everywhere:
            problem = f"no image of the {split} split could be decoded"
            raise NoImagesError(problem, advice="look at them, or change {data.source}")
        return metrics.compute()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Images, alone or first in the batch, to the probability of each class, (b, classes)."""
        return self.task.probabilities(self(batch if isinstance(batch, Tensor) else batch[0]))
