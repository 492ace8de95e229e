"""MLP-Mixer: An all-MLP Architecture for Vision (arXiv 2105.01601, section 2), tokens first.

Shapes: N tokens, B batch, C channels, D_S hidden width of the token MLP, D_C of the channel MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from mixer_finetune.backbones.family import Family, Layout, Rule, Variant, Weights
from mixer_finetune.backbones.tokens import TokenLinear, TokenMixing

NORM_EPS = 1e-6  # the paper's Flax code; PyTorch's default is 1e-5
# PyTorch's names of GELU's exact form and of the tanh form that Flax computes.
GELU_FORMS = {"gelu": "none", "gelu_tanh": "tanh"}


class TokenMlp(TokenMixing):
    """The MLP across tokens: shared by all channels, it mixes locations."""

    def __init__(self, tokens: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = TokenLinear(tokens, hidden)
        self.fc2 = TokenLinear(hidden, tokens)
        self.approximate = GELU_FORMS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        return self.on_trained_grid(self._mlp, x)

    def _mlp(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C), through (D_S, B, C)."""
        x = F.gelu(self.fc1(x), approximate=self.approximate)
        x = self.fc2(x)
        return x


class ChannelMlp(nn.Module):
    """The MLP across channels: shared by all tokens, it mixes features at a location."""

    def __init__(self, channels: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.approximate = GELU_FORMS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C), through (N, B, D_C)."""
        x = F.gelu(self.fc1(x), approximate=self.approximate)
        x = self.fc2(x)
        return x


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each behind a layer norm and around a skip connection.

    Args:
        channels: C.
        mlp_tokens: (N, B, C) to (N, B, C), across tokens.
        mlp_channels: (N, B, C) to (N, B, C), across channels.
    """

    def __init__(self, channels: int, mlp_tokens: nn.Module, mlp_channels: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_tokens = mlp_tokens
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_channels = mlp_channels

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(N, B, C) to (N, B, C); `keep` (2, B) scales what each of the two branches adds, image by image."""
        if keep is None:
            x = x + self.mlp_tokens(self.norm1(x))
            x = x + self.mlp_channels(self.norm2(x))
        else:
            x = x + keep[0, :, None] * self.mlp_tokens(self.norm1(x))
            x = x + keep[1, :, None] * self.mlp_channels(self.norm2(x))
        return x


def _block(variant: Variant, tokens: int, token_hidden: int | None, activation: str) -> MixerBlock:
    assert token_hidden is not None
    return MixerBlock(
        variant.embed_dim,
        TokenMlp(tokens, token_hidden, activation),
        ChannelMlp(variant.embed_dim, variant.channel_hidden, activation),
    )


def token_mlp_of(weights: Mapping[str, Tensor]) -> tuple[int, int, bool] | None:
    """Tokens and hidden width of the first block's token MLP, and whether it is gated; None where there is none."""
    first, second = (weights.get(f"blocks.0.mlp_tokens.{layer}.weight") for layer in ("fc1", "fc2"))
    if first is None or first.ndim != 2:
        return None
    hidden, tokens = first.shape
    return tokens, hidden, second is not None and 2 * second.shape[-1] == hidden


def _recognise(weights: Mapping[str, Tensor]) -> tuple[int, int | None] | None:
    found = token_mlp_of(weights)
    return found[:2] if found and not found[2] else None


# Names of the Flax code (google-research/vision_transformer), then those of its older layout.
_FLAX: tuple[Rule, ...] = (
    (r"stem/", "stem.proj."),
    (r"MixerBlock_(\d+)/LayerNorm_0/", r"blocks.\1.norm1."),
    (r"MixerBlock_(\d+)/LayerNorm_1/", r"blocks.\1.norm2."),
    (r"MixerBlock_(\d+)/(token|channel)_mixing/Dense_0/", r"blocks.\1.mlp_\2s.fc1."),
    (r"MixerBlock_(\d+)/(token|channel)_mixing/Dense_1/", r"blocks.\1.mlp_\2s.fc2."),
    (r"pre_head_layer_norm/", "norm."),
    (r"head/", "head."),
    (r"embedding/", "stem.proj."),
    (r"Mixer/encoderblock_(\d+)/LayerNorm_0/", r"blocks.\1.norm1."),
    (r"Mixer/encoderblock_(\d+)/LayerNorm_1/", r"blocks.\1.norm2."),
    (r"Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_0/(kernel|bias)1", r"blocks.\1.mlp_\2s.fc1.\3"),
    (r"Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_0/(kernel|bias)2", r"blocks.\1.mlp_\2s.fc2.\3"),
    (r"Mixer/encoder_norm/", "norm."),
)
_OPENMMLAB = Layout(
    marker="backbone.patch_embed.projection.weight",
    rules=(
        (r"backbone\.patch_embed\.projection\.", "stem.proj."),
        (r"backbone\.layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
        (r"backbone\.layers\.(\d+)\.(token|channel)_mix\.layers\.0\.0\.", r"blocks.\1.mlp_\2s.fc1."),
        (r"backbone\.layers\.(\d+)\.(token|channel)_mix\.layers\.1\.", r"blocks.\1.mlp_\2s.fc2."),
        (r"backbone\.ln1\.", "norm."),
        (r"head\.fc\.", "head."),
    ),
)
_MIIL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}
_MISNAMED = (
    "the tag says ImageNet-21k, but the accuracy matches the paper's rows trained on ImageNet-1k alone (76.44 / 71.76 "
    "against 80.64 / 82.89): to fine-tune, start from goog_in21k or miil_in21k"
)

# Sizes: table 1 of the paper. `mixer_nano_32` and `mixer_micro_64` are this project's own.
FAMILY = Family(
    name="mixer",
    block=_block,
    norm=partial(nn.LayerNorm, eps=NORM_EPS),
    sides={
        "mlp_tokens.fc1.weight": ("hidden", "tokens"),
        "mlp_tokens.fc1.bias": ("hidden",),
        "mlp_tokens.fc2.weight": ("tokens", "hidden"),
        "mlp_tokens.fc2.bias": ("tokens",),
    },
    recognise=_recognise,
    mlp_ratio_in_timm=True,
    flax_rules=_FLAX,
    layouts=(_OPENMMLAB,),
    variants={
        "mixer_nano_32": Variant(4, 8, 96, image_size=32, in_timm=False, bundled="mixer_nano"),
        "mixer_micro_64": Variant(
            16, 8, 512, mlp_ratio=(0.25, 1.0), image_size=64, timm_name="mixer_s16_224", bundled="mixer_micro"
        ),
        "mixer_s32_224": Variant(32, 8, 512, google_files=("gsam/Mixer-S_32.npz",)),
        "mixer_s16_224": Variant(16, 8, 512, google_files=("gsam/Mixer-S_16.npz",)),
        "mixer_s8_224": Variant(8, 8, 512, in_timm=False, google_files=("gsam/Mixer-S_8.npz",)),
        "mixer_b32_224": Variant(32, 12, 768, google_files=("sam/Mixer-B_32.npz", "gsam/Mixer-B_32.npz")),
        "mixer_b16_224": Variant(
            patch_size=16,
            num_blocks=12,
            embed_dim=768,
            weights=(
                Weights("goog_in21k", num_classes=21843),
                Weights("goog_in21k_ft_in1k", top1=76.616, warning=_MISNAMED),
                Weights("miil_in21k", num_classes=11221, preprocessing=_MIIL),
                Weights("miil_in21k_ft_in1k", top1=82.314, preprocessing=_MIIL),
            ),
            google_files=(
                "imagenet1k/Mixer-B_16.npz",
                "imagenet21k/Mixer-B_16.npz",
                "sam/Mixer-B_16.npz",
                "gsam/Mixer-B_16.npz",
            ),
        ),
        "mixer_l32_224": Variant(32, 24, 1024),
        "mixer_l16_224": Variant(
            patch_size=16,
            num_blocks=24,
            embed_dim=1024,
            weights=(
                Weights("goog_in21k", num_classes=21843),
                Weights("goog_in21k_ft_in1k", top1=72.084, warning=_MISNAMED),
            ),
            google_files=("imagenet1k/Mixer-L_16.npz", "imagenet21k/Mixer-L_16.npz"),
        ),
        "mixer_h14_224": Variant(14, 32, 1280, in_timm=False),
    },
)
