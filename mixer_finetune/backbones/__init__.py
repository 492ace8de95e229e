"""What is trained: Mixer-family backbones, their weights and their pre-processing. What is named here needs no torch."""

from mixer_finetune.backbones.families import VARIANTS, Geometry, Variant
from mixer_finetune.backbones.preprocessing import Preprocessing

__all__ = ["VARIANTS", "Geometry", "Preprocessing", "Variant"]
