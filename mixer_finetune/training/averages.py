"""Averages of weights: the exponential moving average of a run, and points on the line between two states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


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


def between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The weights at `alpha` of the way from one state to another (WiSE-FT, arXiv 2109.01903).

    Args:
        start: At 0.
        end: At 1, with the same names; what is no floating-point number is taken from here.
        alpha: 0 to 1.
    """
    return {
        name: torch.lerp(start[name].to(value), value, alpha) if value.is_floating_point() else value
        for name, value in end.items()
    }


def mean_of(states: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several states, by name, taken in float64."""
    total = {name: value.double() for name, value in states[0].items()}
    for state in states[1:]:
        for name in total:
            total[name] += state[name].double()
    return {name: (value / len(states)).to(states[0][name].dtype) for name, value in total.items()}
