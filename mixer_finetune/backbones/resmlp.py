"""ResMLP: Feedforward networks for image classification (arXiv 2105.03404, section 2), tokens first.

Shapes: N tokens, B batch, C channels, D_C hidden width of the channel MLP.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixer_finetune.backbones.mixer import ChannelMlp
from mixer_finetune.backbones.tokens import TokenLinear


class Affine(nn.Module):
    """Scale and shift of each channel, in the place of a normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, 1, channels))
        self.beta = nn.Parameter(torch.empty(1, 1, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity."""
        nn.init.ones_(self.alpha)
        nn.init.zeros_(self.beta)

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        return torch.addcmul(self.beta, self.alpha, x)


class ResMlpBlock(nn.Module):
    """One matrix across tokens, then an MLP across channels, each behind an affine map, scaled, around a skip connection."""

    def __init__(
        self, tokens: int, channels: int, token_hidden: int | None, channel_hidden: int, activation: str, layer_scale: float
    ) -> None:
        super().__init__()
        self.norm1 = Affine(channels)
        self.linear_tokens = TokenLinear(tokens, tokens)
        self.norm2 = Affine(channels)
        self.mlp_channels = ChannelMlp(channels, channel_hidden, activation)
        self.layer_scale = layer_scale
        self.ls1 = nn.Parameter(torch.empty(channels))
        self.ls2 = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small scales, so that a deep network starts near the identity (section 2, "LayerScale")."""
        nn.init.constant_(self.ls1, self.layer_scale)
        nn.init.constant_(self.ls2, self.layer_scale)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(N, B, C) to (N, B, C); `keep` (2, B) scales what each of the two branches adds, image by image."""
        first, second = (self.ls1, self.ls2) if keep is None else keep[:, :, None] * torch.stack([self.ls1, self.ls2])[:, None]
        x = x + first * self.linear_tokens(self.norm1(x))
        return x + second * self.mlp_channels(self.norm2(x))
