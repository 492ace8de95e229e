"""The trunk that all families share: patches to tokens, blocks that mix them, their mean, a linear head. Tokens first.

Inside the trunk activations are (N, B, C), so that a mixing across tokens is one plain matrix product `W @ x.view(N, B
* C)`: no transposes, no batched product. Parameter names are timm's, so that timm's checkpoints need no conversion.

Shapes: B batch, N tokens in raster order, C channels, P patch side, H x W pixels.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixer_finetune.backbones.families import get_family, get_variant
from mixer_finetune.backbones.family import Family
from mixer_finetune.backbones.geometry import Geometry, Grid
from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.backbones.tokens import TokenLinear, TokenMixing
from mixer_finetune.errors import UserError

# Images that `predict` computes at once.
_PREDICT_BATCH = 32


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


def count_classes(head: nn.Module) -> int:
    """Outputs of a head's last linear layer; 0 for `nn.Identity`.

    Raises:
        UserError: It has no linear layer.
    """
    if isinstance(head, nn.Identity):
        return 0
    widths = [module.out_features for module in head.modules() if isinstance(module, nn.Linear)]
    if not widths:
        raise UserError(
            f"a head needs a linear layer, which gives the number of classes; {type(head).__name__} has none"
        )
    return widths[-1]


# What is asked of an image: one label, or several.
TASK_NAMES = ("single_label", "multi_label")


class Backbone(nn.Module):
    """An MLP image classifier: images (B, channels, H, W) in, logits (B, classes) out.

    Args:
        architecture: A name of the table in `families`, which gives family and sizes.
        num_classes: Outputs of the head; 0 leaves the head out, and `forward` then returns pre-logits.
        geometry: Input size, patch size and channels; the architecture's own when None.
        activation: "gelu", or "gelu_tanh" for weights of Google's Flax code; gMixer has SiLU whatever is given.
        preprocessing: How images must be prepared for these weights; the architecture's own when None.

    Attributes:
        origin: Where the weights come from: `source`, `weights` ("fresh" or "pretrained"), `revision`.
        checkpoint_activations: Whether the backward pass computes the blocks' activations again, to save memory.

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
        variant, family = get_variant(architecture), get_family(architecture)
        self.architecture, self.activation = architecture, activation
        self.geometry = geometry or variant.geometry()
        self.geometry.check(architecture)
        self.num_features = variant.embed_dim
        self.preprocessing = preprocessing or variant.preprocessing(self.geometry)
        self.origin: dict[str, Any] = {"source": architecture, "weights": "fresh"}
        self.checkpoint_activations = False

        self.stem = PatchEmbedding(self.geometry.patch_size, self.geometry.in_chans, variant.embed_dim)
        tokens, token_hidden = self.geometry.mixing_tokens, self.geometry.token_hidden or variant.token_hidden
        self.blocks = nn.ModuleList(
            family.block(variant, tokens, token_hidden, activation) for _ in range(variant.num_blocks)
        )
        self._take_grid(self.geometry.grid)
        self.norm = family.norm(variant.embed_dim)
        self.head: nn.Module
        self.replace_head(num_classes)

    @property
    def family(self) -> Family:
        """What the architecture shares with others."""
        return get_family(self.architecture)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return self.geometry.image_size

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0 where there is none."""
        return count_classes(self.head)

    @property
    def label_names(self) -> list[str] | None:
        """Names of the head's classes, where they are known. They belong to the head, and stay with it."""
        return getattr(self.head, "label_names", None)

    @label_names.setter
    def label_names(self, names: list[str] | None) -> None:
        if names is not None and len(names) != self.num_classes:
            raise UserError(f"the head has {self.num_classes} classes, but there are {len(names)} label names")
        vars(self.head)["label_names"] = names

    @property
    def task(self) -> str:
        """What the head answers: "single_label", or "multi_label", where each class is asked for on its own."""
        return getattr(self.head, "task", TASK_NAMES[0])

    @task.setter
    def task(self, task: str) -> None:
        if task not in TASK_NAMES:
            raise UserError(f"unknown task '{task}'", option="task", choices=" or ".join(TASK_NAMES))
        vars(self.head)["task"] = task

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, classes) to the probability of each class, (B, classes) float32."""
        return logits.float().softmax(-1) if self.task == TASK_NAMES[0] else logits.float().sigmoid()

    def replace_head(self, num_classes: int) -> None:
        """Put a new, zero-initialised head of `num_classes` outputs (0: none) in place of the present one."""
        if num_classes == 0:
            self.head = nn.Identity()
            return
        self.head = head = nn.Linear(self.num_features, num_classes, device=self.stem.proj.weight.device)
        if not head.weight.is_meta:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def with_head(self, head: nn.Module) -> Backbone:
        """The same body under another head. Parameters and compiled blocks are shared; this backbone stays as it is.

        Args:
            head: Maps pre-logits (B, C) to logits (B, classes); `nn.Identity` stands for no head. A head that was a
                backbone's keeps its label names.

        Raises:
            UserError: The number of classes can't be told from the head.
        """
        count_classes(head)
        other = copy.copy(self)
        # Tables of its own for modules and hooks, so that what is set on the one does not show on the other.
        for name, value in vars(self).items():
            if isinstance(value, dict):
                vars(other)[name] = value.copy()
        other.head = head
        return other

    def serve(self, image_sizes: tuple[tuple[int, int], ...]) -> None:
        """Take images of further sizes, at which the token mixing is resampled in passing, as `interpolate` does it.

        Args:
            image_sizes: (height, width) of each; none to take the weights' own size alone.

        Raises:
            UserError: One is no multiple of the patch size.
        """
        geometry = replace(self.geometry, image_sizes=image_sizes)
        geometry.check(self.architecture)
        self.geometry = geometry
        self._take_grid(geometry.grid)

    def _take_grid(self, grid: Grid) -> None:
        """Have the blocks mix tokens on that grid."""
        own = self.geometry.mixing_grid
        grids = None if grid == own else (grid, own)
        kind = TokenMixing if self.geometry.trained_grid else TokenLinear
        for name, module in self.blocks.named_modules():
            if isinstance(module, kind):
                if module.grids == grids:  # the first of them: nothing changes
                    return
                module.grids = grids
                if isinstance(module, TokenLinear):
                    module.sides = next(s for end, s in self.family.sides.items() if f"{name}.weight".endswith(end))

    def compile_blocks(self) -> None:
        """Have torch.compile make one graph that all blocks share; parameters keep their names.

        Raises:
            UserError: There is no compiler that it could use.
        """
        compilers = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
        if not any(map(shutil.which, compilers)):
            raise UserError(
                "compiling a backbone needs a C++ compiler, and none was found",
                advice="install one, such as g++, or leave out {compile}",
            )
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that a CPU is no GPU
        if sizes := len(self.geometry.image_sizes):
            config = torch._dynamo.config  # a graph for each size, in training and in evaluation
            config.recompile_limit = max(config.recompile_limit, 4 * (sizes + 1))
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
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        # After the matrices: a family may start some of them in its own way.
        for other in self.modules():
            reset = getattr(other, "reset_parameters", None)
            if callable(reset) and not isinstance(other, nn.Linear | nn.Conv2d | Backbone):
                reset()

    def forward_pre_logits(
        self, images: Tensor, keep: Tensor | None = None, pooled: list[Tensor] | None = None
    ) -> Tensor:
        """Images (B, channels, H, W) to the features that the head reads, (B, C).

        Args:
            images: Normalised as `preprocessing` says.
            keep: Drop path: (blocks, 2, B) factors on what each branch adds; None keeps everything.
            pooled: Takes what each block gives, averaged over the tokens, (B, C) each.

        Raises:
            UserError: Images of another size than the weights are for.
        """
        channels, *sides = images.shape[1:]
        size = sides[0], sides[1]
        if channels != self.geometry.in_chans or size not in (self.image_size, *self.geometry.image_sizes):
            expected = (self.geometry.in_chans, *self.image_size)
            raise UserError(
                f"this {self.architecture} takes images of (channels, height, width) = {expected}, "
                f"got {tuple(images.shape[1:])}; load it with another image_size or in_chans"
            )
        if self.geometry.image_sizes:
            self._take_grid(self.geometry.grid_of(size))
        x: Tensor = self.stem(images)  # (N, B, C)
        for i, block in enumerate(self.blocks):
            scale = None if keep is None else keep[i]
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, scale, use_reentrant=False)
            else:
                x = block(x, scale)
            if pooled is not None:
                pooled.append(x.mean(0))
        x = self.norm(x)
        return x.mean(0)  # (B, C)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (B, channels, H, W) to logits (B, classes), or to pre-logits (B, C) where there is no head."""
        logits: Tensor = self.head(self.forward_pre_logits(images, keep))
        return logits

    @overload
    def predict(self, image: Image.Image | str | Path, top_k: int = 5) -> dict[str, float]: ...
    @overload
    def predict(self, image: list[Any], top_k: int = 5) -> list[dict[str, float]]: ...
    def predict(
        self, image: Image.Image | str | Path | list[Any], top_k: int = 5
    ) -> dict[str, float] | list[dict[str, float]]:
        """Classify an image, or each of several, prepared as in evaluation.

        Args:
            image: A PIL image, the path of a file, or a list of these.
            top_k: Labels for each image, at most one a class.

        Returns:
            Label names (the classes' numbers where there are none) to probabilities, the most probable first; for a
            list of images a list of these.

        Raises:
            UserError: There is no head, an image can't be decoded, or `top_k` is below 1.
        """
        if isinstance(image, Image.Image | str | Path):
            return self.predict([image], top_k)[0]
        if self.num_classes == 0:
            raise UserError("this backbone has no head, so it can't classify: load it with another num_classes than 0")
        if top_k < 1:
            raise UserError(f"an image gets at least one label, got {top_k}", option="top_k", choices="1 or more")
        weight = self.stem.proj.weight
        found: list[dict[str, float]] = []
        in_training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(image), _PREDICT_BATCH):
                    batch = torch.stack([self.preprocessing(one) for one in image[start : start + _PREDICT_BATCH]])
                    probabilities = self.probabilities(self(batch.to(weight.device, weight.dtype)))  # (b, classes)
                    top = probabilities.topk(min(top_k, self.num_classes))
                    found += map(self._labelled, top.indices.tolist(), top.values.tolist())
        finally:
            for module in in_training:
                module.training = True
        return found

    def _labelled(self, classes: list[int], probabilities: list[float]) -> dict[str, float]:
        """Probabilities by label name; of classes that share a name, all but the first have their number behind it."""
        labelled: dict[str, float] = {}
        for number, probability in zip(classes, probabilities, strict=True):
            name = self.label_names[number] if self.label_names else str(number)
            labelled[f"{name} ({number})" if name in labelled else name] = probability
        return labelled
