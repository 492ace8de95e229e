"""Averages of weights: the exponential moving average of a run, and points on the way between two states."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mixer_finetune.backbones.adapters import DOWN
from mixer_finetune.training.layers import layer_of


class WeightEma:
    """The exponential moving average of the trained parameters, one update an optimizer step.

    The decay of step t (from 1) is min(decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage, so that
    the initial weights do not stay in the average of a short run.

    Args:
        module: Whose parameters; they are averaged in float32 at least.
        decay: In [0, 1).

    Attributes:
        weights: The average, by the parameters' names.
        steps: Updates so far.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.weights = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in module.named_parameters()
            if p.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the weights behind a step."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, parameter in module.named_parameters():
            if name in self.weights:
                average = self.weights[name]
                average.lerp_(parameter.to(average.dtype), weight)

    def as_in(self, module: nn.Module) -> dict[str, Tensor]:
        """The average in the types of a module's parameters, by name."""
        return {
            name: self.weights[name].to(parameter.dtype)
            for name, parameter in module.named_parameters()
            if name in self.weights
        }

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"weights": self.weights, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on with a checkpoint's average."""
        saved, steps = state["weights"], state["steps"]
        assert isinstance(saved, Mapping) and isinstance(steps, int)
        self.steps = steps
        self.weights = {name: saved[name].to(value) for name, value in self.weights.items()}


def between(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float | Callable[[str], float]
) -> dict[str, Tensor]:
    """The weights on the way from one state to another (WiSE-FT, arXiv 2109.01903, where all have one share of it).

    The update of an adapter is a product that starts at zero: it has its share where one factor does.

    Args:
        start: At 0.
        end: At 1, with the same names; what is no floating-point number is taken from here.
        share: 0 to 1, of all weights or by their name.
    """

    def at(name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point() or name.endswith(f".{DOWN}"):
            return value
        return torch.lerp(start[name].to(value), value, share(name) if callable(share) else share)

    return {name: at(name, value) for name, value in end.items()}


def share_by_depth(alpha: float, blocks: int) -> Callable[[str], float]:
    """The share of the update that each layer keeps: alpha in the first block, 1 in the last, linear in between.

    LiNeS (arXiv 2410.17146, with beta = 1 - alpha). The patch embedding goes with the first block, the final norm with
    the last, and the head keeps all.

    Args:
        alpha: 0 to 1.
        blocks: n, of the backbone.
    """

    def share(name: str) -> float:
        layer = layer_of(name, blocks)
        return 1.0 if layer > blocks else alpha + (1 - alpha) * (max(layer, 1) - 1) / max(blocks - 1, 1)

    return share


def mean_of(states: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several states, by name, taken in float64."""
    total = {name: value.double() for name, value in states[0].items()}
    for state in states[1:]:
        for name in total:
            total[name] += state[name].double()
    return {name: (value / len(states)).to(states[0][name].dtype) for name, value in total.items()}
