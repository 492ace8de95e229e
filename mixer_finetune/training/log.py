"""What training logs: loss, accuracy and learning rate, as means since the last log and over the epoch."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor


class TrainingLog:
    """Gathers loss and accuracy on the device, and logs them where that is due.

    Due is each `log_every_n_steps`-th step, and the last of an epoch and of the run. Nothing else of a step waits for
    the device.

    Attributes:
        logged: Whether the last step logged.
    """

    def __init__(self) -> None:
        self.logged = False
        # Sums of loss, right answers and images: since the last log on this device, and over the epoch on all of them.
        self._recent: Tensor | None = None
        self._epoch: Tensor | None = None
        self._epoch_means: dict[str, Tensor] = {}

    def step(self, module: pl.LightningModule, total_loss: Tensor, right: Tensor, images: int, batch_idx: int) -> None:
        """Take a micro-batch, and log if it ends a step where that is due.

        Args:
            module: That trains.
            total_loss: Sum over the micro-batch's images, a scalar.
            right: Images that were answered rightly, a scalar.
            images: In the micro-batch.
            batch_idx: Of the micro-batch in the epoch.
        """
        with torch.no_grad():
            sums = torch.stack([total_loss.detach(), right, torch.full_like(right, images)])
            self._recent = sums if self._recent is None else self._recent + sums
        trainer: Any = module.trainer
        step = module.global_step + 1
        ends_step = trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        ends_epoch = trainer.is_last_batch or step == trainer.max_steps
        every = trainer.log_every_n_steps
        self.logged = bool(ends_step and (ends_epoch or (every and step % every == 0)))
        if self.logged:
            means = self._drain(module)
            module.log_dict({**means, "train/lr": trainer.optimizers[0].param_groups[0]["lr"]})
            if ends_epoch:  # for callbacks at validation; the loggers get it when the epoch has ended
                module.log_dict(self._drain_epoch(), logger=False)

    def begin_validation(self, module: pl.LightningModule) -> None:
        """Show callbacks the means of the epoch so far, where validation comes before its end."""
        sums = self._epoch
        if self._recent is not None:
            recent: Tensor = module.trainer.strategy.reduce(self._recent, reduce_op="sum")
            sums = recent.double() if sums is None else sums + recent
        if sums is not None:
            module.log_dict(_means(sums.float(), "_epoch"), logger=False)

    def end_epoch(self, module: pl.LightningModule) -> None:
        """Give the epoch's means to the loggers."""
        if self._recent is not None:  # something else ended the epoch, before its last step
            self._drain(module)
        if self._epoch is not None:
            self._drain_epoch()
        module.log_dict(self._epoch_means)

    def _drain(self, module: pl.LightningModule) -> dict[str, Tensor]:
        sums: Tensor = module.trainer.strategy.reduce(self._recent, reduce_op="sum")
        self._epoch = sums.double() if self._epoch is None else self._epoch + sums
        self._recent = None
        return _means(sums, "")

    def _drain_epoch(self) -> dict[str, Tensor]:
        assert self._epoch is not None
        self._epoch_means = {key: mean.float() for key, mean in _means(self._epoch, "_epoch").items()}
        self._epoch = None
        return self._epoch_means

    def diverged(self, trainer: pl.Trainer) -> bool:
        """Whether the step has logged a loss that is no number any more; the same on all devices."""
        return self.logged and not math.isfinite(float(trainer.callback_metrics["train/loss"]))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"recent": self._recent, "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on with a checkpoint's sums."""
        self._recent, self._epoch = (
            None if sums is None else sums.to(device) for sums in (state["recent"], state["epoch"])
        )


def _means(sums: Tensor, suffix: str) -> dict[str, Tensor]:
    loss, right, images = sums.unbind()
    return {f"train/loss{suffix}": loss / images, f"train/accuracy{suffix}": right / images}
