"""What a linear probe costs: epochs over kept features against epochs through the frozen backbone, and the ridge's.

    python tests/benchmarks/probe_speed.py [--epochs 10] [--rows 50000] [--channels 768] [--classes 100]

One thread. Both runs train the same head on the bundled digits from the bundled backbone at 64 px, without
augmentation; CPU seconds of `Trainer.fit`, in a cache of their own that is empty at the start. The ridge regression is
of random numbers.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path
from unittest import mock

import lightning.pytorch as pl
import torch

from mixer_finetune import ImageDataModule, MixerClassifier
from mixer_finetune.memory import keep_freed_memory
from mixer_finetune.training import features
from mixer_finetune.training.ridge import PATH, Ridge


def fit(epochs: int) -> tuple[float, torch.Tensor]:
    """CPU seconds, and the head."""
    data = ImageDataModule("digits", batch_size=64, crop_area=(1, 1), flip=False, num_workers=0)
    model = MixerClassifier("mixer_nano", image_size=64, resize="interpolate", freeze_backbone=True, lr=0.2)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    started = time.process_time()
    trainer.fit(model, data)
    return time.process_time() - started, model.head.weight.detach()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("epochs", 10), ("rows", 50_000), ("channels", 768), ("classes", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command line does
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(features, "_folder", lambda: Path(folder)):
        kept, head = fit(asked.epochs)
        again, _ = fit(asked.epochs)
        with mock.patch("mixer_finetune.training.classifier.frozen_features", lambda *_: {}):
            plain, plain_head = fit(asked.epochs)
    difference = float((head - plain_head).abs().max() / plain_head.abs().max())
    print(
        f"{asked.epochs} epochs through the backbone {plain:.1f} s, over features {kept:.1f} s "
        f"({plain / kept:.1f} times as fast), once they are there {again:.1f} s; heads differ by {difference:.0e}"
    )
    x, labels = torch.randn(asked.rows, asked.channels), torch.randint(asked.classes, (asked.rows,))
    started = time.process_time()
    ridge = Ridge.fit(x, labels, asked.classes)
    fitted = time.process_time() - started
    others = asked.rows // 10
    ridge.accuracies(x[:others], labels[:others], [factor * ridge.scale for factor in PATH])
    print(f"ridge of {asked.rows:,} x {asked.channels}, {asked.classes} classes: {fitted:.1f} s, and "
          f"{time.process_time() - started - fitted:.1f} s for {len(PATH)} penalties on {others:,} images")  # fmt: skip


if __name__ == "__main__":
    main()
