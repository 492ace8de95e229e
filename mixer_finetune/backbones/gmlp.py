"""gMLP: Pay Attention to MLPs (arXiv 2105.08050, section 2), tokens first.

Shapes: N tokens, B batch, C channels, D hidden width; half of it gates the other.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mixer_finetune.backbones.mixer import GELU_FORMS, NORM_EPS
from mixer_finetune.backbones.tokens import TokenLinear


class SpatialGatingUnit(nn.Module):
    """Multiply one half of the features by the other half, normalised and mixed across tokens."""

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden // 2)  # PyTorch's own epsilon, 1e-5, as in timm's weights
        self.proj = TokenLinear(tokens, tokens)

    def reset_parameters(self) -> None:
        """Zero weights and unit biases, so that the unit starts as the identity (section 2.1)."""
        nn.init.zeros_(self.proj.weight)
        nn.init.ones_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, D) to (N, B, D / 2)."""
        value, gate = x.chunk(2, dim=-1)
        return value * self.proj(self.norm(gate))


class GatedMlp(nn.Module):
    """The MLP across channels, with a spatial gating unit inside: all that mixes tokens in a gMLP."""

    def __init__(self, tokens: int, channels: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.gate = SpatialGatingUnit(tokens, hidden)
        self.fc2 = nn.Linear(hidden // 2, channels)
        self.approximate = GELU_FORMS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        return self.fc2(self.gate(F.gelu(self.fc1(x), approximate=self.approximate)))


class GMlpBlock(nn.Module):
    """A gated MLP behind a layer norm and around a skip connection."""

    def __init__(
        self, tokens: int, channels: int, token_hidden: int | None, channel_hidden: int, activation: str, layer_scale: float
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_channels = GatedMlp(tokens, channels, channel_hidden, activation)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(N, B, C) to (N, B, C); `keep` (2, B): its first row scales what the branch adds, image by image."""
        added = self.mlp_channels(self.norm(x))
        return x + (added if keep is None else keep[0, :, None] * added)
