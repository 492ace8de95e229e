"""A few steps of a run, to see how long it would take and how much memory: nothing of it is kept."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch

from mixer_finetune.engine.messages import explained
from mixer_finetune.engine.parts import Parts
from mixer_finetune.errors import UserError

EVALUATED_BATCHES = 3


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        steps: That were counted, behind one that was not.
        step_seconds: The median of theirs.
        first_seconds: Until the end of the first step: workers start, kernels are chosen or compiled.
        image_seconds: Of an image in evaluation; None where there is none.
        memory: Most bytes in use: of the accelerator, else of this process.
        memory_of: "accelerator" or "process".
        optimizer_bytes: Of the optimizer's state.
    """

    steps: int
    step_seconds: float
    first_seconds: float
    image_seconds: float | None
    memory: int
    memory_of: str
    optimizer_bytes: int


class _Clock(pl.Callback):
    """Takes the time of each optimizer step, and ends the training behind the last that is wanted."""

    def __init__(self) -> None:
        self.began = 0.0
        self.ends: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin."""
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the end of a step; of its micro-batches the last one ends it."""
        if trainer.global_step > len(self.ends):
            _wait_for(pl_module.device)
            self.ends.append(time.perf_counter())


class _EvaluationClock(pl.Callback):
    """Takes the time of each evaluated batch."""

    def __init__(self) -> None:
        self.times: list[tuple[float, int]] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin."""
        self.times = [(time.perf_counter(), 0)]

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Note the end of a batch."""
        _wait_for(pl_module.device)
        self.times.append((time.perf_counter(), len(args[1][0])))

    @property
    def image_seconds(self) -> float | None:
        """Of an image: without the first batch, for which workers start, where there are several."""
        times = self.times[1:] if len(self.times) > 2 else self.times
        images = sum(count for _, count in times[1:])
        return (times[-1][0] - times[0][0]) / images if images else None


def measure(parts: Parts, steps: int) -> Measured:
    """Train and evaluate for a few steps.

    Args:
        parts: Of the run, checked; of no use for training afterwards.
        steps: Optimizer steps to count.

    Raises:
        UserError: The run does not fit into memory, or breaks at once.
    """
    trainer: Any = parts.trainer
    model: Any = parts.model
    # Both are found before the first step, over many images, and cost a step nothing.
    if model.hparams["lr"] == "auto":
        model.hparams["lr"] = 1e-3
    if model.hparams["head"] == "probe":
        model.hparams["head"] = "new"
    clock, evaluation = _Clock(), _EvaluationClock()
    trainer.callbacks, trainer.loggers = [clock], []
    trainer.fit_loop.epoch_loop.max_steps = steps + 1
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        trainer.fit(parts.model, parts.data)
        if parts.data.val_dataloader():
            trainer.callbacks, trainer.limit_val_batches = [evaluation], EVALUATED_BATCHES
            trainer.validate(parts.model, parts.data, verbose=False)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the run does not fit into the memory of {device}",
            advice="lower {data.micro_batch_size}, which changes no result, or use {checkpoint_activations}",
        ) from error
    except Exception as error:
        if not isinstance(error, UserError) and (line := explained(error)):
            raise line from error
        raise
    gaps = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    first = clock.ends[0] - clock.began
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _own_memory()
    state = sum(
        value.numel() * value.element_size()
        for optimizer in trainer.optimizers
        for kept in optimizer.state.values()
        for value in kept.values()
        if isinstance(value, torch.Tensor)
    )
    return Measured(
        steps=max(len(gaps), 1),
        step_seconds=median(gaps) if gaps else first,
        first_seconds=first,
        image_seconds=evaluation.image_seconds,
        memory=memory,
        memory_of="accelerator" if device.type == "cuda" else "process",
        optimizer_bytes=state,
    )


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _own_memory() -> int:
    """Most bytes that this process had in memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
