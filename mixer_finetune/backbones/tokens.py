"""What mixes tokens: linear maps across them that all channels share, in every family.

Shapes: N tokens, M outputs for each channel, B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixer_finetune.backbones.family import Side
from mixer_finetune.backbones.geometry import Grid
from mixer_finetune.backbones.resampling import resample_tokens, resampled_in_passing


class TokenLinear(nn.Linear):
    """A linear map across tokens. It is always called as a module, so that an adapter can take its place.

    Attributes:
        grids: The present grid and that of its parameters, which are resampled in passing; None when they are the same.
        sides: What the sides of its weight index, where they are resampled.
    """

    grids: tuple[Grid, Grid] | None = None
    sides: tuple[Side, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (M, B, C)."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.grids is not None:
            present, own = self.grids
            weight, bias = resampled_in_passing(weight, bias, self.sides, own, present)
        mixed = torch.addmm(bias[:, None], weight, x.flatten(1))  # (M, B C)
        return mixed.view(-1, *x.shape[1:])


class TokenMixing(nn.Module):
    """A module that mixes tokens, and can do so on the grid that its weights were trained on.

    Attributes:
        grids: The present grid and the trained one; None when they are the same.
    """

    grids: tuple[Grid, Grid] | None = None

    def on_trained_grid(self, mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`mix(x)`, (N, B, C) to (N, B, C), with the tokens taken to the trained grid before it and back after it."""
        if self.grids is None:
            return mix(x)
        present, trained = self.grids
        return resample_tokens(mix(resample_tokens(x, present, trained)), trained, present)
