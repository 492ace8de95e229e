"""Everything that training does to an image, put together from the files beside this one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from mixer_finetune.augment.auto import RandAugment, TrivialAugment
from mixer_finetune.augment.color import ColorJitter
from mixer_finetune.augment.crop import Crop
from mixer_finetune.augment.erasing import RandomErasing
from mixer_finetune.augment.flip import Flip
from mixer_finetune.augment.mix import Mix
from mixer_finetune.augment.rotation import Rotation
from mixer_finetune.augment.step import Step
from mixer_finetune.augment.three import ThreeAugment
from mixer_finetune.backbones.preprocessing import Preprocessing


# Read from the right, the steps in their order. Each class has options, may have `check`, and has `step`, which gives
# None where it isn't asked for. An option that says nothing without others names them in its metadata, as "of".
@dataclass(frozen=True)
class Augmentation(Mix, RandomErasing, ColorJitter, ThreeAugment, RandAugment, TrivialAugment, Rotation, Flip, Crop):
    """What training does to an image: all options of the classes that it is made of."""

    def check(self) -> None:
        """Refuse what can't be done.

        Raises:
            UserError: An option is out of range.
        """
        for part in _parts():
            if "check" in vars(part):
                part.check(self)

    def steps(self, preprocessing: Preprocessing, flipped: bool = False) -> tuple[Step, ...]:
        """The steps that are asked for, in order.

        Args:
            preprocessing: Of the backbone.
            flipped: Whether the images are mirrored already.
        """
        parts = (part for part in _parts() if "step" in vars(part) and not (flipped and part is Flip))
        return tuple(step for part in parts if (step := part.step(self, preprocessing)) is not None)

    @property
    def fixed(self) -> bool:
        """Whether an image is the same in every epoch: all of it, neither turned, coloured nor mixed."""
        parts = (part for part in _parts() if "step" in vars(part))
        steps = any(part.step(self, Preprocessing()) is not None for part in parts)
        return tuple(self.crop_area) == (1.0, 1.0) and not steps and not self.mixes

    def described(self, repeats: int = 1) -> list[str]:
        """What is done beside cropping and mirroring, in words: "name value", or the name of a switch that is on."""
        said, usual = [], {field.name for part in (Crop, Flip) for field in fields(part)}
        for field in fields(self):
            value = getattr(self, field.name)
            idle = "of" in field.metadata and not any(getattr(self, of) for of in field.metadata["of"])
            if field.name not in usual and value != field.default and not idle:
                name = field.name.replace("_", " ")
                said.append(name if isinstance(value, bool) else f"{name} {value:g}")
        if repeats > 1:
            said.append(f"each image {repeats} times in a batch")
        return said


def _parts() -> Iterator[Any]:
    return (part for part in reversed(Augmentation.__mro__) if part not in (object, Augmentation))
