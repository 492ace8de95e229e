"""Where the evidence for a class lies in an image, and the order in which units of token mixing are shown.

Shapes: B images, c channels, H x W pixels.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, Occlusion
from numpy.typing import NDArray
from torch import Tensor

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.geometry import Geometry
from mixer_finetune.backbones.size import model_size
from mixer_finetune.errors import UserError

Method = Literal["integrated_gradients", "occlusion"]
METHODS: tuple[str, ...] = get_args(Method)

# Steps of the path from a grey image to the image; Captum's own default of 50 costs twice as much and looks the same.
STEPS, LEAST_STEPS = 24, 8
# Multiply-accumulates of the forward passes that a report may cost: there are fewer steps above the first, and fewer
# images above the second. On two cores the first takes about four seconds, the second fifteen to twenty.
CHEAP_MACS, MOST_MACS = 0.13e12, 0.55e12
# Of a batch, so that the activations of a large backbone fit in memory.
BATCH_MACS, LARGEST_BATCH = 1e11, 32


class Effort(NamedTuple):
    """What a report can spend on evidence.

    Attributes:
        images: How many images are explained.
        steps: Of integrated gradients.
    """

    images: int
    steps: int


def affordable(backbone: Backbone, images: int) -> Effort:
    """How many of some images to explain, and how finely, so that a large backbone takes no minutes.

    It depends on the backbone alone, not on the machine: a report that is made again is the same.

    Args:
        backbone: Any.
        images: How many there are.
    """
    macs = _macs(backbone.architecture, backbone.geometry)
    steps = int(min(max(CHEAP_MACS / (macs * max(images, 1)), LEAST_STEPS), STEPS))
    return Effort(min(images, max(2, int(MOST_MACS / (macs * steps)))), steps)


def check_method(method: str) -> None:
    """Refuse an unknown method.

    Raises:
        UserError: The message gives the known ones.
    """
    if method not in METHODS:
        raise UserError(f"unknown method '{method}'", option="explain", choices=" or ".join(METHODS))


def evidence(
    backbone: Backbone, images: Tensor, classes: Tensor, method: str = "integrated_gradients", steps: int = STEPS
) -> Tensor:
    """How much each pixel speaks for a class.

    Integrated gradients (Sundararajan et al., arXiv 1703.01365) from a grey image, or what the class's logit loses when
    a square is greyed out (Zeiler and Fergus, arXiv 1311.2901), both by Captum.

    Args:
        backbone: In evaluation mode.
        images: (B, c, H, W), normalised as the backbone's preprocessing says.
        classes: (B,) which class to explain.
        method: "integrated_gradients" or "occlusion".
        steps: Of integrated gradients; occlusion gets squares so large that it costs about the same.

    Returns:
        (B, H, W) in 0..1: what speaks for the class, smoothed over half a patch; what speaks against it is 0.

    Raises:
        UserError: Unknown method.
    """
    check_method(method)
    batch = int(min(max(BATCH_MACS / _macs(backbone.architecture, backbone.geometry), 1), LARGEST_BATCH))
    parts = zip(torch.split(images, batch), torch.split(classes, batch), strict=True)
    find = _occlusion if method == "occlusion" else _integrated_gradients
    heat = torch.cat([find(backbone, some, of, steps, batch).detach().float() for some, of in parts]).clamp(min=0)
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)


def _integrated_gradients(backbone: Backbone, images: Tensor, classes: Tensor, steps: int, batch: int) -> Tensor:
    grey = torch.zeros_like(images)  # images are normalised, so 0 is the mean colour
    with torch.enable_grad():
        found: Tensor = IntegratedGradients(backbone).attribute(
            images, grey, target=classes, n_steps=steps, internal_batch_size=batch
        )
    width = backbone.geometry.patch_size // 2 * 2 + 1
    heat = found.detach().sum(1, keepdim=True)  # (B, 1, H, W)
    return F.avg_pool2d(heat, width, stride=1, padding=width // 2, count_include_pad=False)[:, 0]


def _occlusion(backbone: Backbone, images: Tensor, classes: Tensor, steps: int, batch: int) -> Tensor:
    grey = torch.zeros_like(images)
    side = occlusion_side(backbone, steps)
    window = (images.shape[1], side, side)
    with torch.inference_mode():
        found: Tensor = Occlusion(backbone).attribute(images, window, strides=window, target=classes, baselines=grey)
    return found.sum(1)


def occlusion_side(backbone: Backbone, steps: int) -> int:
    """Side in pixels of the squares that are greyed out: whole patches, at most 8/3 squares for each step.

    A pass without gradients costs about 3/8 of one with them.
    """
    squares = math.isqrt(8 * steps // 3)
    return backbone.geometry.patch_size * -(-max(backbone.geometry.grid) // squares)


@cache
def _macs(architecture: str, geometry: Geometry) -> int:
    return model_size(architecture, geometry).macs


def opposite_pairs(units: NDArray[np.float32]) -> NDArray[np.intp]:
    """An order of units as in figure 5 of arXiv 2105.01601: from low to high frequency, each next to its opposite.

    The frequency is the mean over a unit's power spectrum; a unit's opposite is, of those not shown yet, the one whose
    correlation with it is the most negative.

    Args:
        units: (n, rows, columns).

    Returns:
        (n,) positions.
    """
    power = np.abs(np.fft.fft2(units - units.mean((1, 2), keepdims=True))) ** 2
    rows, columns = (np.fft.fftfreq(side) for side in units.shape[1:])
    frequency = (power * np.hypot(rows[:, None], columns)).sum((1, 2)) / np.maximum(power.sum((1, 2)), 1e-12)
    flat = units.reshape(len(units), -1)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    correlation = flat @ flat.T
    order: list[int] = []
    waiting = list(np.argsort(frequency, kind="stable"))
    while waiting:
        order.append(first := waiting.pop(0))
        if waiting:
            order.append(waiting.pop(int(np.argmin(correlation[first, waiting]))))
    return np.array(order, np.intp)
