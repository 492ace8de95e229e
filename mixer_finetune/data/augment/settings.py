"""What training does to an image, as the user asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from mixer_finetune.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """What training does to an image.

    Attributes:
        crop_area: Smallest and largest share of the image's area that the training crop keeps; (1, 1) keeps the whole
            image.
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
