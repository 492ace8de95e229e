"""What it is trained on: image data sets as batches."""

from mixer_finetune.data.module import ImageDataModule

__all__ = ["ImageDataModule"]
