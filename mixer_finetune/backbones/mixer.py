"""MLP-Mixer: An all-MLP Architecture for Vision (arXiv 2105.01601, section 2), tokens first.

Inside the trunk activations are (N, B, C), so that token mixing is one plain matrix product `W @ x.view(N, B * C)`:
no transposes, no batched product. Parameter names are timm's, so that timm's checkpoints need no conversion.

Shapes: B batch, N tokens, C channels, P patch side, D_S hidden width of the token MLP, D_C of the channel MLP.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.backbones.variants import get_variant
from mixer_finetune.errors import UserError

NORM_EPS = 1e-6  # the paper's Flax code; PyTorch's default is 1e-5


class PatchEmbedding(nn.Module):
    """Cut the image into P x P patches and project each to C channels."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        # A convolution only for its parameters' names and shapes; the forward pass is the matrix product it stands for.
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (N, B, C), in raster order."""
        p = self.patch_size
        patches = rearrange(images, "b c (h p) (w q) -> (h w) b (c p q)", p=p, q=p)  # (N, B, 3 P P)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)  # (N, B, C)


class TokenMlp(nn.Module):
    """The MLP across tokens: shared by all channels, it mixes locations."""

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(tokens, hidden)
        self.fc2 = nn.Linear(hidden, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        columns = x.flatten(1)  # (N, B C)
        hidden = F.gelu(torch.addmm(self.fc1.bias[:, None], self.fc1.weight, columns))  # (D_S, B C)
        return torch.addmm(self.fc2.bias[:, None], self.fc2.weight, hidden).view(x.shape)  # (N, B, C)


class ChannelMlp(nn.Module):
    """The MLP across channels: shared by all tokens, it mixes features at a location."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (N, B, C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each behind a layer norm and around a skip connection."""

    def __init__(self, tokens: int, channels: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_tokens = TokenMlp(tokens, token_hidden)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_channels = ChannelMlp(channels, channel_hidden)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(N, B, C) to (N, B, C); `keep` (2, B) scales what each of the two branches adds, image by image."""
        if keep is None:
            x = x + self.mlp_tokens(self.norm1(x))
            return x + self.mlp_channels(self.norm2(x))
        x = x + keep[0, :, None] * self.mlp_tokens(self.norm1(x))
        return x + keep[1, :, None] * self.mlp_channels(self.norm2(x))


class Mixer(nn.Module):
    """An MLP-Mixer classifier: images (B, 3, H, W) in, logits (B, classes) out.

    Args:
        architecture: A name of the table in `variants`, which gives the sizes.
        num_classes: Outputs of the head; 0 leaves the head out, and `forward` then returns pre-logits.
        image_size: Side of the square input in pixels; the architecture's own when None.
        in_chans: Channels of the input images.
        preprocessing: How images must be prepared for these weights; the paper's when None.

    Raises:
        UserError: Unknown architecture, or an image size that is not a multiple of the patch size.
    """

    def __init__(
        self,
        architecture: str,
        num_classes: int = 1000,
        image_size: int | None = None,
        in_chans: int = 3,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        variant = get_variant(architecture)
        size, patch = image_size or variant.image_size, variant.patch_size
        if size < patch or size % patch:
            below, above = max(size // patch, 1) * patch, (size // patch + 1) * patch
            raise UserError(
                f"image size {size} is not a multiple of {architecture}'s patch size {patch}; "
                f"use --model.image_size {below} or {above}"
            )
        tokens, channels = (size // patch) ** 2, variant.embed_dim
        token_hidden, channel_hidden = (int(ratio * channels) for ratio in variant.mlp_ratio)

        self.architecture = architecture
        self.image_size = size
        self.num_features = channels
        self.num_classes = num_classes
        self.preprocessing = preprocessing or Preprocessing((size, size))
        self.label_names: list[str] | None = None
        self.origin: dict[str, str | None] = {"source": architecture, "weights": "fresh"}

        self.stem = PatchEmbedding(patch, in_chans, channels)
        self.blocks = nn.ModuleList(
            MixerBlock(tokens, channels, token_hidden, channel_hidden) for _ in range(variant.num_blocks)
        )
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.head: nn.Linear | nn.Identity
        self.replace_head(num_classes)

    def replace_head(self, num_classes: int) -> None:
        """Put a new, zero-initialised head of `num_classes` outputs (0: none) in place of the present one."""
        self.num_classes = num_classes
        if num_classes == 0:
            self.head = nn.Identity()
            return
        self.head = nn.Linear(self.num_features, num_classes, device=self.norm.weight.device)
        if not self.head.weight.is_meta:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0) -> None:
        """Fresh weights, a function of `seed` alone: LeCun-normal matrices as in the paper's Flax code, a zero head."""
        generator = torch.Generator().manual_seed(seed)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and name != "head":
                fan_in = module.weight[0].numel()
                # 0.8796 is the standard deviation of a unit normal truncated at two.
                draw = torch.nn.init.trunc_normal_(torch.empty(module.weight.shape), generator=generator, a=-2, b=2)
                module.weight.copy_(draw / 0.87962566 / math.sqrt(fan_in))
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward_pre_logits(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) to the features that the head reads, (B, C).

        Args:
            images: Normalised as `preprocessing` says.
            keep: Drop path: (blocks, 2, B) factors on what each branch adds; None keeps everything.

        Raises:
            UserError: Images of another size than the weights are for.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise UserError(
                f"this {self.architecture} takes images of {self.image_size} x {self.image_size} pixels, "
                f"got {images.shape[-2]} x {images.shape[-1]}"
            )
        x = self.stem(images)  # (N, B, C)
        for i, block in enumerate(self.blocks):
            x = block(x, None if keep is None else keep[i])
        return self.norm(x).mean(0)  # (B, C)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) to logits (B, classes), or to pre-logits (B, C) where there is no head."""
        return self.head(self.forward_pre_logits(images, keep))
