"""Augmentation, each a function of (seed, epoch, index).

    crop (boxes)  ->  steps on the batch: flip, rotation, auto, three, color, erasing  ->  normalised  ->  mix

What must be done image by image (the crop of a large photo) is done in the workers; all else on uint8 batches, on the
device. A step is a function `(images, targets, u) -> (images, targets)`: images (B, c, S, T) in 0..255, uint8 or
float32; targets as the task has them; u (B, draws) uniform in [0, 1). One more is a file, with the class of its options
and its step, and that class's name among the bases of `settings.Augmentation`.
"""

from mixer_finetune.augment.crop import crop_batch, crop_boxes, crop_shapes, mirror_boxes, place_crop
from mixer_finetune.augment.rotation import rotate_batch
from mixer_finetune.augment.settings import Augmentation
from mixer_finetune.augment.step import Step
from mixer_finetune.augment.steps import augment_batch, mix_samples

__all__ = [
    "Augmentation",
    "Step",
    "augment_batch",
    "crop_batch",
    "crop_boxes",
    "crop_shapes",
    "mirror_boxes",
    "mix_samples",
    "place_crop",
    "rotate_batch",
]
