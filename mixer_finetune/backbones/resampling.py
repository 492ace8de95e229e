"""Token maps on another grid: the linear maps between two grids that are exact on smooth maps.

A map is smooth here if it is a cosine polynomial with fewer terms a side than either grid has rows and columns. See
`resize` for why these maps are used.

Shapes: N tokens in raster order, B batch, C channels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

from mixer_finetune.backbones.family import Side
from mixer_finetune.backbones.geometry import Grid


def cosine_resampling(source: int, target: int) -> Tensor:
    """The map from values at `source` cell centres of a line to values at `target` ones, (target, source), float64.

    It is the discrete cosine transform (DCT-II), cut or padded with zeros, and the inverse transform on the other line.
    """

    def cosines(n: int) -> Tensor:
        centres = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return torch.cos(math.pi * centres[:, None] * torch.arange(min(source, target)))  # (n, terms)

    scale = torch.full((min(source, target),), 2 / source, dtype=torch.float64)
    scale[0] = 1 / source
    return cosines(target) * scale @ cosines(source).T


def grid_resampling(source: Grid, target: Grid) -> Tensor:
    """The same map on grids, rows and columns each by themselves: (N_target, N_source), float64."""
    return torch.kron(cosine_resampling(source[0], target[0]), cosine_resampling(source[1], target[1]))


def resample_sides(value: Tensor, sides: tuple[Side, ...], to_new: Tensor, to_old: Tensor) -> Tensor:
    """A token-mixing parameter on another grid: R+ on a spatial output side, R on a spatial input side.

    Args:
        value: The parameter.
        sides: What its sides index.
        to_new: R+, (N_new, N_old).
        to_old: R, (N_old, N_new).
    """
    if sides[0] == "tokens":
        value = to_new @ value
    return value @ to_old if sides[1:] == ("tokens",) else value


def resampled_in_passing(weight: Tensor, bias: Tensor, sides: tuple[Side, ...], old: Grid, new: Grid) -> list[Tensor]:
    """Weight and bias of a linear map across tokens on another grid, as `interpolate` gives them; gradients flow back.

    In float32 at least, whatever autocast says, so that what is trained is what is loaded at that size.

    Args:
        weight: (M, N).
        bias: (M,).
        sides: What the sides of the weight index.
        old: The grid that they are for.
        new: The grid that is wanted.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    make = _grid_maps_on.__wrapped__ if torch.compiler.is_compiling() else _grid_maps_on
    to_new, to_old = make(old, new, weight.device, dtype)
    with torch.autocast(weight.device.type, enabled=False):
        return [
            resample_sides(value.to(dtype), indexed, to_new, to_old).to(value.dtype)
            for value, indexed in ((weight, sides), (bias, sides[:1]))
        ]


@lru_cache(maxsize=64)
def _grid_maps_on(old: Grid, new: Grid, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # maps made in evaluation are used in training, too
        to_new, to_old = grid_resampling(old, new), grid_resampling(new, old)
        return to_new.to(device, dtype), to_old.to(device, dtype)


@lru_cache(maxsize=64)
def _resampling_on(source: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # a map made in evaluation is used in training, too
        return cosine_resampling(source, target).to(device, dtype)


def resample_tokens(x: Tensor, source: Grid, target: Grid) -> Tensor:
    """Token maps from one grid to another, (N, B, C) to (N', B, C), axis by axis."""
    # While a program is traced its tensors are stand-ins, which must not get into the cache.
    make = _resampling_on.__wrapped__ if torch.compiler.is_compiling() else _resampling_on
    rows, columns = (make(old, new, x.device, x.dtype) for old, new in zip(source, target, strict=True))
    maps = rearrange(x, "(r s) b c -> r s (b c)", r=source[0])
    maps = torch.einsum("tr,rsn->tsn", rows, maps)
    maps = torch.einsum("us,tsn->tun", columns, maps)
    return maps.reshape(-1, *x.shape[1:])
