r"""Trained weights at another resolution or patch size.

Another resolution at the same patch size means another grid of tokens, and the token-mixing matrices have the grid's
shape. Sides of these matrices are *spatial* (an entry a token) or *hidden*. Three ways to change the grid, and one to
keep it:

**block_diagonal** (MLP-Mixer, arXiv 2105.01601, appendix C; each axis has its own integer factor). The image is a
mosaic of K = K_h K_w parts of the old size, and a copy of the trained token mixing works on each: W1' = (I kron W1) P,
b1' = 1 kron b1, W2' = P^T (I kron W2), b2' = P^T (1 kron b2), where the permutation P takes tokens from raster order to
part by part. The hidden width grows by K. The network then gives the mean over the parts of the original's pre-logits,
exactly.

**interpolate** (any size, up or down; the hidden width stays). We ask that a smooth image gives the response that it
gave before. Call an image smooth if its token map, channel by channel, is a cosine polynomial with fewer terms a side
than either grid has rows and columns; such a map is known by its values at the cell centres of either grid. Let R be
the linear map that takes values at the centres of the new grid to values at those of the old one: the discrete cosine
transform (DCT-II) on the one grid, cut or padded with zeros, and its inverse on the other. R is exact on smooth maps,
and the same construction from old to new, R+, is its pseudo-inverse (both R R+ and R+ R are the orthogonal projections
onto smooth maps, up to the scale of the grids). The best W1' in the least-squares sense that FlexiViT (arXiv
2212.08013, section 3.4) uses for patch embeddings, argmin E |W1' R+ x - W1 x|^2 over white token maps x when the grid
grows, is W1' = W1 R. Likewise what the mixing adds to the tokens is to be the same map, sampled elsewhere: W2' = R+ W2,
b2' = R+ b2; b1 has no spatial side. When the grid shrinks the same formulas hold with the roles of R and R+ exchanged.
Square matrices (ResMLP, gMLP) have two spatial sides: W' = R+ W R. So a row of W1 is enlarged as a map, and divided by
the growth of the number of tokens: its sum over the image stays.

**features** leaves the weights alone, and takes the tokens to the trained grid and back around the token mixing, by R
and R+. With fresh weights out of a resize it is the same function as `interpolate`; in fine-tuning it keeps the number
of parameters.

**patch** keeps the grid, and resizes the patch embedding by the pseudo-inverse of bilinear resizing (FlexiViT's
"PI-resize"): w' = argmin E |<w', B x> - <w, x>|^2, B being bilinear resizing of a patch x.

Shapes: g = (rows, columns) of a grid, N = rows x columns tokens, in raster order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mixer_finetune.backbones.families import get_variant
from mixer_finetune.backbones.family import Side
from mixer_finetune.backbones.geometry import Geometry, Grid
from mixer_finetune.backbones.resampling import grid_resampling, resample_sides
from mixer_finetune.errors import UserError

METHODS = ("auto", "interpolate", "block_diagonal", "features", "patch")


def part_order(grid: Grid, factors: Grid) -> Tensor:
    """Raster positions, in the grid enlarged by `factors`, of its tokens part by part: (K N,), a permutation."""
    rows, columns = grid[0] * factors[0], grid[1] * factors[1]
    raster = torch.arange(rows * columns).view(rows, columns)
    return rearrange(raster, "(a r) (b c) -> (a b r c)", a=factors[0], b=factors[1])


def resize_patch_embedding(weight: Tensor, patch_size: int) -> Tensor:
    """PI-resize of a patch embedding, (C, channels, P, P) to (C, channels, P', P').

    Args:
        weight: Of the convolution that stands for the embedding.
        patch_size: P'.
    """
    old = weight.shape[-1]
    if old == patch_size:
        return weight
    basis = torch.eye(old * old, dtype=torch.float64).view(old * old, 1, old, old)
    size = (patch_size, patch_size)
    shrinking = patch_size < old  # antialiased, as images are when they are made smaller
    resized = F.interpolate(basis, size, mode="bilinear", align_corners=False, antialias=shrinking)
    resize = resized.view(old * old, patch_size * patch_size).T  # B, (P' P', P P)
    pseudo_inverse: Tensor = torch.linalg.pinv(resize)  # (P P, P' P')
    return (weight.double().flatten(2) @ pseudo_inverse).view(*weight.shape[:2], *size).to(weight.dtype)


def fold_channels(weight: Tensor, in_chans: int) -> Tensor:
    """A patch embedding of RGB patches, (C, 3, P, P), for another number of channels.

    One channel: the sum over RGB, so that a grey image gives what it gave as RGB. More than three: the RGB planes in
    turn, each divided by how often it comes, so that planes that repeat in the same way give what they gave.
    """
    old = weight.shape[1]
    if in_chans == old:
        return weight
    if in_chans == 1:
        return weight.sum(1, keepdim=True)
    source = torch.arange(in_chans) % old
    return weight[:, source] / source.bincount()[source][:, None, None]


def plan_resize(
    architecture: str,
    old: Geometry,
    image_size: tuple[int, int] | None,
    patch_size: int | None,
    in_chans: int | None,
    method: str,
) -> tuple[Geometry, str]:
    """The geometry that weights are to be brought to, and the method that `method` comes to ("none": nothing changes).

    Args:
        architecture: Of the weights.
        old: Their geometry.
        image_size: (height, width) asked for; the weights' own when None.
        patch_size: Asked for; the weights' own when None (`patch` derives it).
        in_chans: Asked for; the weights' own when None.
        method: One of METHODS.

    Raises:
        UserError: The method can't give that size; the message says which sizes it can.
    """
    if method not in METHODS:
        raise UserError(f"'{method}' is no way to resize weights", option="resize", choices=" or ".join(METHODS))
    size = image_size or old.image_size
    rows, columns = old.grid
    side = size[0] // rows
    keeps_grid = side > 0 and (side * rows, side * columns) == size and patch_size in (None, side)
    together = old.image_sizes and patch_size in (None, old.patch_size)  # by `interpolate`, and so loaded by it
    if method == "auto" and keeps_grid and side < old.patch_size and not old.trained_grid and not together:
        method = "patch"
    if method == "patch":
        if not keeps_grid:
            sizes = ", ".join(f"{p * rows} x {p * columns}" for p in range(max(side - 1, 1), side + 3))
            raise UserError(
                f"resizing the patches keeps {rows} x {columns} tokens, so the image must be a whole multiple of that",
                option="image_size",
                choices=sizes,
            )
        patch_size = side
    new = replace(old, image_size=size)
    if patch_size is not None:
        new = replace(new, patch_size=patch_size)
    if in_chans is not None:
        new = replace(new, in_chans=in_chans)
    if new.patch_size != old.patch_size or new.grid != old.grid:
        new = replace(new, image_sizes=())  # from the present grid's weights others would not be what was trained
    new.check(architecture)
    trained = old.mixing_grid
    if new.grid == trained:
        return replace(new, trained_grid=None), "patch" if new.patch_size != old.patch_size else "none"
    if method == "auto":
        method = "features" if old.trained_grid else "interpolate"
    elif method != "features" and old.trained_grid:
        raise UserError(
            f"{method} can't resize weights that were fine-tuned with features", option="resize", choices="features"
        )
    if method == "features":
        return replace(new, trained_grid=trained), method
    if method == "block_diagonal":
        factors = _factors(old.grid, new.grid)
        width = old.token_hidden or get_variant(architecture).token_hidden
        return replace(new, token_hidden=width and width * factors[0] * factors[1]), method
    return new, method


def auto_reason(method: str, old: Geometry, new: Geometry) -> str:
    """Why "auto" came to a method, for the user; measured by tests/benchmarks/resize_methods.py."""
    if old.image_sizes and method == "interpolate":
        return "the weights were trained for several sizes with it"
    if method == "patch" and new.patch_size < old.patch_size:
        return "the most accurate for smaller images; interpolate has fewer tokens, and so is faster, and loads in timm"
    return {
        "interpolate": "it takes every size, and for larger images none was better after fine-tuning",
        "features": "the weights were fine-tuned with it",
        "patch": "the number of tokens stays",
    }.get(method, "only the channels change")


def _factors(old: Grid, new: Grid) -> Grid:
    if new[0] % old[0] or new[1] % old[1]:
        raise UserError(
            f"block_diagonal needs whole multiples of the trained {old[0]} x {old[1]} tokens, got {new[0]} x {new[1]}",
            advice="use a multiple of the trained image size, or {resize} interpolate",
        )
    return new[0] // old[0], new[1] // old[1]


def resize_weights(
    weights: dict[str, Tensor], old: Geometry, new: Geometry, method: str, sides: Mapping[str, tuple[Side, ...]]
) -> dict[str, Tensor]:
    """Weights of one geometry brought to another.

    Args:
        weights: By timm's names.
        old: Their geometry.
        new: From `plan_resize`.
        method: From `plan_resize`.
        sides: Of their family: what the sides of its token-mixing parameters index.
    """
    resized = dict(weights)
    stem = fold_channels(weights["stem.proj.weight"], new.in_chans)
    resized["stem.proj.weight"] = resize_patch_embedding(stem, new.patch_size)
    if method not in ("interpolate", "block_diagonal"):
        return resized
    change: Callable[[Tensor, tuple[Side, ...]], Tensor]
    if method == "interpolate":
        to_new, to_old = grid_resampling(old.grid, new.grid), grid_resampling(new.grid, old.grid)
        change = partial(resample_sides, to_new=to_new, to_old=to_old)
    else:
        change = _BlockDiagonal(old.grid, _factors(old.grid, new.grid))
    for name, value in weights.items():
        for ending, indexed in sides.items():
            if name.endswith(ending):
                resized[name] = change(value.double(), indexed).to(value.dtype)
    return resized


class _BlockDiagonal:
    """A copy of the parameter for each part of the image."""

    def __init__(self, grid: Grid, factors: Grid) -> None:
        self.parts, self.order = factors[0] * factors[1], part_order(grid, factors)

    def __call__(self, value: Tensor, sides: tuple[Side, ...]) -> Tensor:
        if len(sides) == 1:
            copies = value.repeat(self.parts)
        else:
            copies = torch.kron(torch.eye(self.parts, dtype=value.dtype), value)
        for dim, side in enumerate(sides):
            copies = torch.empty_like(copies).index_copy_(dim, self._positions(side, copies.shape[dim]), copies)
        return copies

    def _positions(self, side: Side, length: int) -> Tensor:
        """Where the entries of a side that is in order part by part go."""
        if side == "tokens":
            return self.order
        if side == "gated":
            # Part by part, each with its two halves; wanted: all first halves, then all second halves.
            return rearrange(torch.arange(length), "(half part h) -> (part half h)", half=2, part=self.parts)
        return torch.arange(length)
