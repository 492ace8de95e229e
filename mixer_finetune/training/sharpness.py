"""Sharpness-aware minimisation: the step of any optimizer by the gradient at the worst weights nearby.

SAM (arXiv 2010.01412) perturbs the weights by rho along the gradient; ASAM (2102.11600) by rho in units of the weights.
The perturbation is that of the whole gradient: over all micro-batches of the step, reduced over all devices. So the
micro-batches of a step are kept until its last one, and computed again at the perturbed weights. Clipping, scaling and
callbacks see the second gradient alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from mixer_finetune.errors import UserError


class Sharpness:
    """The two passes of a step.

    Args:
        rho: Length of the perturbation.
        adaptive: ASAM in place of SAM.

    Attributes:
        again: Whether the pass at the perturbed weights is under way.
    """

    def __init__(self, rho: float, adaptive: bool) -> None:
        self.rho, self.adaptive, self.again = rho, adaptive, False
        self._kept: list[tuple[Any, int]] = []

    def check(self, trainer: pl.Trainer) -> None:
        """Refuse what would compute something else.

        Raises:
            UserError: Weights are sharded over devices.
        """
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            problem = f"sam_rho needs whole weights on each device, which {type(trainer.strategy).__name__} splits"
            raise UserError(problem, advice="use {trainer.strategy} ddp, or leave out {sam_rho}")

    def keep(self, batch: Any, batch_idx: int) -> None:
        """Keep a micro-batch of the first pass until its step is done."""
        self._kept.append((batch, batch_idx))

    def around(
        self, module: pl.LightningModule, first: Callable[[], Any], before_use: Callable[[], None]
    ) -> Callable[[], Any]:
        """The closure of both passes.

        Args:
            module: Whose `training_step` both passes call.
            first: Lightning's closure: the first pass over the step's last micro-batch.
            before_use: Called when the first gradient is whole.

        Returns:
            What leaves the gradients at the perturbed weights, and the weights as they were.
        """

        def both() -> Any:
            loss = first()
            before_use()
            self._second_pass(module)
            return loss

        return both

    def _second_pass(self, module: pl.LightningModule) -> None:
        trainer, kept = module.trainer, self._kept
        strategy: Any = trainer.strategy
        optimizer = trainer.optimizers[0]
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        before = perturb(trained, self.rho, self.adaptive)
        for parameter in trained:
            parameter.grad = None
        self.again = True
        try:
            for i, (batch, batch_idx) in enumerate(kept):
                unsynchronised = i + 1 < len(kept) and isinstance(strategy, ParallelStrategy)
                with strategy.block_backward_sync() if unsynchronised else nullcontext(), torch.enable_grad():
                    loss: Tensor = strategy.training_step(batch, batch_idx)
                    strategy.backward(loss / trainer.accumulate_grad_batches, optimizer)
        finally:
            self.again = False
            self._kept = []
            with torch.no_grad():
                for parameter, value in zip(trained, before, strict=True):
                    parameter.copy_(value)


@torch.no_grad()
def perturb(parameters: list[nn.Parameter], rho: float, adaptive: bool) -> list[Tensor]:
    """Move parameters to the worst place nearby, to first order, by their gradients.

    Args:
        parameters: With gradients.
        rho: Length of the way, over all of them; with `adaptive` in units of each weight.
        adaptive: ASAM's scale-invariant form, T_w = |w|.

    Returns:
        Copies of the parameters as they were.
    """
    before = [parameter.clone() for parameter in parameters]
    gradients = [p.grad for p in parameters if p.grad is not None]
    scaled = [p.abs() * g for p, g in zip(parameters, gradients, strict=True)] if adaptive else gradients
    norm = torch.stack([g.norm() for g in scaled]).norm()
    factor = rho / (norm + 1e-12)
    for parameter, gradient in zip(parameters, scaled, strict=True):
        way = gradient * factor.to(gradient.dtype)
        parameter.add_(parameter.abs() * way if adaptive else way)
    return before
