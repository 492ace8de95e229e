"""gMixer: the Mixer with gated MLPs (SwiGLU of arXiv 2002.05202), as in timm's experiment, tokens first.

Shapes: N tokens, B batch, C channels, D_S hidden width of the token MLP, D_C of the channel MLP; half of each gates the other.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mixer_finetune.backbones.mixer import NORM_EPS, MixerBlock
from mixer_finetune.backbones.tokens import TokenMixing, across_tokens


class GatedTokenMlp(TokenMixing):
    """The MLP across tokens, its hidden half gated by the other half."""

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(tokens, hidden)
        self.fc2 = nn.Linear(hidden // 2, tokens)

    def mix(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        value, gate = across_tokens(self.fc1, x.flatten(1)).chunk(2)  # each (D_S / 2, B C)
        return across_tokens(self.fc2, value * F.silu(gate)).view(x.shape)  # (N, B, C)


class GatedChannelMlp(nn.Module):
    """The MLP across channels, its hidden half gated by the other half."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        value, gate = self.fc1(x).chunk(2, dim=-1)  # each (N, B, D_C / 2)
        return self.fc2(value * F.silu(gate))


class GMixerBlock(MixerBlock):
    """A Mixer block with gated MLPs."""

    def __init__(
        self, tokens: int, channels: int, token_hidden: int, channel_hidden: int, activation: str, layer_scale: float
    ) -> None:
        nn.Module.__init__(self)
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_tokens = GatedTokenMlp(tokens, token_hidden)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_channels = GatedChannelMlp(channels, channel_hidden)
