"""ResMLP: Feedforward networks for image classification (arXiv 2105.03404, section 2), tokens first.

Shapes: N tokens, B batch, C channels, D_C hidden width of the channel MLP.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mixer_finetune.backbones.family import Family, Layout, Variant, Weights
from mixer_finetune.backbones.mixer import ChannelMlp
from mixer_finetune.backbones.tokens import TokenLinear, TokenMixing


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


class ResMlpBlock(TokenMixing):
    """A linear map across tokens, then an MLP across channels, each behind an affine map, scaled, around a skip."""

    def __init__(self, tokens: int, channels: int, hidden: int, activation: str, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = Affine(channels)
        self.linear_tokens = TokenLinear(tokens, tokens)
        self.norm2 = Affine(channels)
        self.mlp_channels = ChannelMlp(channels, hidden, activation)
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
        first, second = (
            (self.ls1, self.ls2) if keep is None else keep[:, :, None] * torch.stack([self.ls1, self.ls2])[:, None]
        )
        x = x + first * self.on_trained_grid(self.linear_tokens, self.norm1(x))
        x = x + second * self.mlp_channels(self.norm2(x))
        return x


def _block(variant: Variant, tokens: int, token_hidden: int | None, activation: str) -> ResMlpBlock:
    assert variant.layer_scale is not None
    return ResMlpBlock(tokens, variant.embed_dim, variant.channel_hidden, activation, variant.layer_scale)


def _recognise(weights: Mapping[str, Tensor]) -> tuple[int, int | None] | None:
    matrix = weights.get("blocks.0.linear_tokens.weight")
    return None if matrix is None else (len(matrix), None)


def _in_timms_shape(name: str, value: Tensor) -> Tensor:
    """Facebook keeps the affine maps' parameters as (C,), timm as (1, 1, C)."""
    return value.view(1, 1, -1) if name.endswith((".alpha", ".beta")) else value


_FACEBOOK = Layout(
    marker="patch_embed.proj.weight",
    rules=(
        (r"patch_embed\.", "stem."),
        (r"(blocks\.\d+)\.attn\.", r"\1.linear_tokens."),
        (r"(blocks\.\d+)\.mlp\.", r"\1.mlp_channels."),
        (r"(blocks\.\d+)\.gamma_", r"\1.ls"),
    ),
    convert=_in_timms_shape,
)


def _variant(
    patch_size: int, num_blocks: int, embed_dim: int, layer_scale: float, in1k: float, distilled: float, *more: Weights
) -> Variant:
    weights = (Weights("fb_in1k", top1=in1k), Weights("fb_distilled_in1k", top1=distilled), *more)
    return Variant(patch_size, num_blocks, embed_dim, (None, 4.0), 224, layer_scale, True, weights)


_DINO = Weights("fb_dino", warning="self-supervised: whether its 1000-class head is trained is not known")

FAMILY = Family(
    name="resmlp",
    block=_block,
    norm=Affine,
    sides={"linear_tokens.weight": ("tokens", "tokens"), "linear_tokens.bias": ("tokens",)},
    recognise=_recognise,
    layouts=(_FACEBOOK,),
    variants={
        "resmlp_12_224": _variant(16, 12, 384, 1e-4, 76.660, 77.948, _DINO),
        "resmlp_24_224": _variant(16, 24, 384, 1e-5, 79.380, 80.766, _DINO),
        "resmlp_36_224": _variant(16, 36, 384, 1e-6, 79.772, 81.150),
        "resmlp_big_24_224": _variant(8, 24, 768, 1e-6, 81.034, 83.594, Weights("fb_in22k_ft_in1k", top1=84.414)),
    },
)
