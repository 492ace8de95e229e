"""The table of architectures, under timm's names.

Sizes are those of the MLP-Mixer paper (arXiv 2105.01601, Table 1). `mixer_nano_32` is this project's own: the architecture
of the bundled backbone `mixer_nano`, small enough to fine-tune in a minute on a laptop's CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixer_finetune.errors import UserError


@dataclass(frozen=True)
class Variant:
    """One architecture.

    Attributes:
        patch_size: Side of a square patch, in pixels.
        num_blocks: Mixer layers.
        embed_dim: Channels C.
        image_size: Side of the square input, in pixels; with `patch_size` it fixes the number of tokens N.
        mlp_ratio: Hidden widths of the token MLP and of the channel MLP, as multiples of C.
    """

    patch_size: int
    num_blocks: int
    embed_dim: int
    image_size: int = 224
    mlp_ratio: tuple[float, float] = (0.5, 4.0)


VARIANTS: dict[str, Variant] = {
    "mixer_nano_32": Variant(patch_size=4, num_blocks=8, embed_dim=96, image_size=32),
    "mixer_s32_224": Variant(patch_size=32, num_blocks=8, embed_dim=512),
    "mixer_s16_224": Variant(patch_size=16, num_blocks=8, embed_dim=512),
    "mixer_b32_224": Variant(patch_size=32, num_blocks=12, embed_dim=768),
    "mixer_b16_224": Variant(patch_size=16, num_blocks=12, embed_dim=768),
    "mixer_l32_224": Variant(patch_size=32, num_blocks=24, embed_dim=1024),
    "mixer_l16_224": Variant(patch_size=16, num_blocks=24, embed_dim=1024),
    "mixer_h14_224": Variant(patch_size=14, num_blocks=32, embed_dim=1280),
}


def get_variant(architecture: str) -> Variant:
    """The variant of that name.

    Raises:
        UserError: No such architecture.
    """
    if architecture not in VARIANTS:
        raise UserError(f"unknown architecture '{architecture}'; known are {', '.join(VARIANTS)}")
    return VARIANTS[architecture]
