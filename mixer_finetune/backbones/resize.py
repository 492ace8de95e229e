r"""Trained weights at another resolution or patch size.

Another resolution at the same patch size means another grid of tokens, and the token-mixing matrices have the grid's shape.
Sides of these matrices are *spatial* (an entry a token) or *hidden*. Three ways to change the grid, and one to keep it:

**block_diagonal** (MLP-Mixer, arXiv 2105.01601, appendix C; each axis has its own integer factor). The image is a mosaic of
K = K_h K_w parts of the old size, and a copy of the trained token mixing works on each: W1' = (I kron W1) P, b1' = 1 kron b1,
W2' = P^T (I kron W2), b2' = P^T (1 kron b2), where the permutation P takes tokens from raster order to part by part. The hidden
width grows by K. The network then gives the mean over the parts of the original's pre-logits, exactly.

**interpolate** (any size, up or down; the hidden width stays). We ask that a smooth image gives the response that it gave
before. Call an image smooth if its token map, channel by channel, is a cosine polynomial with fewer terms a side than either
grid has rows and columns; such a map is known by its values at the cell centres of either grid. Let R be the linear map that
takes values at the centres of the new grid to values at those of the old one: the discrete cosine transform (DCT-II) on the one
grid, cut or padded with zeros, and its inverse on the other. R is exact on smooth maps, and the same construction from old to
new, R+, is its pseudo-inverse (both R R+ and R+ R are the orthogonal projections onto smooth maps, up to the scale of the
grids). The best W1' in the least-squares sense that FlexiViT (arXiv 2212.08013, section 3.4) uses for patch embeddings,
argmin E |W1' R+ x - W1 x|^2 over white token maps x when the grid grows, is W1' = W1 R. Likewise what the mixing adds to the
tokens is to be the same map, sampled elsewhere: W2' = R+ W2, b2' = R+ b2; b1 has no spatial side. When the grid shrinks the
same formulas hold with the roles of R and R+ exchanged. Square matrices (ResMLP, gMLP) have two spatial sides: W' = R+ W R.
A row of W1 is so enlarged as a map and divided by the growth of the number of tokens: its sum over the image stays.

**features** leaves the weights alone, and takes the tokens to the trained grid and back around the token mixing, by R and R+.
With fresh weights out of a resize it is the same function as `interpolate`; in fine-tuning it keeps the number of parameters.

**patch** keeps the grid, and resizes the patch embedding by the pseudo-inverse of bilinear resizing (FlexiViT's "PI-resize"):
w' = argmin E |<w', B x> - <w, x>|^2, B being bilinear resizing of a patch x.

Shapes: g = (rows, columns) of a grid, N = rows x columns tokens, in raster order.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Grid = tuple[int, int]


def cosine_resampling(source: int, target: int) -> Tensor:
    """The map from values at `source` cell centres of a line to values at `target` ones, (target, source), float64."""

    def cosines(n: int) -> Tensor:
        centres = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return torch.cos(math.pi * centres[:, None] * torch.arange(min(source, target)))  # (n, terms)

    scale = torch.full((min(source, target),), 2 / source, dtype=torch.float64)
    scale[0] = 1 / source
    return cosines(target) * scale @ cosines(source).T


def grid_resampling(source: Grid, target: Grid) -> Tensor:
    """The same on grids, separably: (N_target, N_source), float64."""
    return torch.kron(cosine_resampling(source[0], target[0]), cosine_resampling(source[1], target[1]))


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
    pseudo_inverse = torch.linalg.pinv(resize)  # (P P, P' P')
    flat = rearrange(weight.double(), "e c p q -> e c (p q)") @ pseudo_inverse
    return rearrange(flat, "e c (p q) -> e c p q", p=patch_size).to(weight.dtype)


def fold_channels(weight: Tensor, in_chans: int) -> Tensor:
    """A patch embedding of RGB patches, (C, 3, P, P), for another number of channels.

    One channel: the sum over RGB, so that a grey image gives what it gave as RGB. More than three: the RGB planes in turn,
    scaled so that equal planes give what they gave.
    """
    old = weight.shape[1]
    if in_chans == old:
        return weight
    if in_chans == 1:
        return weight.sum(1, keepdim=True)
    planes = weight.repeat(1, -(-in_chans // old), 1, 1)[:, :in_chans]
    return planes * (old / in_chans)
