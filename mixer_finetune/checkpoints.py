"""Checkpoints of a run: which weights are kept, how files are written, and which one a resumed run goes on from."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor

from mixer_finetune.backbones.formats import load_checkpoint
from mixer_finetune.errors import UserError
from mixer_finetune.progress import say
from mixer_finetune.runs import write_atomically


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt` inside an epoch, but not at its last batch: resumed from there, Lightning would leave validation out."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Save when it is due."""
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args)


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: the latest weights whose dev accuracy is within one standard error of the highest so far.

    On a small dev split many epochs tie or differ by an image or two, which is noise; the learning rate decays, so the later
    weights are then the better bet. Weights that got worse by more than that (overfitting) are still passed over.

    Args:
        samples: Of the dev split.
        dirpath: Folder of the checkpoints.
    """

    def __init__(self, samples: int, dirpath: Path) -> None:
        super().__init__(
            dirpath, "best", monitor="val/accuracy", mode="max", save_on_train_epoch_end=False, enable_version_counter=False
        )
        self.samples, self.highest = samples, 0.0

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether the present weights are to be kept."""
        assert current is not None
        self.highest = max(self.highest, float(current))
        # With one more right and one more wrong, so that a dev split that is all right has an error too.
        share = (self.highest * self.samples + 1) / (self.samples + 2)
        return float(current) >= self.highest - math.sqrt(share * (1 - share) / self.samples)

    def state_dict(self) -> dict[str, Any]:
        """With the highest dev accuracy so far."""
        return {**super().state_dict(), "highest": self.highest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the highest dev accuracy of the checkpoint."""
        self.highest = state_dict["highest"]
        super().load_state_dict(state_dict)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear whole or not at all, and are read without running code.

    Attributes:
        seconds: Spent on writing.
    """

    seconds = 0.0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside, flush to disk, rename."""
        begin = time.perf_counter()
        write_atomically(Path(path), lambda temporary: super(AtomicCheckpointIO, self).save_checkpoint(checkpoint, temporary))
        self.seconds += time.perf_counter() - begin

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read tensors and plain values only."""
        return load_checkpoint(Path(path))


def checkpoint_callbacks(run: Path, every_n_steps: int | None, dev_samples: int) -> list[Callback]:
    """`last.ckpt` inside and at the end of each epoch, and `best.ckpt` by dev accuracy."""
    last: dict[str, Any] = {"dirpath": run / "checkpoints", "filename": "last", "enable_version_counter": False}
    inside = {"every_n_train_steps": every_n_steps} if every_n_steps else {"train_time_interval": timedelta(minutes=1)}
    callbacks: list[Callback] = [
        LastCheckpoint(**last, **inside, save_on_train_epoch_end=False),
        ModelCheckpoint(**last, every_n_epochs=1, save_on_train_epoch_end=True),
    ]
    return [BestCheckpoint(dev_samples, run / "checkpoints"), *callbacks] if dev_samples else callbacks


def resume_point(run: Path) -> Path:
    """The newest checkpoint of a run that can be read."""
    unread = []
    for path in (run / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")):
        if not path.is_file():
            continue
        try:
            load_checkpoint(path)
        except UserError as error:
            unread.append(str(error))
            continue
        if unread:
            say(f"{unread[0]}; going on from {path.name} instead")
        return path
    raise UserError(
        unread[0] if unread else f"{run} has no checkpoint to go on from; start anew with fit --config {run}/config.yaml"
    )
