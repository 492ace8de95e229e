"""Where the evidence for a class lies in an image, and what the weights look like as pictures.

Shapes: B images, c channels, H x W pixels; rows x columns tokens; P patch side.
"""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, Occlusion
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.tokens import TokenMixing
from mixer_finetune.errors import UserError

METHODS = ("integrated_gradients", "occlusion")
# Steps of the path from a grey image to the image; Captum's own default of 50 costs twice as much and looks the same.
STEPS = 24


def evidence(backbone: Backbone, images: Tensor, classes: Tensor, method: str = "integrated_gradients") -> Tensor:
    """How much each pixel speaks for a class.

    Integrated gradients (Sundararajan et al., arXiv 1703.01365) from a grey image, or what the class's logit loses when a
    patch is greyed out (Zeiler and Fergus, arXiv 1311.2901), both by Captum.

    Args:
        backbone: In evaluation mode.
        images: (B, c, H, W), normalised as the backbone's preprocessing says.
        classes: (B,) which class to explain.
        method: "integrated_gradients" or "occlusion".

    Returns:
        (B, H, W) in 0..1: what speaks for the class, smoothed over half a patch; what speaks against it is 0.

    Raises:
        UserError: Unknown method.
    """
    if method not in METHODS:
        raise UserError(f"the method of explanation must be {' or '.join(METHODS)}, got '{method}'")
    patch = backbone.geometry.patch_size
    grey = torch.zeros_like(images)  # images are normalised, so 0 is the mean colour
    if method == "occlusion":
        window = (images.shape[1], patch, patch)
        with torch.inference_mode():
            found = Occlusion(backbone).attribute(images, window, strides=window, target=classes, baselines=grey)
    else:
        with torch.enable_grad():
            gradients = IntegratedGradients(backbone)
            found = gradients.attribute(images, grey, target=classes, n_steps=STEPS, internal_batch_size=max(32, len(images)))
    heat = found.detach().sum(1, keepdim=True).float()  # (B, 1, H, W)
    if method == "integrated_gradients":
        width = patch // 2 * 2 + 1
        heat = F.avg_pool2d(heat, width, stride=1, padding=width // 2, count_include_pad=False)
    heat = heat[:, 0].clamp(min=0)
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)


def overlay(image: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """The image in grey with the evidence over it, from nothing to yellow.

    Args:
        image: H x W pixels.
        heat: (H, W) in 0..1.
    """
    grey = np.asarray(image.convert("L"), np.float32)[..., None] / 255 * np.ones(3, np.float32)
    glow = matplotlib.colormaps["inferno"](heat)[..., :3]
    share = 0.75 * np.sqrt(heat)[..., None]
    return Image.fromarray(((grey * (1 - share) + glow * share) * 255).astype(np.uint8))


def token_units(backbone: Backbone) -> Iterator[NDArray[np.float32]]:
    """For each block the units of its first map across tokens, as maps over the image: (units, rows, columns).

    Of Mixer these are the hidden units of the token MLP, as in figure 5 of arXiv 2105.01601; of ResMLP and gMLP the rows of
    the one matrix, each being what an output token gathers.
    """
    rows, columns = backbone.geometry.trained_grid or backbone.geometry.grid
    for module in backbone.modules():
        if isinstance(module, TokenMixing):
            linear = next(part for part in module.modules() if isinstance(part, nn.Linear))
            yield linear.weight.detach().float().cpu().numpy().reshape(-1, rows, columns)


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


def patch_embeddings(backbone: Backbone) -> NDArray[np.float32]:
    """The filters of the patch embedding, (C, c, P, P), as in figure 7 of arXiv 2105.01601."""
    return backbone.stem.proj.weight.detach().float().cpu().numpy()
