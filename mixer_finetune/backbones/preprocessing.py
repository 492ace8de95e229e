"""How images must be prepared for a backbone's weights, in the terms of timm's `pretrained_cfg`, and the doing of it.

Torch and PIL are imported by the functions that need them: commands that only read such settings start at once.

Shapes: B images of H x W pixels and c channels; (S, T) is the size that the backbone takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixer_finetune.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FILTERS = ("bicubic", "bilinear", "nearest")
CROP_MODES = ("center", "squash", "border")
# What users call timm's modes of the crop.
FITS = {"crop": "center", "squash": "squash", "pad": "border"}
# What PIL calls images of that many channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# The evaluation crop enlarges an image by at most the inverse of this before it cuts.
SMALLEST_CROP_PCT = 0.05
# Values of an image from which on a batch of them is normalised image by image.
_CACHED_PIXELS = 2**14


def as_pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """A size as (height, width): one number stands for a square."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


@dataclass(frozen=True)
class Preprocessing:
    """Pre-processing of a checkpoint. Called with an image, it prepares it as evaluation does.

    Attributes:
        image_size: (height, width) that the backbone sees, in pixels; a number given for it means a square.
        mean: Subtracted from each channel, after scaling to 0..1; there are as many values as channels.
        std: What the channels are divided by, after that.
        interpolation: "bicubic", "bilinear" or "nearest".
        crop_pct: Share of the side that the evaluation crop keeps.
        crop_mode: "center" resizes to cover the crop, and crops; "squash" resizes both sides, ignoring the aspect
            ratio; "border" resizes to fit into the crop, and pads with the mean colour. As in timm's configurations.

    Raises:
        UserError: A value is out of range.
    """

    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_pair(self.image_size))
        for name, value, known in (
            ("interpolation", self.interpolation, FILTERS),
            ("crop_mode", self.crop_mode, CROP_MODES),
        ):
            if value not in known:
                raise UserError(f"{name} must be {' or '.join(known)}, got {value!r}")
        if not SMALLEST_CROP_PCT <= self.crop_pct <= 1:
            raise UserError(f"crop_pct must be from {SMALLEST_CROP_PCT} to 1, got {self.crop_pct!r}")
        if len(self.mean) not in MODES or len(self.mean) != len(self.std):
            raise UserError(
                f"mean and std must have a value for each of 1, 3 or 4 channels, got {len(self.mean)} and "
                f"{len(self.std)} values"
            )
        if not all(map(math.isfinite, self.mean)) or not all(0 < value < math.inf for value in self.std):
            raise UserError(f"mean must be finite and std above 0, got {self.mean} and {self.std}")

    @property
    def mode(self) -> str:
        """What PIL calls images of this many channels."""
        return MODES[len(self.mean)]

    def __call__(self, image: Image | str | Path) -> Tensor:
        """An image as the backbone takes it in evaluation.

        Args:
            image: A PIL image, or the path of a file. A file is read as `predict` and `test` read it: a JPEG much
                larger than the crop is decoded at a fraction of its size.

        Returns:
            (c, S, T) float32, normalised.

        Raises:
            UserError: The image can't be decoded.
        """
        import torch

        from mixer_finetune.backbones.cropping import evaluation_crop, evaluation_photo
        from mixer_finetune.images import BadImage, as_mode, open_photo, to_view

        try:
            if isinstance(image, str | Path):
                prepared = torch.empty(len(self.mean), *self.image_size, dtype=torch.uint8)
                evaluation_photo(open_photo({"path": str(image)}, str(image)), self, prepared)
            else:
                prepared = evaluation_crop(to_view(as_mode(image, self.mode))[None], self)[0]
        except BadImage as error:
            raise UserError(str(error)) from error
        return normalize(prepared, self)

    def with_channels(self, in_chans: int) -> Preprocessing:
        """The same for another number of channels: one has the mean of the three, a fourth repeats the first."""
        if in_chans == len(self.mean):
            return self

        def channels(values: tuple[float, ...]) -> tuple[float, ...]:
            return (sum(values) / len(values),) if in_chans == 1 else (values * in_chans)[:in_chans]

        return replace(self, mean=channels(self.mean), std=channels(self.std))

    @classmethod
    def from_pretrained_cfg(cls, cfg: dict[str, Any], image_size: tuple[int, int]) -> Preprocessing:
        """Read timm's `pretrained_cfg`; what it leaves out is the paper's (mean = std = 0.5, bicubic, 0.875).

        Raises:
            UserError: A value is out of range, or not what belongs there.
        """
        known = {key: cfg[key] for key in ("interpolation", "crop_pct", "crop_mode") if cfg.get(key) is not None}
        for key in ("mean", "std"):
            if cfg.get(key) is not None:
                if not isinstance(cfg[key], list | tuple) or not all(map(_is_number, cfg[key])):
                    raise UserError(f"{key} must be a list of numbers, got {cfg[key]!r}")
                known[key] = tuple(float(value) for value in cfg[key])
        if not _is_number(known.get("crop_pct", 1)):
            raise UserError(f"crop_pct must be a number, got {known['crop_pct']!r}")
        return cls(image_size=image_size, **known)

    def to_pretrained_cfg(self) -> dict[str, Any]:
        """The entries of timm's `pretrained_cfg` that say the same."""
        return {
            "input_size": [len(self.mean), *self.image_size],
            "fixed_input_size": True,
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def _is_number(value: Any) -> bool:
    """Whether a value is a number that float32 can hold."""
    return isinstance(value, int | float) and abs(value) < 3e38


def normalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(..., c, S, T) in 0..255 to float32, less the mean and over the standard deviation."""
    import torch

    out = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    scale: float | Tensor = 1 / (255 * preprocessing.std[0])
    shift: float | Tensor = -preprocessing.mean[0] / preprocessing.std[0]
    if len({*zip(preprocessing.mean, preprocessing.std, strict=True)}) > 1:
        scale = per_channel(tuple(1 / (255 * std) for std in preprocessing.std), images)
        shift = per_channel(
            tuple(-m / std for m, std in zip(preprocessing.mean, preprocessing.std, strict=True)), images
        )
    # On a CPU an image at a time, where it is large: then it stays in the cache until it is done.
    large = images.ndim == 4 and images.device.type == "cpu" and images[:1].numel() > _CACHED_PIXELS
    for target, source in zip(out, images, strict=True) if large else ((out, images),):
        target.copy_(source, non_blocking=True).mul_(scale).add_(shift)
    return out


def denormalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Normalised images (..., c, S, T) back to uint8, in their shape."""
    import torch

    mean, std = per_channel(preprocessing.mean, images), per_channel(preprocessing.std, images)
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """A value for each channel as (c, 1, 1) float32, on the device of `like`."""
    import torch

    return torch.tensor(values, dtype=torch.float32).to(like.device, non_blocking=True)[:, None, None]
