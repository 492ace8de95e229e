"""From a loader's batch to what a backbone takes, on the batch's device."""

from __future__ import annotations

from torch import Tensor

from mixer_finetune.augment import Augmentation, augment_batch, crop_batch, crop_boxes, mirror_boxes, mix_samples
from mixer_finetune.backbones.cropping import evaluation_crop
from mixer_finetune.backbones.preprocessing import Preprocessing, normalize
from mixer_finetune.data.batches import Batch


def evaluation_images(batch: Batch, preprocessing: Preprocessing) -> Tensor:
    """A batch's images as the backbone takes them: (b, c, S, T) float32, unaugmented, normalised."""
    images = batch.images if batch.cropped else evaluation_crop(batch.images, preprocessing)
    return normalize(images, preprocessing)


def augmented(batch: Batch, augmentation: Augmentation, preprocessing: Preprocessing, classes: int, seed: int) -> Batch:
    """A batch as training takes it: small images cropped, all augmented, normalised and mixed.

    Args:
        batch: (b, c, H, W) uint8; with one image more, the first, where images are mixed.
        augmentation: What is done.
        preprocessing: Of the backbone.
        classes: Of the data.
        seed: Of the run.

    Returns:
        Images (b, c, S, T) float32; labels soft where images are mixed.
    """
    images, drawn_by = batch.images, (seed, batch.epoch, batch.keys)
    mirrored = not batch.cropped and augmentation.flip
    if not batch.cropped:
        (height, width), size = images.shape[-2:], batch.size or preprocessing.image_size
        boxes = crop_boxes(augmentation, *drawn_by, height, width, size, preprocessing.crop_mode)
        if mirrored:
            boxes = mirror_boxes(boxes, *drawn_by)
        images = crop_batch(images, boxes, size, preprocessing.interpolation)
    steps = augmentation.steps(preprocessing, mirrored)
    images, labels = augment_batch(images, batch.labels, steps, preprocessing, *drawn_by)
    if not batch.partner or not len(images):
        return batch._replace(images=images, labels=labels)
    images, labels = mix_samples(images, labels, augmentation, classes, *drawn_by, unpaired=batch.unpaired)
    indices, keys = batch.indices[1:], batch.keys[1:]
    return batch._replace(images=images, labels=labels, indices=indices, keys=keys, partner=False)
