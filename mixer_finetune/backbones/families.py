"""The table of architectures, under timm's names, and of the published weights for them.

Sizes: MLP-Mixer (arXiv 2105.01601, Table 1), ResMLP (2105.03404), gMLP (2105.08050), gMixer (timm's experiment).
`mixer_nano_32` is this project's own: the architecture of the bundled backbone `mixer_nano`. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace

from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.errors import UserError

Grid = tuple[int, int]
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Geometry:
    """What the shapes of the weights depend on besides the architecture.

    Attributes:
        image_size: (height, width) of the input, in pixels.
        patch_size: Side of a square patch, in pixels.
        in_chans: Channels of the input.
        token_hidden: Hidden width of the token MLPs, where it is not the architecture's own.
        trained_grid: Grid that tokens are resampled to around the token mixing, where it is not the present one.
    """

    image_size: tuple[int, int]
    patch_size: int
    in_chans: int = 3
    token_hidden: int | None = None
    trained_grid: Grid | None = None

    @property
    def grid(self) -> Grid:
        """Rows and columns of tokens."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    def check(self, architecture: str) -> None:
        """Refuse an image that is not cut into whole patches.

        Raises:
            UserError: The message gives the nearest sizes that work.
        """
        patch = self.patch_size
        if patch < 1:
            raise UserError(f"the patch size must be 1 or more, got {patch}; change --model.patch_size")
        for size in self.image_size:
            if size < patch or size % patch:
                below = max(size // patch, 1) * patch
                above = below + patch
                raise UserError(
                    f"image size {size} is not a multiple of {architecture}'s patch size {patch}; "
                    f"use --model.image_size {below} or {above}"
                )
        if self.in_chans not in (1, 3, 4):
            raise UserError(f"--model.in_chans must be 1 (grey), 3 (RGB) or 4 (RGBA), got {self.in_chans}")


@dataclass(frozen=True)
class Weights:
    """Published weights.

    Attributes:
        tag: timm's name of them; the Hub repository is `timm/<architecture>.<tag>`.
        num_classes: Of their head.
        top1: ImageNet-1k top-1 accuracy in percent at 224 px by timm's result files; None where there is none.
        preprocessing: Where it is not the architecture's.
        warning: What misleads about them.
    """

    tag: str
    num_classes: int = 1000
    top1: float | None = None
    preprocessing: dict[str, object] = field(default_factory=dict)
    warning: str | None = None


@dataclass(frozen=True)
class Variant:
    """One architecture.

    Attributes:
        family: "mixer", "gmixer", "resmlp" or "gmlp".
        patch_size: Side of a square patch, in pixels.
        num_blocks: Layers.
        embed_dim: Channels C.
        mlp_ratio: Hidden widths of the token MLP (None: there is none) and of the channel MLP, as multiples of C.
        image_size: Side of the square input, in pixels.
        layer_scale: What ResMLP's scales of the branches start at.
        imagenet_statistics: Whether images are normalised by ImageNet's mean and standard deviation, else by 0.5.
        weights: Published ones.
    """

    family: str
    patch_size: int
    num_blocks: int
    embed_dim: int
    mlp_ratio: tuple[float | None, float] = (0.5, 4.0)
    image_size: int = 224
    layer_scale: float = 1.0
    imagenet_statistics: bool = False
    weights: tuple[Weights, ...] = ()

    @property
    def token_hidden(self) -> int | None:
        """Hidden width of the token MLP."""
        ratio = self.mlp_ratio[0]
        return None if ratio is None else int(ratio * self.embed_dim)

    @property
    def channel_hidden(self) -> int:
        """Hidden width of the channel MLP."""
        return int(self.mlp_ratio[1] * self.embed_dim)

    def geometry(self) -> Geometry:
        """The architecture's own geometry."""
        return Geometry((self.image_size, self.image_size), self.patch_size)

    def preprocessing(self, geometry: Geometry) -> Preprocessing:
        """How images are prepared for fresh weights of that geometry."""
        prepared = Preprocessing(geometry.image_size, **(_IMAGENET if self.imagenet_statistics else {}))
        return prepared.with_channels(geometry.in_chans)


_MIIL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}
_MISNAMED = (
    "the tag says ImageNet-21k, but the accuracy matches the paper's rows trained on ImageNet-1k alone (76.44 / 71.76 against "
    "80.64 / 82.89): to fine-tune, start from goog_in21k or miil_in21k"
)


