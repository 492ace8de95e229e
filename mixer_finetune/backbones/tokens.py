"""What mixes tokens: a map across them that all channels share, in every family.

Shapes: N tokens, B batch, C channels; D_S hidden width of a token MLP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mixer_finetune.backbones.resize import Grid, resample_tokens


class TokenMixing(nn.Module, ABC):
    """A map across tokens, (N, B, C) to (N, B, C), that can also be run on the grid it was trained on.

    Attributes:
        grids: The present grid and the trained one; None when they are the same.
    """

    grids: tuple[Grid, Grid] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        if self.grids is None:
            return self.mix(x)
        present, trained = self.grids
        return resample_tokens(self.mix(resample_tokens(x, present, trained)), trained, present)

    @abstractmethod
    def mix(self, x: Tensor) -> Tensor:
        """The map itself, on the grid it was trained on."""


class TokenLinear(TokenMixing, nn.Linear):
    """One matrix across tokens (ResMLP, gMLP)."""

    def mix(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        return across_tokens(self, x.flatten(1)).view(x.shape)


def across_tokens(linear: nn.Linear, columns: Tensor) -> Tensor:
    """A linear layer applied to columns: (N, B C) to (M, B C)."""
    return torch.addmm(linear.bias[:, None], linear.weight, columns)
