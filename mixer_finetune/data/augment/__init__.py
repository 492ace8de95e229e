"""Augmentation, each a function of (seed, epoch, index).

    crop.py (boxes)  ->  steps on the batch, one file each: flip, rotation, color, erasing  ->  normalised

What must be done image by image (the crop of a large photo) is done in the workers; all else on uint8 batches, on the
device. A step is a function `(images, targets, u) -> (images, targets)`: images (B, c, S, T) in 0..255, uint8 or
float32; targets as the task has them; u (B, draws) uniform in [0, 1). One more is a file and a line in `steps.py`.
"""

from mixer_finetune.data.augment.crop import crop_batch, crop_boxes, crop_shapes, mirror_boxes, place_crop
from mixer_finetune.data.augment.rotation import rotate_batch
from mixer_finetune.data.augment.settings import Augmentation
from mixer_finetune.data.augment.steps import Step, augment_batch, steps_of

__all__ = [
    "Augmentation",
    "Step",
    "augment_batch",
    "crop_batch",
    "crop_boxes",
    "crop_shapes",
    "mirror_boxes",
    "place_crop",
    "rotate_batch",
    "steps_of",
]