def _resmlp(
    patch_size: int, num_blocks: int, embed_dim: int, layer_scale: float, in1k: float, distilled: float, *more: Weights
) -> Variant:
    weights = (Weights("fb_in1k", top1=in1k), Weights("fb_distilled_in1k", top1=distilled), *more)
    return Variant("resmlp", patch_size, num_blocks, embed_dim, (None, 4.0), 224, layer_scale, True, weights)


_DINO = Weights("fb_dino", warning="self-supervised: whether its 1000-class head is trained is not known")

VARIANTS: dict[str, Variant] = {
    "mixer_nano_32": Variant("mixer", patch_size=4, num_blocks=8, embed_dim=96, image_size=32),
    "mixer_s32_224": Variant("mixer", patch_size=32, num_blocks=8, embed_dim=512),
    "mixer_s16_224": Variant("mixer", patch_size=16, num_blocks=8, embed_dim=512),
    "mixer_s8_224": Variant("mixer", patch_size=8, num_blocks=8, embed_dim=512),
    "mixer_b32_224": Variant("mixer", patch_size=32, num_blocks=12, embed_dim=768),
    "mixer_b16_224": Variant(
        "mixer",
        patch_size=16,
        num_blocks=12,
        embed_dim=768,
        weights=(
            Weights("goog_in21k", num_classes=21843),
            Weights("goog_in21k_ft_in1k", top1=76.616, warning=_MISNAMED),
            Weights("miil_in21k", num_classes=11221, preprocessing=_MIIL),
            Weights("miil_in21k_ft_in1k", top1=82.314, preprocessing=_MIIL),
        ),
    ),
    "mixer_l32_224": Variant("mixer", patch_size=32, num_blocks=24, embed_dim=1024),
    "mixer_l16_224": Variant(
        "mixer",
        patch_size=16,
        num_blocks=24,
        embed_dim=1024,
        weights=(
            Weights("goog_in21k", num_classes=21843),
            Weights("goog_in21k_ft_in1k", top1=72.084, warning=_MISNAMED),
        ),
    ),
    "mixer_h14_224": Variant("mixer", patch_size=14, num_blocks=32, embed_dim=1280),
    "gmixer_12_224": Variant("gmixer", 16, 12, 384, (1.0, 4.0), imagenet_statistics=True),
    "gmixer_24_224": Variant(
        "gmixer", 16, 24, 384, (1.0, 4.0), imagenet_statistics=True, weights=(Weights("ra3_in1k", top1=78.048),)
    ),
    "resmlp_12_224": _resmlp(16, 12, 384, 1e-4, 76.660, 77.948, _DINO),
    "resmlp_24_224": _resmlp(16, 24, 384, 1e-5, 79.380, 80.766, _DINO),
    "resmlp_36_224": _resmlp(16, 36, 384, 1e-6, 79.772, 81.150),
    "resmlp_big_24_224": _resmlp(8, 24, 768, 1e-6, 81.034, 83.594, Weights("fb_in22k_ft_in1k", top1=84.414)),
    "gmlp_ti16_224": Variant("gmlp", 16, 30, 128, (None, 6.0)),
    "gmlp_s16_224": Variant("gmlp", 16, 30, 256, (None, 6.0), weights=(Weights("ra3_in1k", top1=79.652),)),
    "gmlp_b16_224": Variant("gmlp", 16, 30, 512, (None, 6.0)),
}
# What timm has no entry for, so that it can't load their folders.
NOT_IN_TIMM = frozenset(("mixer_nano_32", "mixer_s8_224", "mixer_h14_224"))

