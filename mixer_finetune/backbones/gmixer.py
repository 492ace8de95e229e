"""gMixer: the Mixer with gated MLPs (SwiGLU of arXiv 2002.05202), as in timm's experiment, tokens first.

Shapes: N tokens, B batch, C channels, D_S hidden width of the token MLP, D_C of the channel MLP; half of each gates the
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from mixer_finetune.backbones.family import Family, Variant, Weights
from mixer_finetune.backbones.mixer import NORM_EPS, MixerBlock, token_mlp_of
from mixer_finetune.backbones.tokens import TokenLinear, TokenMixing


class GatedTokenMlp(TokenMixing):
    """The MLP across tokens, its hidden half gated by the other half."""

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = TokenLinear(tokens, hidden)
        self.fc2 = TokenLinear(hidden // 2, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        return self.on_trained_grid(self._mlp, x)

    def _mlp(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        value, gate = self.fc1(x).chunk(2)  # each (D_S / 2, B, C)
        x = self.fc2(value * F.silu(gate))
        return x


class GatedChannelMlp(nn.Module):
    """The MLP across channels, its hidden half gated by the other half."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        value, gate = self.fc1(x).chunk(2, dim=-1)  # each (N, B, D_C / 2)
        x = self.fc2(value * F.silu(gate))
        return x


def _block(variant: Variant, tokens: int, token_hidden: int | None, activation: str) -> MixerBlock:
    """A Mixer block with gated MLPs; their activation is SiLU, whatever is asked for."""
    assert token_hidden is not None
    return MixerBlock(
        variant.embed_dim,
        GatedTokenMlp(tokens, token_hidden),
        GatedChannelMlp(variant.embed_dim, variant.channel_hidden),
    )


def _recognise(weights: Mapping[str, Tensor]) -> tuple[int, int | None] | None:
    found = token_mlp_of(weights)
    return found[:2] if found and found[2] else None


FAMILY = Family(
    name="gmixer",
    block=_block,
    norm=partial(nn.LayerNorm, eps=NORM_EPS),
    sides={
        "mlp_tokens.fc1.weight": ("gated", "tokens"),
        "mlp_tokens.fc1.bias": ("gated",),
        "mlp_tokens.fc2.weight": ("tokens", "hidden"),
        "mlp_tokens.fc2.bias": ("tokens",),
    },
    recognise=_recognise,
    variants={
        "gmixer_12_224": Variant(16, 12, 384, (1.0, 4.0), imagenet_statistics=True),
        "gmixer_24_224": Variant(
            16, 24, 384, (1.0, 4.0), imagenet_statistics=True, weights=(Weights("ra3_in1k", top1=78.048),)
        ),
    },
)
