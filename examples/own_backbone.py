"""A network of one's own on an ImageDataModule: python examples/own_backbone.py [DATA].

The data module prepares images as the module's `preprocessing` says, keeps its exact order and counts, and gives any
LightningModule (images, labels). To fine-tune a new kind of Mixer with all commands, add a family: docs/extending.md.
"""

import sys

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn

from mixer_finetune import ImageDataModule
from mixer_finetune.backbones.preprocessing import Preprocessing


class Small(pl.LightningModule):
    """Two layers of patches, then a mean over the image."""

    preprocessing = Preprocessing((32, 32), crop_pct=1.0)

    def __init__(self, classes: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 64, 4, 4),
            nn.GELU(),
            nn.Conv2d(64, 128, 2, 2),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(128, classes)

    def forward(self, images):
        return self.head(self.net(images))  # (B, 3, 32, 32) to (B, classes)

    def training_step(self, batch, _):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def test_step(self, batch, _):
        images, labels = batch
        self.log("test/accuracy", (self(images).argmax(1) == labels).float().mean(), batch_size=len(labels))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


if __name__ == "__main__":
    pl.seed_everything(0)
    data = ImageDataModule(*sys.argv[1:2] or ["digits"], batch_size=64, flip=False)
    model = Small(data.num_classes)
    trainer = pl.Trainer(
        max_epochs=5, accelerator="cpu", logger=False, use_distributed_sampler=False, enable_checkpointing=False
    )
    trainer.fit(model, data)
    trainer.test(model, data)
