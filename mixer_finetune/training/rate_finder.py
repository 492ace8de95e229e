"""A learning rate range test (Smith, arXiv 1506.01186): which rate suits this model, these images and this optimizer.

A function of the seed: the first batches of the run's own order are trained on by one process, whatever the devices,
with rates that grow from step to step; the weights are then put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixer_finetune.data.batches import Batch, batch_dataset, batch_loader
from mixer_finetune.errors import UserError

STEPS = 80
# Lowest and highest rate by optimizer.
_RANGES = {"sgd": (1e-4, 10.0), "adamw": (1e-6, 0.1), "muon": (1e-6, 0.1)}
_SMOOTHING = 0.9  # of the losses, by an exponential average without its start's bias
_BACK_OFF = 3.0  # from the rate of the lowest loss, where steps begin to undo each other; see docs/measurements.md


@dataclass(frozen=True)
class RangeTest:
    """What was tried.

    Attributes:
        rates: Of each step.
        losses: Of each step's batch, smoothed.
    """

    rates: list[float]
    losses: list[float]

    @property
    def lr(self) -> float:
        """A third of the rate at which the smoothed loss was lowest, to two digits."""
        return float(f"{self.rates[int(np.argmin(self.losses))] / _BACK_OFF:.1e}")

    @property
    def note(self) -> str:
        """What it is, for the user."""
        lowest = self.rates[int(np.argmin(self.losses))]
        return f"{self.lr:g} by a range test of {len(self.rates)} steps (the loss was lowest at {lowest:.2g})"


def find_rate(module: Any, data: Any, optimizer_of: Callable[[float], Any]) -> tuple[float, str]:
    """A learning rate for a MixerClassifier that is about to be trained, and what it is, for the user."""
    trainer = module.trainer
    found = run_range_test(module, data, optimizer_of, str(module.hparams.optimizer), trainer.gradient_clip_val)
    return found.lr, found.note


def run_range_test(
    module: Any, data: Any, optimizer_of: Callable[[float], Any], optimizer: str, clip: float | None
) -> RangeTest:
    """Try rates on the training images.

    Args:
        module: A MixerClassifier, on its device; its weights end as they were.
        data: An ImageDataModule.
        optimizer_of: Makes the optimizer of a rate.
        optimizer: Its name.
        clip: Norm that gradients are clipped at.

    Raises:
        UserError: The data module has no training images to try it on, or the loss is no number from the start.
    """
    if not hasattr(data, "splits"):
        raise UserError("a range test needs the images of an ImageDataModule", option="lr", choices="0.01 or the like")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    low, high = _RANGES[optimizer]
    rates = [float(rate) for rate in np.geomspace(low, high, STEPS)]
    made = optimizer_of(1.0)
    factors = [group["lr"] for group in made.param_groups]
    losses: list[float] = []
    average = 0.0
    for step, (rate, micro_batches) in enumerate(zip(rates, _steps(module, data), strict=False)):
        for group, factor in zip(made.param_groups, factors, strict=True):
            group["lr"] = rate * factor
        loss = _step(module, micro_batches, made, clip)
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smooth = average / (1 - _SMOOTHING ** (step + 1))
        if not np.isfinite(smooth) or (losses and smooth > 4 * min(losses)):
            break
        losses.append(smooth)
    module.load_state_dict(before)
    for parameter in module.parameters():
        parameter.grad = None
    if not losses:
        raise UserError("the loss is no number before the first step", option="lr", choices="0.01 or the like")
    return RangeTest(rates[: len(losses)], losses)


def _step(module: Any, micro_batches: list[Batch], optimizer: torch.optim.Optimizer, clip: float | None) -> float:
    """One step; returns the mean loss of its batch."""
    optimizer.zero_grad()
    total = 0.0
    images = sum(len(batch.images) for batch in micro_batches)
    for batch in micro_batches:
        with module.trainer.precision_plugin.train_step_context():
            loss: Tensor = module.loss(batch.images, module(batch.images), batch.labels) / images
        torch.autograd.backward(loss)
        total += float(loss.detach())
    if clip:
        torch.nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], clip)
    optimizer.step()
    return total


def _steps(module: Any, data: Any) -> Iterator[list[Batch]]:
    """The micro-batches of each step of the run, augmented, as one device would take them."""
    split = data.require("train")
    per_step = -(-data.batch_size // (data.micro_batch_size or data.batch_size))
    n = data.epoch_samples
    accumulate = max(1, min(per_step, n // -(-n // data.batch_size)))
    sampler = data.batch_plan(0, 1, accumulate)
    images = batch_dataset(split, data.preprocessing, data.augmentation, data.seed, plan=data.size_plan)
    epoch = 0
    while True:
        sampler.start_at(epoch)
        step: list[Batch] = []
        for batch in batch_loader(images, sampler, data.num_workers):
            batch = data.on_before_batch_transfer(batch, 0)
            step.append(data.prepare(data.transfer_batch_to_device(batch, module.device, 0), training=True))
            if len(step) == accumulate:
                yield step
                step = []
        epoch += 1
