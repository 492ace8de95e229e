"""The trunk that all families share: patches to tokens, blocks that mix them, their mean, a linear head. Tokens first.

Inside the trunk activations are (N, B, C), so that a mixing across tokens is one plain matrix product `W @ x.view(N, B * C)`:
no transposes, no batched product. Parameter names are timm's, so that timm's checkpoints need no conversion.

Shapes: B batch, N tokens in raster order, C channels, P patch side, H x W pixels.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixer_finetune.backbones.families import Geometry, get_variant
from mixer_finetune.backbones.gmixer import GMixerBlock
from mixer_finetune.backbones.gmlp import GMlpBlock
from mixer_finetune.backbones.mixer import MixerBlock
from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.backbones.resmlp import Affine, ResMlpBlock
from mixer_finetune.backbones.tokens import TokenMixing
from mixer_finetune.errors import UserError

BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "mixer": MixerBlock,
    "gmixer": GMixerBlock,
    "resmlp": ResMlpBlock,
    "gmlp": GMlpBlock,
}
NORM_EPS = 1e-6  # the paper's Flax code; PyTorch's default is 1e-5


class PatchEmbedding(nn.Module):
    """Cut the image into P x P patches and project each to C channels."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        # A convolution only for its parameters' names and shapes; the forward pass is the matrix product it stands for.
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) to tokens (N, B, C)."""
        p = self.patch_size
        patches = rearrange(images, "b c (h p) (w q) -> (h w) b (c p q)", p=p, q=p)  # (N, B, channels P P)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)  # (N, B, C)


class Backbone(nn.Module):
    """An MLP image classifier: images (B, channels, H, W) in, logits (B, classes) out.

    Args:
        architecture: A name of the table in `variants`, which gives family and sizes.
        num_classes: Outputs of the head; 0 leaves the head out, and `forward` then returns pre-logits.
        geometry: Input size, patch size and channels; the architecture's own when None.
        activation: "gelu", or "gelu_tanh" for weights of Google's Flax code; gMixer has SiLU whatever is given.
        preprocessing: How images must be prepared for these weights; the architecture's own when None.

    Attributes:
        label_names: Names of the head's classes, where they are known.
        origin: Where the weights come from: `source`, `weights` ("fresh" or "pretrained"), `revision`.

    Raises:
        UserError: Unknown architecture, or an image size that is not a multiple of the patch size.
    """

    def __init__(
        self,
        architecture: str,
        num_classes: int = 1000,
        geometry: Geometry | None = None,
        activation: str = "gelu",
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        variant = get_variant(architecture)
        self.architecture, self.family, self.activation = architecture, variant.family, activation
        self.geometry = geometry or variant.geometry()
        self.geometry.check(architecture)
        self.num_features = variant.embed_dim
        self.preprocessing = preprocessing or variant.preprocessing(self.geometry)
        self.label_names: list[str] | None = None
        self.origin: dict[str, Any] = {"source": architecture, "weights": "fresh"}
        self.checkpoint_activations = False

        self.stem = PatchEmbedding(self.geometry.patch_size, self.geometry.in_chans, variant.embed_dim)
        rows, columns = self.geometry.trained_grid or self.geometry.grid
        block = BLOCKS[variant.family]
        self.blocks = nn.ModuleList(
            block(
                tokens=rows * columns,
                channels=variant.embed_dim,
                token_hidden=self.geometry.token_hidden or variant.token_hidden,
                channel_hidden=variant.channel_hidden,
                activation=activation,
                layer_scale=variant.layer_scale,
            )
            for _ in range(variant.num_blocks)
        )
        if self.geometry.trained_grid:
            for module in self.modules():
                if isinstance(module, TokenMixing):
                    module.grids = (self.geometry.grid, self.geometry.trained_grid)
        self.norm = Affine(variant.embed_dim) if variant.family == "resmlp" else nn.LayerNorm(variant.embed_dim, eps=NORM_EPS)
        self.head: nn.Linear | nn.Identity
        self.replace_head(num_classes)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return self.geometry.image_size

    def replace_head(self, num_classes: int) -> None:
        """Put a new, zero-initialised head of `num_classes` outputs (0: none) in place of the present one."""
        self.num_classes = num_classes
        if num_classes == 0:
            self.head = nn.Identity()
            return
        self.head = nn.Linear(self.num_features, num_classes, device=self.stem.proj.weight.device)
        if not self.head.weight.is_meta:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def compile_blocks(self) -> None:
        """Have torch.compile make one graph that all blocks share; parameters keep their names.

        Raises:
            UserError: There is no compiler that it could use.
        """
        compilers = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
        if not any(map(shutil.which, compilers)):
            raise UserError("--compile (of fit: --model.compile) needs a C++ compiler such as g++: install it or leave it out")
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that a CPU is no GPU
        for block in self.blocks:
            block.compile()

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0) -> None:
        """Fresh weights, a function of `seed` alone: LeCun-normal matrices as in the Mixer's Flax code, a zero head."""
        generator = torch.Generator().manual_seed(seed)
        matrices = [m for name, m in self.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and name != "head"]
        for module in matrices:
            fan_in = module.weight[0].numel()
            # 0.8796 is the standard deviation of a unit normal truncated at two.
            draw = torch.nn.init.trunc_normal_(torch.empty(module.weight.shape), generator=generator, a=-2, b=2)
            module.weight.copy_(draw / 0.87962566 / math.sqrt(fan_in))
            nn.init.zeros_(module.bias)
        # After the matrices: a family may start some of them in its own way.
        for module in self.modules():
            if not isinstance(module, nn.Linear | nn.Conv2d | Backbone) and hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def forward_pre_logits(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (B, channels, H, W) to the features that the head reads, (B, C).

        Args:
            images: Normalised as `preprocessing` says.
            keep: Drop path: (blocks, 2, B) factors on what each branch adds; None keeps everything.

        Raises:
            UserError: Images of another size than the weights are for.
        """
        expected = (self.geometry.in_chans, *self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise UserError(
                f"this {self.architecture} takes images of (channels, height, width) = {expected}, "
                f"got {tuple(images.shape[1:])}; load it with another image_size or in_chans"
            )
        x = self.stem(images)  # (N, B, C)
        for i, block in enumerate(self.blocks):
            scale = None if keep is None else keep[i]
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, scale, use_reentrant=False)
            else:
                x = block(x, scale)
        return self.norm(x).mean(0)  # (B, C)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (B, channels, H, W) to logits (B, classes), or to pre-logits (B, C) where there is no head."""
        return self.head(self.forward_pre_logits(images, keep))
