"""What a family of architectures is made of. Each family's file ends with its `FAMILY`. Nothing here imports torch.

Family: block, norm, how its weights are recognised and resized, names that others give them
└── Variant, by timm's name of the architecture: sizes
    └── Weights: published ones, by timm's tag
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mixer_finetune.backbones.geometry import Geometry
from mixer_finetune.backbones.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

# What a side of a parameter indexes: tokens; hidden units; hidden units in two halves, one of which gates the other.
Side = Literal["tokens", "hidden", "gated"]
# (pattern, replacement), as `re.sub` takes them, for the beginning of a name.
Rule = tuple[str, str]

_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Weights:
    """Published weights.

    Attributes:
        tag: timm's name of them; the Hub repository is `timm/<architecture>.<tag>`.
        num_classes: Outputs of their head.
        top1: ImageNet-1k top-1 accuracy in percent at 224 px by timm's result files; None where there is none.
        preprocessing: Fields of `Preprocessing` in which they differ from the architecture's.
        warning: What misleads about them.
    """

    tag: str
    num_classes: int = 1000
    top1: float | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    warning: str | None = None


@dataclass(frozen=True)
class Variant:
    """Sizes of one architecture.

    Attributes:
        patch_size: Side of a square patch, in pixels.
        num_blocks: Layers.
        embed_dim: Channels C.
        mlp_ratio: Hidden widths of the token MLP (None: there is none) and of the channel MLP, as multiples of C.
        image_size: Side of the square input, in pixels.
        layer_scale: Initial value of the scales of the branches, where the family has them.
        imagenet_statistics: Whether images are normalised by ImageNet's mean and standard deviation, else by 0.5.
        weights: Published ones.
        in_timm: Whether timm can load its folders: it has an entry for it, or for `timm_name`.
        timm_name: timm's entry that becomes this architecture by its `mlp_ratio` and `img_size`; None where it has one
            of the same name.
        google_files: Google's Flax files of it, below https://storage.googleapis.com/mixer_models/.
        bundled: Name of the weights of it that come with this package.
    """

    patch_size: int
    num_blocks: int
    embed_dim: int
    mlp_ratio: tuple[float | None, float] = (0.5, 4.0)
    image_size: int = 224
    layer_scale: float | None = None
    imagenet_statistics: bool = False
    weights: tuple[Weights, ...] = ()
    in_timm: bool = True
    timm_name: str | None = None
    google_files: tuple[str, ...] = ()
    bundled: str | None = None

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


@dataclass(frozen=True)
class Layout:
    """How another project names and shapes a family's weights in its `.pth` files.

    Attributes:
        marker: Name of a weight that tells the layout.
        rules: From its names to timm's; of those that match a name, the first is used.
        convert: Given timm's name and the weight, gives the weight in timm's shape; None where all shapes are timm's.
    """

    marker: str
    rules: tuple[Rule, ...]
    convert: Callable[[str, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Family:
    """What all architectures of a family share.

    Attributes:
        name: The family's, and of the module that describes it.
        variants: Its architectures, by timm's names.
        block: Builds a block from (variant, number of tokens, hidden width of the token MLP, activation). The block
            maps (N, B, C) to (N, B, C), and takes `keep` (2, B), which scales what each branch adds.
        norm: Builds the final norm from the number of channels.
        sides: What the sides of the token-mixing parameters index, by the end of their names: output side, then input
            side.
        recognise: Given weights by timm's names, the number of tokens and the hidden width of the token MLP (None:
            there is none); None if they are not the family's.
        mlp_ratio_in_timm: Whether timm takes another hidden width of the token MLP, as `mlp_ratio`.
        flax_rules: From the names of Google's Flax code to timm's, the leaf (`kernel`, `scale`, `bias`) left as it is.
        layouts: Layouts of other projects' `.pth` files.
    """

    name: str
    variants: Mapping[str, Variant]
    block: Callable[[Variant, int, int | None, str], nn.Module]
    norm: Callable[[int], nn.Module]
    sides: Mapping[str, tuple[Side, ...]]
    recognise: Callable[[Mapping[str, Tensor]], tuple[int, int | None] | None]
    mlp_ratio_in_timm: bool = False
    flax_rules: tuple[Rule, ...] = ()
    layouts: tuple[Layout, ...] = ()
