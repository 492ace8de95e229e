"""TrivialAugment (arXiv 2103.10158) and RandAugment (1909.13719): torchvision's operations, with our random numbers.

An image goes through one operation, or several, each chosen from a fixed list, with a strength from 31 levels. The
lists, levels and kernels are those of `torchvision.transforms.v2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixer_finetune.augment.step import Step, check_between
from mixer_finetune.backbones.preprocessing import Preprocessing

_LEVELS = 31
_MOST_OPERATIONS = 8

# How strong an operation is, from (level in 0..1, (height, width) of the image), and whether its sign is drawn.
Strength = Callable[[float, tuple[int, int]], float]
Operation = tuple[Strength, bool]


@dataclass(frozen=True)
class TrivialAugment:
    """TrivialAugment.

    Attributes:
        trivial_augment: Take each training image through one operation of any strength (TrivialAugment, wide).
    """

    trivial_augment: bool = False

    def step(self, preprocessing: Preprocessing) -> Step | None:
        """TrivialAugment, where it is asked for."""
        return Step(partial(trivial_augment, fill=fill_of(preprocessing)), 10, 3) if self.trivial_augment else None


@dataclass(frozen=True)
class RandAugment:
    """RandAugment.

    Attributes:
        rand_augment: Take each training image through `rand_augment_ops` operations of this strength (1 to 30, often
            9; RandAugment); 0 is without.
        rand_augment_ops: Operations of RandAugment.
    """

    rand_augment: int = 0
    rand_augment_ops: int = field(default=2, metadata={"of": ("rand_augment",)})

    def check(self) -> None:
        """Refuse a strength or a number out of range."""
        check_between(0, _LEVELS - 1, rand_augment=self.rand_augment)
        check_between(1, _MOST_OPERATIONS, rand_augment_ops=self.rand_augment_ops)

    def step(self, preprocessing: Preprocessing) -> Step | None:
        """RandAugment, where it is asked for."""
        if not self.rand_augment:
            return None
        apply = partial(rand_augment, level=self.rand_augment, fill=fill_of(preprocessing))
        return Step(apply, 21, 2 * self.rand_augment_ops)


def fill_of(preprocessing: Preprocessing) -> list[float]:
    """The mean colour, in 0..255, for what comes into view."""
    return [255 * mean for mean in preprocessing.mean]


def trivial_augment(images: Tensor, targets: Tensor, u: Tensor, fill: list[float]) -> tuple[Tensor, Tensor]:
    """One operation on each image; u (B, 3): which, how strong, which sign. Images are rounded to whole numbers."""
    names = list(WIDE)
    out = _whole_numbers(images)
    for i, (which, level, sign) in enumerate(u.tolist()):
        name = names[int(which * len(names))]
        out[i] = operate(out[i], name, WIDE[name], int(level * _LEVELS), sign < 0.5, fill)
    return out, targets


def rand_augment(images: Tensor, targets: Tensor, u: Tensor, level: int, fill: list[float]) -> tuple[Tensor, Tensor]:
    """Operations on each image, all of one level; u (B, 2 operations): which, and which sign, of each."""
    names = list(NARROW)
    out = _whole_numbers(images)
    for i, numbers in enumerate(u.tolist()):
        for which, sign in zip(numbers[::2], numbers[1::2], strict=True):
            name = names[int(which * len(names))]
            out[i] = operate(out[i], name, NARROW[name], level, sign < 0.5, fill)
    return out, targets


def operate(image: Tensor, name: str, operation: Operation, level: int, negative: bool, fill: list[float]) -> Tensor:
    """One operation on one image.

    Args:
        image: (c, S, T) uint8.
        name: Of the operation.
        operation: Its strength.
        level: From 0 to 30.
        negative: Whether the strength is taken with its sign turned, where the sign is drawn.
        fill: Colour of what comes into view, (c,).

    Returns:
        (c, S, T) uint8.
    """
    strength, signed = operation
    height, width = image.shape[-2:]
    amount = strength(level / (_LEVELS - 1), (height, width))
    result: Tensor = _apply(image, name, -amount if signed and negative else amount, fill)
    return result


def _apply(image: Tensor, name: str, amount: float, fill: list[float]) -> Any:
    import torchvision.transforms.v2.functional as kernels  # predict does without, whose start it would double
    from torchvision.transforms import InterpolationMode

    affine = partial(
        kernels.affine,
        image,
        angle=0.0,
        translate=[0, 0],
        scale=1.0,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.NEAREST,
        fill=fill,
    )
    if image.shape[0] == 4 and name not in _GEOMETRIC:  # the colours change, the alpha channel does not
        return torch.cat([_apply(image[:3], name, amount, fill), image[3:]])
    degrees = math.degrees(math.atan(amount))
    match name:
        case "Identity":
            return image
        case "ShearX":
            return affine(shear=[degrees, 0.0], center=[0, 0])
        case "ShearY":
            return affine(shear=[0.0, degrees], center=[0, 0])
        case "TranslateX":
            return affine(translate=[int(amount), 0])
        case "TranslateY":
            return affine(translate=[0, int(amount)])
        case "Rotate":
            return kernels.rotate(image, amount, interpolation=InterpolationMode.NEAREST, fill=fill)
        case "Brightness":
            return kernels.adjust_brightness(image, 1 + amount)
        case "Color":
            return kernels.adjust_saturation(image, 1 + amount)
        case "Contrast":
            return kernels.adjust_contrast(image, 1 + amount)
        case "Sharpness":
            return kernels.adjust_sharpness(image, 1 + amount)
        case "Posterize":
            return kernels.posterize(image, int(amount))
        case "Solarize":
            return kernels.solarize(image, amount)
        case "AutoContrast":
            return kernels.autocontrast(image)
        case _:
            return kernels.equalize(image)


def _whole_numbers(images: Tensor) -> Tensor:
    return images.clone() if images.dtype == torch.uint8 else images.round().clamp_(0, 255).to(torch.uint8)


def _up_to(most: float) -> Operation:
    return (lambda at, size: at * most), True


def _bits(fewest: int) -> Operation:
    return (lambda at, size: 8 - round(at * (8 - fewest))), False


_FIXED: Operation = (lambda at, size: 0.0), False
_SOLARIZE: Operation = (lambda at, size: 255 * (1 - at)), False

# TrivialAugment's wide ranges. Translations are in pixels, whatever the size of the image.
WIDE: dict[str, Operation] = {
    "Identity": _FIXED,
    "ShearX": _up_to(0.99),
    "ShearY": _up_to(0.99),
    "TranslateX": _up_to(32.0),
    "TranslateY": _up_to(32.0),
    "Rotate": _up_to(135.0),
    "Brightness": _up_to(0.99),
    "Color": _up_to(0.99),
    "Contrast": _up_to(0.99),
    "Sharpness": _up_to(0.99),
    "Posterize": _bits(2),
    "Solarize": _SOLARIZE,
    "AutoContrast": _FIXED,
    "Equalize": _FIXED,
}
_GEOMETRIC = ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
# RandAugment's. Translations are a share of the image.
NARROW: dict[str, Operation] = {
    **WIDE,
    "ShearX": _up_to(0.3),
    "ShearY": _up_to(0.3),
    "TranslateX": ((lambda at, size: at * 150 / 331 * size[1]), True),
    "TranslateY": ((lambda at, size: at * 150 / 331 * size[0]), True),
    "Rotate": _up_to(30.0),
    "Brightness": _up_to(0.9),
    "Color": _up_to(0.9),
    "Contrast": _up_to(0.9),
    "Sharpness": _up_to(0.9),
    "Posterize": _bits(4),
}
