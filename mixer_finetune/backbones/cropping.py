"""Crops of images at the size that a backbone takes: antialiased, uint8 in and out.

Resizing is torch's, on bytes. From one in exact arithmetic it differs by 0.3 of 255 levels on average, and at most by 1
(bilinear) or, on photos, 3 (bicubic, whose overshoot is cut off after each side, as by PIL).

Shapes: B images of H x W pixels and c channels; (S, T) is the size that the backbone takes.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_finetune.images import Photo


class Cropping(Protocol):
    """What a crop depends on: a `Preprocessing`, which says what these are."""

    @property
    def image_size(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def mean(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def mode(self) -> str: ...  # noqa: D102
    @property
    def interpolation(self) -> str: ...  # noqa: D102
    @property
    def crop_pct(self) -> float: ...  # noqa: D102
    @property
    def crop_mode(self) -> str: ...  # noqa: D102


def resize(images: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize (B, c, H, W) uint8 to (B, c, *size) uint8, antialiased.

    Args:
        images: Of any layout in memory; on a CPU channels-last with four of them is fastest.
        size: Height and width.
        interpolation: "bicubic", "bilinear" or "nearest".
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    if interpolation == "nearest":
        return F.interpolate(images, size, mode="nearest-exact")
    if images.device.type == "cpu":
        return F.interpolate(images, size, mode=interpolation, antialias=True)
    resized = F.interpolate(images.float(), size, mode=interpolation, antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def cut_out(photo: Photo, box: tuple[float, float, float, float], preprocessing: Cropping, into: Tensor) -> None:
    """Write a box of a photo, resized, into a batch.

    Args:
        photo: Not decoded yet.
        box: Left, top, right and bottom in pixels of the file. What lies outside the photo gets the mean colour.
        preprocessing: Of the backbone.
        into: (c, S, T) uint8, written to.

    Raises:
        BadImage: The photo can't be decoded.
    """
    left, top, right, bottom = box
    shrink = min((right - left) / into.shape[2], (bottom - top) / into.shape[1])
    pixels = photo.pixels(preprocessing.mode, shrink)
    rows = _span(top, bottom, photo.height, pixels.shape[1], into.shape[1])
    columns = _span(left, right, photo.width, pixels.shape[2], into.shape[2])
    if rows.whole and columns.whole:
        target = into
    else:
        into.copy_(fill(preprocessing)[:, None, None])
        target = into[:, rows.to, columns.to]
    crop = pixels[:, rows.of, columns.of][None]
    if pixels.shape[0] == 4:  # of which torch resizes the channels-last layout the fastest
        crop = crop.contiguous(memory_format=torch.channels_last)
    size = target.shape[1], target.shape[2]
    target.copy_(resize(crop, size, preprocessing.interpolation)[0, : len(target)])


def evaluation_size(rows: int, columns: int, preprocessing: Cropping) -> tuple[int, int]:
    """Height and width that an image of `rows` x `columns` pixels is resized to before the centre crop, or the border.

    Rounded as timm 1.0 does it (`timm.data.transforms_factory.transforms_imagenet_eval`): the target's sides downwards;
    the image's longer side downwards for a square target, and both sides to the nearest for another one.
    """
    height, width = preprocessing.image_size
    target = int(height / preprocessing.crop_pct), int(width / preprocessing.crop_pct)
    if preprocessing.crop_mode == "squash":
        return target
    if preprocessing.crop_mode == "border":
        shrink = max(rows / target[0], columns / target[1])
        return max(round(rows / shrink), 1), max(round(columns / shrink), 1)
    if height == width:
        shorter = min(rows, columns)
        return int(target[0] * rows / shorter), int(target[0] * columns / shorter)
    shrink = min(rows / target[0], columns / target[1])
    return round(rows / shrink), round(columns / shrink)


def evaluation_photo(photo: Photo, preprocessing: Cropping, into: Tensor) -> None:
    """Write the evaluation crop of a photo into a batch.

    Args:
        photo: Not decoded yet.
        preprocessing: Of the backbone.
        into: (c, S, T) uint8, written to.

    Raises:
        BadImage: The photo can't be decoded.
    """
    rows, columns = evaluation_size(photo.height, photo.width, preprocessing)
    pixels = photo.pixels(preprocessing.mode, min(photo.height / rows, photo.width / columns))
    into.copy_(_centre(resize(pixels[None], (rows, columns), preprocessing.interpolation), preprocessing)[0])


def evaluation_crop(images: Tensor, preprocessing: Cropping) -> Tensor:
    """Resize and centre-crop (or pad) a batch as timm does for evaluation: (B, c, H, W) uint8 to (B, c, S, T) uint8."""
    size = evaluation_size(images.shape[-2], images.shape[-1], preprocessing)
    return _centre(resize(images, size, preprocessing.interpolation), preprocessing)


def _centre(images: Tensor, preprocessing: Cropping) -> Tensor:
    """The middle S x T pixels of (B, c, H, W), with a border of the mean colour where there are fewer."""
    images = images[:, : len(preprocessing.mean)]
    rows, columns = (_centred(*sides) for sides in zip(images.shape[-2:], preprocessing.image_size, strict=True))
    if rows.whole and columns.whole:
        return images[..., rows.of, columns.of]
    mean = fill(preprocessing).to(images.device)[:, None, None]
    out = mean.expand(len(images), -1, *preprocessing.image_size).clone()
    out[..., rows.to, columns.to] = images[..., rows.of, columns.of]
    return out


def fill(preprocessing: Cropping) -> Tensor:
    """The mean colour as (c,) uint8, rounded as timm rounds it."""
    return torch.tensor([round(255 * value) for value in preprocessing.mean], dtype=torch.uint8)


class _Span(NamedTuple):
    """Which pixels of an image's side become which of a crop's; all of the crop's where it is whole."""

    of: slice
    to: slice
    whole: bool


def _centred(pixels: int, out: int) -> _Span:
    """The middle of a side, or all of it in the middle of a longer one; rounded as timm rounds it."""
    if pixels >= out:
        first = round((pixels - out) / 2)
        return _Span(slice(first, first + out), slice(None), True)
    first = (out - pixels) // 2
    return _Span(slice(None), slice(first, first + pixels), False)


def _span(start: float, end: float, full: int, pixels: int, out: int) -> _Span:
    """A side of a box on whole pixels.

    Args:
        start: Of the box, in pixels of the file.
        end: Likewise.
        full: Pixels of the file.
        pixels: Of the decoded image, which may have fewer.
        out: Of the crop.
    """
    inside, last = max(start, 0.0), min(end, float(full))
    first = min(round(inside * pixels / full), pixels - 1)
    of = slice(first, max(round(last * pixels / full), first + 1))
    per_pixel = out / (end - start)
    begin = min(round((inside - start) * per_pixel), out - 1)
    to = slice(begin, max(round((last - start) * per_pixel), begin + 1))
    return _Span(of, to, to == slice(0, out))
