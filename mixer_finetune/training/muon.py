"""Muon for the matrices of the blocks and AdamW for all else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from mixer_finetune.errors import UserError

# Which of the two optimizers steps a group of parameters.
_PART = "part"


class MuonAdamW(Optimizer):
    """torch's Muon (momentum orthogonalised by Newton-Schulz iterations) beside AdamW.

    Muon's updates are scaled to AdamW's typical size (`match_rms_adamw`, arXiv 2502.16982), so that one learning rate
    serves both. Groups, state, checkpoints, clipping and schedules are those of one optimizer.

    Args:
        muon: Groups of two-dimensional weights.
        adamw: Groups of all other parameters, as are those that are added later.
        lr: Of both.
        momentum: Of Muon.

    Raises:
        UserError: This torch has no Muon.
    """

    def __init__(self, muon: list[dict[str, Any]], adamw: list[dict[str, Any]], lr: float, momentum: float) -> None:
        if not hasattr(torch.optim, "Muon"):
            problem = f"torch {torch.__version__} has no Muon, which came with torch 2.9"
            raise UserError(problem, option="optimizer", choices="adamw, or install a newer torch")
        self._parts: dict[str, Optimizer] = {}
        if muon:
            self._parts["muon"] = torch.optim.Muon(muon, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        if adamw:
            self._parts["adamw"] = AdamW(adamw, lr=lr)
        self._adamw_defaults = AdamW([torch.zeros(1)], lr=lr).defaults
        for name, part in self._parts.items():
            for group in part.param_groups:
                group[_PART] = name
        super().__init__([group for part in self._parts.values() for group in part.param_groups], {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters for AdamW."""
        if _PART not in param_group:
            param_group.update({_PART: "adamw", **{**self._adamw_defaults, **param_group}})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, part in self._parts.items():
            # A checkpoint that was loaded, and groups that were added, are here.
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group[_PART] == name]
            part.step()
        return loss
