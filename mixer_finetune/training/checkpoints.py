"""Checkpoints of a run: which weights are kept, how files are written, and which one a resumed run goes on from."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from safetensors.torch import save_file
from torch import Tensor

from mixer_finetune.backbones.adapters import UP
from mixer_finetune.backbones.foreign import load_checkpoint
from mixer_finetune.errors import UserError
from mixer_finetune.files import write_atomically
from mixer_finetune.runs import RunFolder

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """`last.ckpt`: at the end of each epoch, and inside an epoch whenever it is due, between two steps.

    Not where validation is due next, which Lightning would leave out when it resumes there, and not between the
    micro-batches of a step, whose gradients no checkpoint holds.

    Args:
        path: Of the checkpoint.
        every_n_steps: Steps from one to the next inside an epoch; None for `seconds`.
        seconds: Time from one to the next, by the first process's clock. Only steps that log are asked, since they wait
            for the device and the other processes anyway.
    """

    state_key = "LastCheckpoint"

    def __init__(self, path: Path, every_n_steps: int | None = None, seconds: float = 60.0) -> None:
        self.path, self.every_n_steps, self.seconds = path, every_n_steps, seconds
        self._saved_at = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Take the first process's path: the others have not made the run folder."""
        self.path = Path(trainer.strategy.broadcast(str(self.path)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when it is due."""
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if isinstance(trainer.val_check_batch, int) and (batch_idx + 1) % trainer.val_check_batch == 0:
            return
        if self.every_n_steps:
            due = trainer.global_step % self.every_n_steps == 0
        else:
            due = pl_module.logged and trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.seconds)
        if due and not pl_module.diverged:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save."""
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)  # with optimizer and callbacks
        self._saved_at = time.monotonic()


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: the latest weights whose dev accuracy is within one standard error of the highest so far.

    On a small dev split many epochs tie or differ by an image or two, which is noise; the learning rate decays, so the
    later weights are then the better bet. Weights that got worse by more than that (overfitting) are still passed over.

    Args:
        samples: Of the dev split.
        dirpath: Folder of the checkpoints.
        monitor: Metric of the dev split that is a share of its samples.
    """

    state_key = (
        "BestCheckpoint"  # Lightning's is made anew at each of a step's hooks, which takes longer than the hooks
    )

    def __init__(self, samples: int, dirpath: Path, monitor: str = "val/accuracy") -> None:
        super().__init__(
            dirpath,
            "best",
            monitor=monitor,
            mode="max",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.samples, self.highest = samples, 0.0

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether the present weights are to be kept."""
        assert current is not None
        self.highest = max(self.highest, float(current))
        # With one more right and one more wrong, so that a dev split that is all right has an error too.
        share = (self.highest * self.samples + 1) / (self.samples + 2)
        return float(current) >= self.highest - math.sqrt(share * (1 - share) / self.samples)

    def on_train_batch_end(self, *args: Any) -> None:
        """Nothing: dev accuracy is known after validation alone."""

    def state_dict(self) -> dict[str, Any]:
        """With the highest dev accuracy so far."""
        return {**super().state_dict(), "highest": self.highest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the highest dev accuracy of the checkpoint."""
        self.highest = state_dict["highest"]
        super().load_state_dict(state_dict)


class StartingWeights(Callback):
    """Keeps the weights that training starts from, for what goes back to them at its end.

    Args:
        path: Of the file, which a resumed run finds there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write them, once.

        Raises:
            UserError: They have an adapter that is trained already, from which no line leads on.
        """
        if self.path.is_file():
            return
        if any(bool(p.any()) for name, p in pl_module.named_parameters() if name.endswith(f".{UP}")):
            raise UserError("the run goes on from a trained adapter", option="weights", choices="last or best")
        if trainer.is_global_zero:
            state = {name: value.detach().cpu().contiguous() for name, value in pl_module.state_dict().items()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, lambda temporary: save_file(state, temporary))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear whole or not at all, and are read without running code.

    Attributes:
        seconds: Spent on writing.
    """

    seconds = 0.0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside, flush to disk, rename."""
        begin = time.perf_counter()
        write_atomically(
            Path(path), lambda temporary: super(AtomicCheckpointIO, self).save_checkpoint(checkpoint, temporary)
        )
        self.seconds += time.perf_counter() - begin

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read tensors and plain values only."""
        return load_checkpoint(Path(path))


def checkpoint_callbacks(run: RunFolder, every_n_steps: int | None, dev_samples: int, monitor: str) -> list[Callback]:
    """`last.ckpt` inside and at the end of each epoch, and `best.ckpt` by a metric of the dev split."""
    last = LastCheckpoint(run.last_checkpoint, every_n_steps)
    return [BestCheckpoint(dev_samples, run.checkpoints, monitor), last] if dev_samples else [last]


def resume_point(run: RunFolder) -> Path:
    """The newest checkpoint of a run that can be read.

    Raises:
        UserError: There is none.
    """
    unread = []
    for path in (run.last_checkpoint, run.best_checkpoint):
        if not path.is_file():
            continue
        try:
            load_checkpoint(path)
        except UserError as error:
            unread.append(error.problem)
            continue
        if unread:
            log.info(f"{unread[0]}; going on from {path.name} instead")
        return path
    raise UserError(
        unread[0] if unread else f"{run} has no checkpoint to go on from",
        advice=f"start anew with: mixer-finetune fit --config {run.config_file}",
    )
