"""What is trained: Mixer backbones, their weights and their pre-processing."""

from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.backbones.mixer import Mixer
from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.backbones.variants import VARIANTS, Variant

__all__ = ["VARIANTS", "Mixer", "Preprocessing", "Variant", "load_backbone"]
