"""The learning rate over the steps: linear warm-up and cosine decay, or a schedule of torch's."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# A warm-up takes at most this share of a run.
LONGEST_WARMUP = 0.1


class WarmupCosine(LRScheduler):
    """Linear warm-up from 0, then cosine decay to 0 at the last step.

    Groups that a callback adds to the optimizer later keep the rates that the callback gives them.

    Args:
        optimizer: Whose rates.
        warmup_steps: Steps of warm-up; a longer one than `LONGEST_WARMUP` of the run is shortened to that.
        run_steps: Of the whole run.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, run_steps: int) -> None:
        self.wanted_warmup, self.run_steps = warmup_steps, run_steps
        super().__init__(optimizer)

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up, after shortening."""
        return min(self.wanted_warmup, int(LONGEST_WARMUP * self.run_steps))

    def get_lr(self) -> list[float | Tensor]:
        """The rates at the present step."""
        factor = warmup_cosine(self.last_epoch, self.warmup_steps, self.run_steps)
        added = self.optimizer.param_groups[len(self.base_lrs) :]
        return [lr * factor for lr in self.base_lrs] + [group["lr"] for group in added]

    def adjust(self, lr: float | None, run_steps: int) -> None:
        """Take the run as it is when training starts: its steps, and its highest rate (None: as it was)."""
        self.run_steps = run_steps
        if lr is not None:
            own = self.optimizer.param_groups[: len(self.base_lrs)]
            self.base_lrs = [lr * group.get("lr_factor", 1.0) for group in own]
            for group, base in zip(own, self.base_lrs, strict=True):
                group["initial_lr"] = base
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate


def warmup_cosine(step: int, warmup_steps: int, run_steps: int) -> float:
    """The factor on the learning rate at a step: linear warm-up from 0, then cosine decay to 0 at the last step."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(run_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def schedule_config(optimizer: Optimizer, lr_scheduler: LRSchedulerCallable) -> OptimizerLRSchedulerConfig:
    """A schedule of torch.optim.lr_scheduler, stepped once an epoch, as Lightning takes it."""
    schedule = lr_scheduler(optimizer)
    config: dict[str, Any] = {"scheduler": schedule}
    if isinstance(schedule, ReduceLROnPlateau):
        config["monitor"] = schedule.monitor
    return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[typeddict-item]
