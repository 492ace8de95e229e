"""Geometry and augmentation, each a function of (seed, epoch, index) through `sampling.uniform`.

What must be done image by image (the crop of a large photo) is done on PIL images in the workers; all else on uint8
batches, on the device. Shapes: B images of H x W pixels and c channels; (S, T) is the size that the backbone takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mixer_finetune.backbones.preprocessing import (  # noqa: F401, some for those who import them from here
    Preprocessing,
    denormalize,
    evaluation_crop,
    normalize,
    per_channel,
    pil_filter,
)
from mixer_finetune.errors import UserError
from mixer_finetune.randomness import AUGMENT, CROP, uniform


@dataclass(frozen=True)
class Augmentation:
    """What training does to an image.

    Attributes:
        crop_area: Smallest and largest share of the image's area that the training crop keeps; (1, 1) squashes the
            whole image.
        crop_ratio: Smallest and largest aspect ratio (width / height) of the crop, relative to the backbone's input.
        flip: Mirror left-right with probability one half.
        rotation: Turn by an angle of up to this many degrees, either way.
        color_jitter: Brightness, contrast and saturation are each scaled by a factor in 1 -+ this.
        random_erasing: Probability that a rectangle of 2% to 33% of the image is set to the mean colour.
    """

    crop_area: tuple[float, float] = (0.05, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    rotation: float = 0.0
    color_jitter: float = 0.0
    random_erasing: float = 0.0

    def check(self) -> None:
        """Refuse what can't be done.

        Raises:
            UserError: A value is out of range.
        """
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            problem = f"crop_area must be two shares with 0 < smallest <= largest <= 1, got {list(self.crop_area)}"
            raise UserError(problem, option="crop_area")
        for name, most in (("rotation", 180.0), ("color_jitter", 1.0), ("random_erasing", 1.0)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"{name} must be from 0 to {most:g}, got {getattr(self, name)}", option=name)


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


def crop_image(image: Image.Image, box: NDArray[np.float64], preprocessing: Preprocessing) -> Image.Image:
    """Cut the box out of the image and resize it, antialiased, to S x T in one pass."""
    height, width = preprocessing.image_size
    return image.resize((width, height), pil_filter(preprocessing), box=tuple(box))


def crop_batch(images: Tensor, boxes: NDArray[np.float64], size: tuple[int, int]) -> Tensor:
    """Cut a box out of each of a batch of small images and enlarge it, bilinearly.

    Args:
        images: (B, c, H, W) uint8.
        boxes: (B, 4), as `crop_boxes` gives them.
        size: (S, T).

    Returns:
        (B, c, S, T) float32 in 0..255.
    """
    height, width = images.shape[-2:]
    left, top, right, bottom = torch.from_numpy(boxes).float().to(images.device, non_blocking=True).T
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = (right - left) / width, (right + left) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = (bottom - top) / height, (bottom + top) / height - 1
    grid = F.affine_grid(theta, [*images.shape[:2], *size], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def augment_batch(
    images: Tensor,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
) -> Tensor:
    """Flip, turn, jitter, erase and normalise a training batch, on the batch's device.

    Args:
        images: (B, c, S, T), uint8 or float, in 0..255.
        augmentation: What to do.
        preprocessing: Mean and standard deviation.
        seed: Of the run.
        epoch: Counted from 0.
        indices: Of the samples, (B,).

    Returns:
        (B, c, S, T) float32, normalised.
    """
    if not len(images):  # none could be decoded
        return images.float()
    u = torch.from_numpy(uniform(seed, AUGMENT, epoch, indices, 10)).float().to(images.device, non_blocking=True)
    x = images.float() / 255
    if augmentation.flip:
        x = torch.where((u[:, 0] < 0.5)[:, None, None, None], x.flip(-1), x)
    if augmentation.rotation:
        x = rotate_batch(x, augmentation.rotation * (2 * u[:, 9] - 1))
    if augmentation.color_jitter:
        factors = 1 + augmentation.color_jitter * (2 * u[:, 1:4] - 1)  # (B, 3)
        brightness, contrast, saturation = factors.T[..., None, None, None]  # each (B, 1, 1, 1)
        x = x * brightness
        x = x.mean((1, 2, 3), keepdim=True).lerp(x, contrast)
        x = x.mean(1, keepdim=True).lerp(x, saturation).clamp(0, 1)
    x = (x - per_channel(preprocessing.mean, x)) / per_channel(preprocessing.std, x)
    if augmentation.random_erasing:
        x = x.masked_fill(_erased(u[:, 4:9], augmentation.random_erasing, *x.shape[-2:]), 0.0)
    return x


def rotate_batch(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each of a batch of images about its centre, bilinearly; what comes into view repeats the edge.

    Args:
        images: (B, c, S, T) float32.
        degrees: (B,), anticlockwise.

    Returns:
        (B, c, S, T) float32.
    """
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    aspect = images.shape[-1] / images.shape[-2]  # coordinates run from -1 to 1 on both axes
    theta = torch.stack(
        [torch.stack([cos, -sin / aspect, zero], 1), torch.stack([sin * aspect, cos, zero], 1)], 1
    )  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _erased(u: Tensor, probability: float, rows: int, columns: int) -> Tensor:
    """The pixels that random erasing (arXiv 1708.04896) blanks, (B, 1, rows, columns); `u` is (B, 5), uniform."""
    area = (0.02 + (0.33 - 0.02) * u[:, 1]) * rows * columns
    aspect = torch.exp((2 * u[:, 2] - 1) * float(np.log(10 / 3)))
    height, width = (area * aspect).sqrt().clamp(max=rows), (area / aspect).sqrt().clamp(max=columns)
    top, left = u[:, 3] * (rows - height), u[:, 4] * (columns - width)
    y, x = torch.arange(rows, device=u.device) + 0.5, torch.arange(columns, device=u.device) + 0.5
    in_rows = (y >= top[:, None]) & (y < (top + height)[:, None])  # (B, rows)
    in_columns = (x >= left[:, None]) & (x < (left + width)[:, None])
    return (in_rows[:, None, :, None] & in_columns[:, None, None, :]) & (u[:, 0] < probability)[:, None, None, None]
