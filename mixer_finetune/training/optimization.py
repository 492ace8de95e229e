"""Optimizers and learning rates of the MLP-Mixer paper's fine-tuning (arXiv 2105.01601, section 3 and appendix C)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mixer_finetune.errors import UserError
from mixer_finetune.randomness import DROP_PATH, uniform

# A warm-up takes at most this share of a run.
LONGEST_WARMUP = 0.1


def parameter_groups(model: nn.Module, weight_decay: float | None) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weight matrices, which decay, and all else, which does not.

    Biases, norms and affine scales are told by what they are (anything but the weight of a linear or convolution), not
    by their number of dimensions: ResMLP's affine scales are (1, 1, C) and must not decay either.

    Args:
        model: Whose parameters.
        weight_decay: Of the matrices; None for the optimizer's own.

    Raises:
        UserError: Nothing is trainable.
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise UserError("nothing is left to train: every parameter is frozen")
    decayed: dict[str, Any] = {"params": [p for p in trainable if id(p) in matrices]}
    if weight_decay is not None:
        decayed["weight_decay"] = weight_decay
    spared = {"params": [p for p in trainable if id(p) not in matrices], "weight_decay": 0.0}
    return [decayed, spared]


def build_optimizer(
    model: nn.Module, optimizer: str | OptimizerCallable, lr: float, momentum: float, weight_decay: float
) -> Optimizer:
    """The optimizer over a model's trainable parameters.

    Args:
        model: Whose parameters.
        optimizer: "sgd" (with momentum, the paper's choice for fine-tuning), "adamw", or what makes an optimizer of
            parameter groups, with options of its own.
        lr: Of "sgd" and "adamw".
        momentum: Of "sgd".
        weight_decay: Of "sgd" and "adamw".
    """
    if callable(optimizer):
        return optimizer(parameter_groups(model, None))
    groups = parameter_groups(model, weight_decay)
    if optimizer == "sgd":
        return SGD(groups, lr=lr, momentum=momentum)
    return AdamW(groups, lr=lr)


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
            self.base_lrs = [lr] * len(self.base_lrs)
            for group in self.optimizer.param_groups[: len(self.base_lrs)]:
                group["initial_lr"] = lr
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


def check_ranges(optimizer: Any, momentum: float, label_smoothing: float, drop_path: float, **positive: float) -> None:
    """Refuse options that no training can have.

    Args:
        optimizer: "sgd", "adamw" or a callable.
        momentum: In [0, 1).
        label_smoothing: In [0, 1).
        drop_path: In [0, 1).
        **positive: Finite and not negative.

    Raises:
        UserError: One is out of range.
    """
    if isinstance(optimizer, str) and optimizer not in ("sgd", "adamw"):
        raise UserError(f"unknown optimizer '{optimizer}'", option="optimizer", choices="sgd or adamw")
    for name, value in (("momentum", momentum), ("label_smoothing", label_smoothing), ("drop_path", drop_path)):
        if not 0 <= value < 1:
            raise UserError(f"{name} must be at least 0 and below 1, got {value}", option=name)
    for name, value in positive.items():
        if not 0 <= value < float("inf"):
            raise UserError(f"{name} must be 0 or more, got {value}", option=name)


def drop_path_factors(
    rate: float,
    num_blocks: int,
    seed: int,
    step: int,
    positions: NDArray[np.int64],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Stochastic depth (arXiv 1603.09382), a function of (seed, step, position in the global batch).

    Args:
        rate: Probability that an image skips a branch of the last block; it grows linearly from 0 at the first.
        num_blocks: Blocks of the backbone.
        seed: Of the run.
        step: Optimizer step.
        positions: Of the images in the global batch, (b,).
        device: Where the factors are wanted.
        dtype: Of the factors.

    Returns:
        (blocks, 2, b): 0 where a branch is skipped, 1 / (1 - rate) where it is kept.
    """
    drop = np.linspace(0, rate, num_blocks)[:, None, None]  # (blocks, 1, 1)
    u = uniform(seed, DROP_PATH, step, positions, 2 * num_blocks)  # (b, 2 blocks)
    kept = u.T.reshape(num_blocks, 2, -1) >= drop
    return torch.from_numpy(kept / (1 - drop)).to(dtype).to(device, non_blocking=True)
