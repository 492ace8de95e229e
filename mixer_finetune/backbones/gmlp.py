"""gMLP: Pay Attention to MLPs (arXiv 2105.08050, section 2), tokens first.

Shapes: N tokens, B batch, C channels, D hidden width; half of it gates the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from mixer_finetune.backbones.family import Family, Variant, Weights
from mixer_finetune.backbones.mixer import GELU_FORMS, NORM_EPS
from mixer_finetune.backbones.tokens import TokenLinear, TokenMixing


class SpatialGatingUnit(TokenMixing):
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
        return value * self.on_trained_grid(self.proj, self.norm(gate))


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
        x = F.gelu(self.fc1(x), approximate=self.approximate)  # (N, B, D)
        x = self.fc2(self.gate(x))
        return x


class GMlpBlock(nn.Module):
    """A gated MLP behind a layer norm and around a skip connection."""

    def __init__(self, tokens: int, channels: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_channels = GatedMlp(tokens, channels, hidden, activation)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(N, B, C) to (N, B, C); `keep` (2, B): its first row scales what the branch adds, image by image."""
        added: Tensor = self.mlp_channels(self.norm(x))
        return x + (added if keep is None else keep[0, :, None] * added)


def _block(variant: Variant, tokens: int, token_hidden: int | None, activation: str) -> GMlpBlock:
    return GMlpBlock(tokens, variant.embed_dim, variant.channel_hidden, activation)


def _recognise(weights: Mapping[str, Tensor]) -> tuple[int, int | None] | None:
    matrix = weights.get("blocks.0.mlp_channels.gate.proj.weight")
    return None if matrix is None else (len(matrix), None)


FAMILY = Family(
    name="gmlp",
    block=_block,
    norm=partial(nn.LayerNorm, eps=NORM_EPS),
    sides={"gate.proj.weight": ("tokens", "tokens"), "gate.proj.bias": ("tokens",)},
    recognise=_recognise,
    variants={
        "gmlp_ti16_224": Variant(16, 30, 128, (None, 6.0)),
        "gmlp_s16_224": Variant(16, 30, 256, (None, 6.0), weights=(Weights("ra3_in1k", top1=79.652),)),
        "gmlp_b16_224": Variant(16, 30, 512, (None, 6.0)),
    },
)
