"""What is trained: Mixer-family backbones, their weights and their pre-processing. What is named here needs no torch.

family      what a family is made of; each family's file (mixer, gmixer, resmlp, gmlp) ends with its own
families    the table of all families and their architectures
backbone    the trunk that they share, built from (architecture, geometry)
load        source -> config (folder) and weights (foreign) -> the size asked for (resize) -> Backbone
"""

from mixer_finetune.backbones.family import Variant
from mixer_finetune.backbones.geometry import Geometry
from mixer_finetune.backbones.preprocessing import Preprocessing

__all__ = ["Geometry", "Preprocessing", "Variant"]
