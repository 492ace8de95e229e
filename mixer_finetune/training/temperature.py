"""Temperature scaling (Guo et al., arXiv 1706.04599): one number that all logits are divided by, fitted on a dev split.

It changes no answer: the largest logit stays the largest, and of several labels the sign of each logit stays.

Shapes: n images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# (logits (n, C), targets) to the negative log-likelihood of each image, (n,).
Losses = Callable[[Tensor, Tensor], Tensor]
# Of 1 / temperature. Beyond them a split says no more than "as sure as can be" or "not at all".
LOWEST, HIGHEST = 1 / 20, 20.0
FOLDS = 5
_STEPS, _CLOSE = 60, 1e-13
_AT_ONCE = 2**20  # logits


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by.

    Attributes:
        value: Above 1 answers become less sure; 1 where no temperature is better than none.
        held_out: (n,) what each image's logits are divided by where it must not have had a say: the temperature of the
            images of the other folds.
        why_not: Why it is 1, in words; None where it was fitted.
    """

    value: float
    held_out: Tensor
    why_not: str | None = None


def fit_temperature(logits: Tensor, targets: Tensor, losses: Losses, all_right: bool) -> Temperature:
    """The temperature of the lowest mean loss, where it also lowers the loss of images that had no say in it.

    Image i is in fold i mod 5. The loss is convex in 1 / temperature, so Newton's method finds its one minimum.

    Args:
        logits: (n, C).
        targets: As the task has them.
        losses: The negative log-likelihood of each image.
        all_right: Whether all n are answered rightly: the loss then falls for ever as answers become surer.
    """
    n = len(logits)
    fold = torch.arange(n, device=logits.device) % FOLDS
    ones = torch.ones(n, dtype=torch.float64, device=logits.device)
    if n < 2 * FOLDS:
        return Temperature(1.0, ones, f"{n} images are too few to fit one")
    if not torch.isfinite(logits).all():
        return Temperature(1.0, ones, "some logits are no finite numbers")
    if all_right:
        return Temperature(1.0, ones, f"all {n:,} images are answered rightly, which does not tell how sure to be")
    factor = _best_factor(logits, targets, losses, 1.0)
    held_out = ones.clone()
    for k in range(FOLDS):
        others = fold != k
        held_out[~others] = 1 / _best_factor(logits[others], targets[others], losses, factor)
    before, after = mean_loss(logits, targets, losses), mean_loss(logits, targets, losses, held_out)
    if after >= before:
        why = f"a temperature of {1 / factor:.3g} was no better on images that it was not fitted on"
        return Temperature(1.0, ones, why)
    return Temperature(1 / factor, held_out)


def mean_loss(logits: Tensor, targets: Tensor, losses: Losses, temperature: Tensor | float = 1.0) -> float:
    """The mean loss with logits divided by one temperature, or each image's by its own, (n,)."""
    total = 0.0
    for part in _parts(logits):
        by = temperature[part, None] if isinstance(temperature, Tensor) else temperature
        total += float(losses(logits[part].double() / by, targets[part]).sum())
    return total / len(logits)


def fold_into(head: nn.Linear, temperature: float) -> None:
    """Divide weight and bias by a temperature, so that the head's logits are."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter.double() / temperature)


def _best_factor(logits: Tensor, targets: Tensor, losses: Losses, start: float) -> float:
    """The factor on the logits, 1 / temperature, with the lowest mean loss, by Newton's method within a bracket."""
    low, high, factor = LOWEST, HIGHEST, start
    for _ in range(_STEPS):
        slope, curvature = _derivatives(logits, targets, losses, factor)
        low, high = (low, factor) if slope > 0 else (factor, high)
        step = factor - slope / curvature if curvature > 0 else 0.0
        following = step if low < step < high else (low + high) / 2
        if abs(following - factor) <= _CLOSE * factor:
            return following
        factor = following
    return factor


def _derivatives(logits: Tensor, targets: Tensor, losses: Losses, factor: float) -> tuple[float, float]:
    """Of the summed loss by the factor: the first and the second."""
    first = second = 0.0
    with torch.inference_mode(False), torch.enable_grad():
        for part in _parts(logits):
            at = torch.tensor(factor, dtype=torch.float64, device=logits.device, requires_grad=True)
            loss = losses(logits[part].clone().double() * at, targets[part].clone()).sum()
            (slope,) = torch.autograd.grad(loss, at, create_graph=True)
            (curvature,) = torch.autograd.grad(slope, at)
            first, second = first + float(slope.detach()), second + float(curvature)
    return first, second


def _parts(logits: Tensor) -> list[slice]:
    """Slices of the images whose logits fit into memory several times."""
    size = max(1, _AT_ONCE // logits.shape[1])
    return [slice(start, start + size) for start in range(0, len(logits), size)]
