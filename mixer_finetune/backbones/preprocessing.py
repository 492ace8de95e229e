"""How images must be prepared for a backbone's weights, in the terms of timm's `pretrained_cfg`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

FILTERS = ("bicubic", "bilinear", "nearest")
CROP_MODES = ("center", "squash")
# What PIL calls images of that many channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def as_pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """A size as (height, width): one number stands for a square."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


@dataclass(frozen=True)
class Preprocessing:
    """Pre-processing of a checkpoint.

    Attributes:
        image_size: (height, width) that the backbone sees, in pixels; a number given for it means a square.
        mean: Subtracted from each channel, after scaling to 0..1; there are as many values as channels.
        std: What the channels are divided by, after that.
        interpolation: "bicubic", "bilinear" or "nearest".
        crop_pct: Share of the side that the evaluation crop keeps.
        crop_mode: "center" resizes to cover the crop, and crops; "squash" resizes both sides, ignoring the aspect ratio.
    """

    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_pair(self.image_size))

    @property
    def mode(self) -> str:
        """What PIL calls images of this many channels."""
        return MODES[len(self.mean)]

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
            ValueError: It asks for something else than is known here.
        """
        known = {key: cfg[key] for key in ("interpolation", "crop_pct", "crop_mode") if cfg.get(key) is not None}
        for key in ("mean", "std"):
            if cfg.get(key) is not None:
                known[key] = tuple(float(value) for value in cfg[key])
        prepared = cls(image_size=image_size, **known)
        if not 0 < prepared.crop_pct <= 1 or prepared.crop_mode not in CROP_MODES or prepared.interpolation not in FILTERS:
            raise ValueError(
                f"expected crop_pct in 0..1, crop_mode {' or '.join(CROP_MODES)}, interpolation {', '.join(FILTERS)}, got "
                f"{prepared.crop_pct}, {prepared.crop_mode}, {prepared.interpolation}"
            )
        return prepared

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
