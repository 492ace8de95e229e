"""What is trained: Mixer backbones, their weights and their pre-processing."""

from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.backbones.trunk import Backbone
from mixer_finetune.backbones.variants import VARIANTS, Geometry, Variant

__all__ = ["VARIANTS", "Backbone", "Geometry", "Preprocessing", "Variant", "load_backbone"]
