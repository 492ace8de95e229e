"""Logistic regression of classes on standardised features, by L-BFGS.

Minimises mean cross-entropy + l2 / 2 |W|^2, as scikit-learn's LogisticRegression with C = 1 / (n l2) on features that
its StandardScaler has scaled.

Shapes: n images, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Penalties that are tried, the strongest first: each starts from the solution of the one before.
PATH = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Logistic:
    """A logistic regression.

    Attributes:
        mean: (C,) subtracted from the features.
        std: (C,) what they are divided by, after that.
        weight: (K, C).
        bias: (K,).
        l2: The penalty.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    l2: float

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """The class of each image, (m,), from its features (m, C)."""
        x = (features.to(self.mean) - self.mean) / self.std
        return F.linear(x, self.weight, self.bias).argmax(-1).cpu()


def logistic_path(
    features: Tensor,
    labels: Tensor,
    classes: int,
    penalties: Sequence[float] = PATH,
    device: torch.device | str = "cpu",
    iterations: int = 100,
) -> Iterator[Logistic]:
    """The regression for each penalty.

    Args:
        features: (n, C), in whose type all is computed.
        labels: (n,) class numbers.
        classes: K.
        penalties: Each l2, from strong to weak.
        device: Where it is computed.
        iterations: At most, for each penalty.
    """
    x, y = features.to(device), labels.to(device)
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))  # a channel that never changes says nothing
    x = (x - mean) / std
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device, requires_grad=True)
    for l2 in penalties:
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=iterations,
            tolerance_grad=1e-7,
            tolerance_change=0.01 * torch.finfo(x.dtype).eps,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def loss(l2: float = l2, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            with torch.enable_grad():
                total = F.cross_entropy(F.linear(x, weight, bias), y) + l2 / 2 * weight.square().sum()
                torch.autograd.backward(total)
            return total.detach()

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        yield Logistic(mean, std, weight.detach().clone(), bias.detach().clone(), l2)
