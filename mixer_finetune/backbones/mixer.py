"""MLP-Mixer: An all-MLP Architecture for Vision (arXiv 2105.01601, section 2), tokens first.

Shapes: N tokens, B batch, C channels, D_S hidden width of the token MLP, D_C of the channel MLP.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mixer_finetune.backbones.tokens import TokenMixing, across_tokens

NORM_EPS = 1e-6
# PyTorch's names of GELU's exact form and of the tanh form that Flax computes.
GELU_FORMS = {"gelu": "none", "gelu_tanh": "tanh"}


class TokenMlp(TokenMixing):
    """The MLP across tokens: shared by all channels, it mixes locations."""

    def __init__(self, tokens: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(tokens, hidden)
        self.fc2 = nn.Linear(hidden, tokens)
        self.approximate = GELU_FORMS[activation]

    def mix(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        hidden = F.gelu(across_tokens(self.fc1, x.flatten(1)), approximate=self.approximate)  # (D_S, B C)
        return across_tokens(self.fc2, hidden).view(x.shape)  # (N, B, C)


class ChannelMlp(nn.Module):
    """The MLP across channels: shared by all tokens, it mixes features at a location."""

    def __init__(self, channels: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.approximate = GELU_FORMS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C), through (N, B, D_C)."""
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each behind a layer norm and around a skip connection."""

    def __init__(
        self, tokens: int, channels: int, token_hidden: int, channel_hidden: int, activation: str, layer_scale: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_tokens = TokenMlp(tokens, token_hidden, activation)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_channels = ChannelMlp(channels, channel_hidden, activation)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(N, B, C) to (N, B, C); `keep` (2, B) scales what each of the two branches adds, image by image."""
        if keep is None:
            x = x + self.mlp_tokens(self.norm1(x))
            return x + self.mlp_channels(self.norm2(x))
        x = x + keep[0, :, None] * self.mlp_tokens(self.norm1(x))
        return x + keep[1, :, None] * self.mlp_channels(self.norm2(x))
