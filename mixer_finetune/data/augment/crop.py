"""Training crops: the boxes, and cutting them out of a batch of small images.

Shapes: B images of H x W pixels and c channels; (S, T) is the size that the backbone takes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixer_finetune.data.augment.settings import Augmentation
from mixer_finetune.randomness import AUGMENT, CROP, uniform


def crop_boxes(
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
    height: int,
    width: int,
    size: tuple[int, int] = (1, 1),
) -> NDArray[np.float64]:
    """The training crops of images of one size, (B, 4) as left, top, right, bottom in pixels, inside the image.

    Args:
        augmentation: Area and aspect ratio of the crops.
        seed: Of the run.
        epoch: Counted from 0.
        indices: Of the samples, (B,).
        height: H.
        width: W.
        size: (S, T), which the crop is going to be resized to.
    """
    area, ratio, x, y = uniform(seed, CROP, epoch, indices, 4).T
    low, high = augmentation.crop_area
    if low == high == 1.0:
        return np.tile([0.0, 0.0, width, height], (len(indices), 1))
    area = (low + (high - low) * area) * height * width
    log_low, log_high = np.log(augmentation.crop_ratio)
    aspect = np.exp(log_low + (log_high - log_low) * ratio) * size[1] / size[0]
    w, h = np.minimum(np.sqrt(area * aspect), width), np.minimum(np.sqrt(area / aspect), height)
    left, top = x * (width - w), y * (height - h)
    return np.stack([left, top, np.minimum(left + w, width), np.minimum(top + h, height)], axis=1)


def mirror_boxes(boxes: NDArray[np.float64], seed: int, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """The boxes, left and right changed over for those images that the step `flip` would mirror.

    Mirroring a small image so costs nothing: its columns are read from right to left.
    """
    mirrored = uniform(seed, AUGMENT, epoch, indices, 1)[:, :1] < 0.5
    return np.where(mirrored, boxes[:, [2, 1, 0, 3]], boxes)


def crop_batch(
    images: Tensor, boxes: NDArray[np.float64], size: tuple[int, int], interpolation: str = "bilinear"
) -> Tensor:
    """Cut a box out of each of a batch of small images and enlarge it, by one matrix product for each side.

    Each side's matrix holds the weights of interpolation, so a crop costs two products of matrices as small as the
    images; taps that lie outside the image are left out, as PIL and torch's antialiased resize do.

    Args:
        images: (B, c, H, W) uint8, of up to about 100 pixels a side: the cost grows with the third power of the side.
        boxes: (B, 4), as `crop_boxes` gives them, no larger than (S, T); mirrored where left and right are changed
            over.
        size: (S, T).
        interpolation: "bicubic", "bilinear" or "nearest".

    Returns:
        (B, c, S, T) float32, in 0..255 but for bicubic's overshoot, which is cut off.
    """
    b, c, height, width = images.shape
    left, top, right, bottom = torch.from_numpy(boxes).float().to(images.device, non_blocking=True).T
    rows = _weights(top, bottom, size[0], height, interpolation)  # (B, S, H)
    columns = _weights(left, right, size[1], width, interpolation)  # (B, T, W)
    x = torch.empty(b, height, c, width, device=images.device)
    x.copy_(images.transpose(1, 2))  # (B, H, c, W): both products then are one batched product each
    x = torch.bmm(rows, x.view(b, height, c * width))  # (B, S, c W)
    x = torch.bmm(x.view(b, size[0] * c, width), columns.transpose(1, 2))  # (B, S c, T)
    x = x.view(b, size[0], c, size[1]).transpose(1, 2)  # (B, c, S, T)
    return x.clamp_(0, 255) if interpolation == "bicubic" else x


def _weights(start: Tensor, end: Tensor, out: int, pixels: int, interpolation: str) -> Tensor:
    """How much each of an image's pixels counts in each of a crop's, (B, out, pixels); rows add up to 1.

    Args:
        start: (B,) where the crop begins, in pixels.
        end: (B,) where it ends; before the start, it is read backwards.
        out: Pixels of the crop.
        pixels: Of the image.
        interpolation: "bicubic", "bilinear" or "nearest".
    """
    at = (torch.arange(out, device=start.device) + 0.5) / out
    centres = torch.addcmul(start[:, None], (end - start)[:, None], at) - 0.5  # (B, out), of a pixel 0 at 0
    if interpolation == "nearest":
        nearest = (centres + 0.5).floor_().long().clamp_(0, pixels - 1)
        return torch.zeros(*centres.shape, pixels, device=start.device).scatter_(2, nearest[..., None], 1.0)
    grid = torch.arange(pixels, device=start.device, dtype=torch.float32)
    if interpolation == "bilinear":  # beyond the edge there is the edge
        return (centres.clamp_(0, pixels - 1)[..., None] - grid).abs_().neg_().add_(1).clamp_(min=0)
    x = (centres[..., None] - grid).abs_().clamp_(max=2)
    # Keys 1981, "Cubic convolution interpolation for digital image processing", a = -1/2 as in PIL: 1.5 x^3 - 2.5 x^2
    # + 1 up to 1, -0.5 (x^3 - 5 x^2 + 8 x - 4) up to 2.
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x <= 1, inner, outer)
    return weights.div_(weights.sum(-1, keepdim=True))
