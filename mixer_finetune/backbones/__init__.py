"""What is trained: Mixer-family backbones, their weights and their pre-processing. What is named here needs no torch."""

from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.backbones.variants import VARIANTS, Geometry, Variant

__all__ = ["VARIANTS", "Geometry", "Preprocessing", "Variant"]
