"""3-Augment of DeiT III (arXiv 2204.07118): each image is made grey, solarised or blurred."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixer_finetune.augment.step import Step, colors_of, with_alpha
from mixer_finetune.backbones.preprocessing import Preprocessing

_SIGMA = (0.1, 2.0)  # of the blur, in pixels


@dataclass(frozen=True)
class ThreeAugment:
    """3-Augment.

    Attributes:
        three_augment: Make each training image grey, solarised or blurred, at random (3-Augment; its paper adds
            `color_jitter` 0.3).
    """

    three_augment: bool = False

    def step(self, preprocessing: Preprocessing) -> Step | None:
        """3-Augment, where it is asked for."""
        return Step(three_augment, 13, 2) if self.three_augment else None


def three_augment(images: Tensor, targets: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """A third of the images grey, a third solarised, a third blurred; u (B, 2): which, and the blur's sigma."""
    import torchvision.transforms.v2.functional as kernels  # predict does without, whose start it would double

    x = colors_of(images).float()
    which = (3 * u[:, 0]).long()[:, None, None, None]
    out = torch.where(x >= 128, 255 - x, x)  # solarised
    if (which == 0).any():
        grey = kernels.rgb_to_grayscale(x, num_output_channels=3) if x.shape[1] == 3 else x
        out = torch.where(which == 0, grey, out)
    for i in (which.flatten() == 2).nonzero()[:, 0].tolist():
        sigma = _SIGMA[0] + (_SIGMA[1] - _SIGMA[0]) * float(u[i, 1])
        out[i] = kernels.gaussian_blur(x[i], kernel_size=_kernel_size(x), sigma=sigma)
    return with_alpha(out, images), targets


def _kernel_size(images: Tensor) -> int:
    """Odd, wide enough for four of the largest sigma on either side, and no wider than torch's reflection allows."""
    widest = 2 * min(images.shape[-2:]) - 1
    return min(2 * int(4 * _SIGMA[1]) + 1, widest)
