"""Training crops: the boxes, and cutting them out of a batch of small images.

Shapes: B images of H x W pixels and c channels; (S, T) is the size that the backbone takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixer_finetune.errors import UserError
from mixer_finetune.randomness import AUGMENT, CROP, uniform


@dataclass(frozen=True)
class Crop:
    """The training crop.

    Attributes:
        crop_area: Smallest and largest share of the image that the training crop keeps; [1, 1] takes the whole image,
            squashed unless `fit` pads it.
        crop_ratio: Smallest and largest aspect ratio (width / height) of the crop, relative to the backbone's input.
    """

    crop_area: tuple[float, float] = (0.05, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def check(self) -> None:
        """Refuse areas and ratios that can't be."""
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            problem = f"crop_area must be two shares with 0 < smallest <= largest <= 1, got {list(self.crop_area)}"
            raise UserError(problem, option="crop_area")
        if not 0.01 <= self.crop_ratio[0] <= self.crop_ratio[1] <= 100:
            problem = f"crop_ratio must be smallest and largest, from 0.01 to 100, got {list(self.crop_ratio)}"
            raise UserError(problem, option="crop_ratio")


def crop_boxes(
    augmentation: Crop,
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
    height: int,
    width: int,
    size: tuple[int, int] = (1, 1),
    crop_mode: str = "center",
) -> NDArray[np.float64]:
    """The training crops of images of one size, (B, 4) as left, top, right, bottom in pixels.

    They have the shape that the backbone takes, but for the aspect ratio that is asked for; squashed, the image's
    shape. They lie inside the image; padded, a side longer than the image's covers it.

    Args:
        augmentation: Area and aspect ratio of the crops; the area is a share of the image's or, padded, of the smallest
            frame round it that has the shape that the backbone takes.
        seed: Of the run.
        epoch: Counted from 0.
        indices: Of the samples, (B,), or their `keys`, which tell copies apart.
        height: H.
        width: W.
        size: (S, T), which the crop is going to be resized to.
        crop_mode: Of the pre-processing: "center", "squash" or "border".
    """
    wide, tall, x, y = crop_shapes(augmentation, seed, epoch, indices).T
    box = place_crop(wide, tall, x, y, height, width, size, crop_mode, np.minimum)
    return np.stack(np.broadcast_arrays(*box), axis=1)


def crop_shapes(augmentation: Crop, seed: int, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """What is random about training crops, (B, 4): width, height, horizontal and vertical place, for `place_crop`."""
    area, ratio, x, y = uniform(seed, CROP, epoch, indices, 4).T
    low, high = augmentation.crop_area
    if low == high == 1.0:
        return np.tile([np.inf, np.inf, 0.5, 0.5], (len(indices), 1))
    side = np.sqrt(low + (high - low) * area)
    log_low, log_high = np.log(augmentation.crop_ratio)
    stretch = np.exp((log_low + (log_high - log_low) * ratio) / 2)
    return np.stack([side * stretch, side / stretch, x, y], axis=1)


def place_crop(
    wide: Any,
    tall: Any,
    x: Any,
    y: Any,
    height: int,
    width: int,
    size: tuple[int, int],
    crop_mode: str,
    minimum: Callable[[Any, Any], Any] = min,
) -> tuple[Any, Any, Any, Any]:
    """Left, top, right and bottom of a crop in an image of some size, in pixels.

    Photos come one by one, for which Python's numbers take a tenth of the time of NumPy's.

    Args:
        wide: Width of the crop over that of a square of its area, times the square root of its share of the image.
        tall: Height, likewise.
        x: Where it lies, from left (0) to right (1).
        y: Where it lies, from top (0) to bottom (1).
        height: Of the image.
        width: Of the image.
        size: (S, T), which the crop is going to be resized to.
        crop_mode: Of the pre-processing.
        minimum: Of two numbers, or of arrays of them.
    """
    most_h, most_w = float(height), float(width)
    if crop_mode == "border":
        scale = max(height / size[0], width / size[1])
        most_h, most_w = scale * size[0], scale * size[1]
    aspect = width / height if crop_mode == "squash" else size[1] / size[0]
    across = (most_h * most_w * aspect) ** 0.5
    w, h = minimum(wide * across, most_w), minimum(tall * across / aspect, most_h)
    left, top = x * (width - w), y * (height - h)
    if crop_mode == "border":
        return left, top, left + w, top + h
    return left, top, minimum(left + w, width), minimum(top + h, height)  # a rounding error must not leave the image


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
    centres = torch.addcmul(start[:, None], (end - start)[:, None], at)  # (B, out)
    reach, kernel = _KERNELS[interpolation]
    if reach:
        centres -= 0.5  # a pixel's own centre is a whole number
    first = centres.floor()
    taps = torch.arange(1 - max(reach, 1), 1 + reach, device=start.device)
    weights = kernel(((centres - first)[..., None] - taps).abs_())  # (B, out, taps)
    where = first[..., None] + taps
    inside = where.clamp(0, pixels - 1)
    weights *= where == inside
    weights /= weights.sum(-1, keepdim=True)
    return torch.zeros(*centres.shape, pixels, device=start.device).scatter_add_(2, inside.long(), weights)


def _cubic(x: Tensor) -> Tensor:
    """Keys 1981, "Cubic convolution interpolation for digital image processing", with PIL's a = -1/2; x in 0..2."""
    return torch.where(x <= 1, (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2)


# How many pixels to either side count, and how much one counts at a distance.
_KERNELS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "nearest": (0, torch.ones_like),
    "bilinear": (1, lambda x: 1 - x),
    "bicubic": (2, _cubic),
}
