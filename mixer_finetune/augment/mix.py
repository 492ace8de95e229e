"""Mixup (arXiv 1710.09412) and CutMix (1905.04899): each image is mixed with the one before it in the global batch.

The first of a global batch is mixed with its last. So a micro-batch needs one image that is not its own, whatever the
number of devices; how much of it is taken is a function of (seed, epoch, index of the sample that it is mixed into).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_finetune.augment.step import check_between

DRAWS = 6  # uniform numbers of a sample: whether, which of the two, two for the share, and the box's centre


@dataclass(frozen=True)
class Mix:
    """Mixing.

    Attributes:
        mixup: Mix each training image and its label with another's, by a share from Beta(mixup, mixup) (often 0.2 to
            0.8); 0 is without.
        cutmix: Put a box of another training image in, its area from Beta(cutmix, cutmix) (often 1); with both, each
            image goes through one of the two; 0 is without.
        mix_probability: Probability that an image is mixed.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = field(default=1.0, metadata={"of": ("mixup", "cutmix")})

    def check(self) -> None:
        """Refuse what can't be drawn from."""
        check_between(0, 100, mixup=self.mixup, cutmix=self.cutmix)
        check_between(0, 1, mix_probability=self.mix_probability)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed at all."""
        return bool((self.mixup or self.cutmix) and self.mix_probability)


def mix_batch(
    images: Tensor, targets: Tensor, u: Tensor, mix: Mix, classes: int, unpaired: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Mix each image with the one before it.

    Args:
        images: (1 + b, c, S, T) float32; the first is only there for the second.
        targets: Class numbers (1 + b,), or soft (1 + b, C).
        u: (b, 6) uniform numbers of the samples.
        mix: What is asked for.
        classes: C.
        unpaired: Which of the b images stay as they are, since the one before it could not be decoded.

    Returns:
        Images (b, c, S, T) and soft targets (b, C) float32.
    """
    if targets.ndim == 1:
        targets = F.one_hot(targets, classes)
    targets = targets.float()
    mixed = u[:, 0] < mix.mix_probability
    if unpaired:
        mixed[list(unpaired)] = False
    cut = u[:, 1] < (0.5 if mix.mixup else 1.0) if mix.cutmix else torch.zeros_like(mixed)
    share = torch.where(cut, symmetric_beta(mix.cutmix, u[:, 2:4]), symmetric_beta(mix.mixup, u[:, 2:4]))  # its own
    box = _boxes(1 - share, u[:, 4:], *images.shape[-2:]) & (cut & mixed)[:, None, None, None]  # (b, 1, S, T)
    share = torch.where(cut, 1 - box.float().mean((1, 2, 3)), share)
    share = torch.where(mixed, share, 1.0).to(images)
    blend = torch.where(cut, 1.0, share)[:, None, None, None]
    own, other = images[1:], images[:-1]
    out = torch.where(box, other, torch.lerp(other, own, blend))
    return out, torch.lerp(targets[:-1], targets[1:], share[:, None])


def symmetric_beta(concentration: float, u: Tensor) -> Tensor:
    """A draw from Beta(a, a) for each pair of uniform numbers; u (b, 2) gives (b,).

    Bailey's polar method (1994, "Polar generation of random variates with the t-distribution") draws from Student's t
    with n = 2a degrees of freedom, and t / sqrt(n + t^2) is a Beta(a, a), brought from -1..1 to 0..1.
    """
    if not concentration:
        return torch.ones(len(u), device=u.device)
    u = u.double()
    squared = torch.expm1(-torch.log1p(-u[:, 0]) / concentration)  # of the radius over n; it may overflow to infinity
    cosine = torch.cos(2 * torch.pi * u[:, 1])
    ratio = squared.sqrt() * cosine  # t / sqrt(n)
    signed = torch.where(ratio.isinf(), ratio.sign(), ratio / torch.hypot(ratio, torch.ones_like(ratio)))
    return ((1 + signed) / 2).float()


def _boxes(area: Tensor, u: Tensor, rows: int, columns: int) -> Tensor:
    """Which pixels lie in a box of that share of the area round a uniform centre, (b, 1, rows, columns)."""
    side = area.clamp(0, 1).sqrt()
    height, width = (side * rows).floor(), (side * columns).floor()
    y, x = (u[:, 0] * rows).floor(), (u[:, 1] * columns).floor()
    top, left = y - (height / 2).floor(), x - (width / 2).floor()
    at_y, at_x = torch.arange(rows, device=u.device), torch.arange(columns, device=u.device)
    in_rows = (at_y >= top[:, None]) & (at_y < (top + height)[:, None])
    in_columns = (at_x >= left[:, None]) & (at_x < (left + width)[:, None])
    return in_rows[:, None, :, None] & in_columns[:, None, None, :]