# Google's Flax files, https://storage.googleapis.com/mixer_models/<path>: (path, architecture, classes, top-1 of the paper).
GOOGLE_FILES: dict[str, str] = {
    "imagenet1k/Mixer-B_16.npz": "mixer_b16_224",
    "imagenet1k/Mixer-L_16.npz": "mixer_l16_224",
    "imagenet21k/Mixer-B_16.npz": "mixer_b16_224",
    "imagenet21k/Mixer-L_16.npz": "mixer_l16_224",
    "sam/Mixer-B_16.npz": "mixer_b16_224",
    "sam/Mixer-B_32.npz": "mixer_b32_224",
    "gsam/Mixer-B_16.npz": "mixer_b16_224",
    "gsam/Mixer-B_32.npz": "mixer_b32_224",
    "gsam/Mixer-S_8.npz": "mixer_s8_224",
    "gsam/Mixer-S_16.npz": "mixer_s16_224",
    "gsam/Mixer-S_32.npz": "mixer_s32_224",
}


def get_variant(architecture: str) -> Variant:
    """The variant of that name.

    Raises:
        UserError: No such architecture.
    """
    if architecture not in VARIANTS:
        near = difflib.get_close_matches(architecture, VARIANTS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"unknown architecture '{architecture}'{hint}; known are {', '.join(VARIANTS)}")
    return VARIANTS[architecture]


def block_parameters(variant: Variant, geometry: Geometry) -> tuple[int, int]:
    """Parameters of one block, and its multiply-accumulates for one image, by arithmetic."""
    rows, columns = geometry.trained_grid or geometry.grid
    tokens, c, hidden = rows * columns, variant.embed_dim, variant.channel_hidden
    if variant.family == "gmlp":
        token_matrices, token_biases, width = tokens * tokens, tokens, hidden // 2
        channel_matrices, channel_biases = c * hidden + hidden // 2 * c, hidden + c
        norms = 2 * c + hidden
    elif variant.family == "resmlp":
        token_matrices, token_biases, width = tokens * tokens, tokens, c
        channel_matrices, channel_biases, norms = 2 * c * hidden, hidden + c, 6 * c
    else:
        gated = variant.family == "gmixer"
        token_hidden = geometry.token_hidden or variant.token_hidden or 0
        token_matrices = tokens * token_hidden + (token_hidden // 2 if gated else token_hidden) * tokens
        token_biases, width = token_hidden + tokens, c
        channel_matrices = c * hidden + (hidden // 2 if gated else hidden) * c
        channel_biases, norms = hidden + c, 4 * c
    parameters = token_matrices + token_biases + channel_matrices + channel_biases + norms
    return parameters, token_matrices * width + channel_matrices * tokens


def model_size(architecture: str, geometry: Geometry | None = None, num_classes: int = 0) -> tuple[int, int]:
    """Parameters, and multiply-accumulates for one image, of a whole model, by arithmetic.

    Args:
        architecture: A name of the table.
        geometry: The architecture's own when None.
        num_classes: Of the head; 0 for none.
    """
    variant = get_variant(architecture)
    geometry = geometry or variant.geometry()
    rows, columns = geometry.grid
    parameters, macs = block_parameters(variant, geometry)
    stem = geometry.in_chans * geometry.patch_size**2 * variant.embed_dim
    head = variant.embed_dim * num_classes
    total = variant.num_blocks * parameters + stem + variant.embed_dim + 2 * variant.embed_dim + head + num_classes
    return total, variant.num_blocks * macs + stem * rows * columns + head


def tagged(name: str) -> tuple[Variant, Weights] | None:
    """The variant and weights that `architecture.tag` means, with or without `timm/` before it."""
    architecture, _, tag = name.removeprefix("timm/").partition(".")
    variant = VARIANTS.get(architecture)
    found = [weights for weights in variant.weights if weights.tag == tag] if variant else []
    return (variant, found[0]) if variant and found else None


def preprocessing_of(variant: Variant, weights: Weights) -> Preprocessing:
    """How images are prepared for published weights."""
    return replace(variant.preprocessing(variant.geometry()), **weights.preprocessing)  # type: ignore[arg-type]
