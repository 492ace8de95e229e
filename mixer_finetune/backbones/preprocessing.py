"""How images must be prepared for a backbone's weights, in the terms of timm's `pretrained_cfg`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """Pre-processing of a checkpoint.

    Attributes:
        image_size: Side of the square that the backbone sees, in pixels.
        mean: Subtracted from each of the three channels, after scaling to 0..1.
        std: What the channels are divided by, after that.
        interpolation: "bicubic", "bilinear" or "nearest".
        crop_pct: Share of the shorter side that the evaluation crop keeps.
        crop_mode: "center" resizes the shorter side and crops; "squash" resizes both sides, ignoring the aspect ratio.
    """

    image_size: int = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @classmethod
    def from_pretrained_cfg(cls, cfg: dict[str, Any], image_size: int) -> Preprocessing:
        """Read timm's `pretrained_cfg`; what it leaves out is the paper's (mean = std = 0.5, bicubic, 0.875)."""
        known = {key: cfg[key] for key in ("interpolation", "crop_pct", "crop_mode") if cfg.get(key) is not None}
        for key in ("mean", "std"):
            if cfg.get(key) is not None:
                known[key] = tuple(float(value) for value in cfg[key])
        return cls(image_size=image_size, **known)

    def to_pretrained_cfg(self) -> dict[str, Any]:
        """The entries of timm's `pretrained_cfg` that say the same."""
        return {
            "input_size": [3, self.image_size, self.image_size],
            "fixed_input_size": True,
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "mean": list(self.mean),
            "std": list(self.std),
        }
