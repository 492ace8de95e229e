"""plan: what a fit would do, take and write, and whether it can work at all, before hours are spent on it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import TrainerFn

from mixer_finetune.backbones.size import model_size
from mixer_finetune.data.checks import findings
from mixer_finetune.data.module import ImageDataModule
from mixer_finetune.engine.choose import BETWEEN
from mixer_finetune.engine.fit import checked
from mixer_finetune.engine.interruption import interruptible
from mixer_finetune.engine.measuring import Measured, measure
from mixer_finetune.engine.parser import configure
from mixer_finetune.engine.parts import Parts, callbacks_of
from mixer_finetune.engine.quiet import quiet
from mixer_finetune.engine.train import check_training
from mixer_finetune.errors import UserError
from mixer_finetune.runs import RunFolder
from mixer_finetune.training.header import header
from mixer_finetune.training.schedule import LONGEST_WARMUP

_PUSHED = "README.md, calibration.json, config.json, config.yaml, model.safetensors, results.json and the pictures"


@dataclass(frozen=True)
class Plan:
    """What a run would be.

    Attributes:
        header: As `fit` heads the run.
        notes: On the data, and on what would not be done.
        steps: Optimizer steps; None where only training will tell.
        epochs: Of these steps; None likewise.
        splits: Images by role.
        macs: Multiply-accumulates of an image, forward.
        measured: A few steps; None where none were measured.
        why_not: Why not.
        seconds: Expected, by what they are spent on.
        model_bytes: Of the exported weights.
        checkpoint_bytes: Of one checkpoint.
        folder: Where the run's folder would be.
        free_bytes: On that disk.
        push: Where to, if anywhere.
    """

    header: list[str]
    notes: list[str]
    steps: int | None
    epochs: float | None
    splits: dict[str, int]
    macs: int
    measured: Measured | None
    why_not: str | None
    seconds: dict[str, float]
    model_bytes: int
    checkpoint_bytes: int
    folder: Path
    free_bytes: int
    push: str | None

    def lines(self) -> list[str]:
        """For the user."""
        lines = [*self.header, *(f"note       {note}" for note in self.notes)]
        lines.append(f"computes   {self.macs / 1e9:.3g} GMACs an image forward, up to three times that to train on it")
        if self.measured is None:
            lines.append(f"measured   nothing: {self.why_not}")
        else:
            lines += _measured_lines(self.measured, self.seconds)
        files = "last.ckpt and best.ckpt" if "val" in self.splits else "last.ckpt"
        lines.append(
            f"writes     {self.folder}: model {_size(self.model_bytes)}, {files} of {_size(self.checkpoint_bytes)} "
            f"each, results, report, card ({_size(self.free_bytes)} are free)"
        )
        pushes = f"{self.push}: {_PUSHED} (the token may write there)" if self.push else "nothing"
        return [*lines, f"pushes     {pushes}"]


def plan(arguments: Sequence[str], measured_steps: int = 5) -> Plan:
    """Look at a run before it is made. Nothing is trained, written or pushed.

    Args:
        arguments: As typed behind `fit`.
        measured_steps: Steps to measure; 0 for none.

    Raises:
        UserError: The run could not work: what `fit` refuses, a dev split without images, no room on the disk.
    """
    quiet()
    with interruptible(), tempfile.TemporaryDirectory() as scratch:
        cli = configure(arguments)
        folder = RunFolder.planned(cli.options.output_dir, str(cli.options.name)).path.parent / "<date-time>"
        parts = checked(cli, RunFolder(Path(scratch)))
        steps = check_training(parts)
        notes = _dev_notes(parts)
        if isinstance(parts.data, ImageDataModule):
            crops = parts.data.fit in (None, "crop")
            notes = [*findings(parts.data.splits, parts.data.label_names, crops=crops), *notes]
        lines = _headed(parts)
        model: Any = parts.model
        data: Any = parts.data
        splits = {role: len(split) for role, split in getattr(data, "splits", {}).items()}
        batches = getattr(data, "train_batches", None)
        per_epoch = None if batches is None else batches.steps
        epochs = steps / per_epoch if steps and per_epoch else None
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        classes = model.backbone.with_head(model.head).num_classes
        macs = model_size(model.backbone.architecture, model.backbone.geometry, classes).macs
        why_not = _why_not_measured(parts, measured_steps)
        frozen = not any(p.requires_grad for p in model.backbone.parameters())
        cached = frozen and isinstance(data, ImageDataModule) and data.augmentation.fixed and (epochs or 0) >= 1
        ema = bool(model.hparams["ema_decay"])
        if cached:
            notes.append("the frozen backbone computes each image once; the epochs over its features take little more")
        timers = [callback for callback in callbacks_of(parts.trainer) if isinstance(callback, Timer)]
        most = min((timer.time_remaining() or float("inf") for timer in timers), default=float("inf"))
        measured = None
        if why_not is None:
            few = min(measured_steps, max((steps or measured_steps + 1) - 1, 1), max((per_epoch or 2) - 2, 1))
            measured = measure(parts, few)
    # Beside the weights a checkpoint holds the optimizer's state and the average.
    state = measured.optimizer_bytes if measured else weights
    seconds = {} if measured is None else _expected(parts, measured, steps, epochs, splits, cached, ema, most)
    found = Plan(
        header=lines, notes=notes, steps=steps,
        epochs=epochs, splits=splits,
        macs=macs, measured=measured, why_not=why_not, seconds=seconds, model_bytes=weights,
        checkpoint_bytes=weights + state + (weights if ema else 0), folder=folder,
        free_bytes=_free(folder), push=parts.options.push,
    )  # fmt: skip
    needed = found.model_bytes + (2 if "val" in splits else 1) * found.checkpoint_bytes
    if found.free_bytes < needed:
        raise UserError(
            f"the run writes about {_size(needed)} into {folder.parent}, and {_size(found.free_bytes)} are free there",
            option="output_dir",
        )
    return found


def _headed(parts: Parts) -> list[str]:
    """The lines that would head the run."""
    trainer: Any = parts.trainer
    model: Any = parts.model
    # As Lightning has them when it begins to fit: the head is then made for the data's classes.
    trainer.state.fn, trainer.datamodule, model.trainer = TrainerFn.FITTING, parts.data, trainer
    model.configure_model()
    lines = [line for line in header(trainer, model, None) if not line.startswith("resuming")]
    options = model.hparams
    rate = "found by a range test of 80 steps" if options.lr == "auto" else options.lr
    if isinstance(options.optimizer, str) and options.optimizer != "custom":
        warmup = min(options.warmup_steps, int(LONGEST_WARMUP * model.run_steps))
        lines.append(f"optimizer  {options.optimizer}, learning rate {rate}, {warmup} warm-up steps")
    return lines


def _dev_notes(parts: Parts) -> list[str]:
    """What a run without a dev split goes without.

    Raises:
        UserError: There is one, but without an image.
    """
    trainer: Any = parts.trainer
    if "val" not in getattr(parts.data, "splits", {"val": (0,)}):
        return ["there is no dev split: no temperature, no sets of labels, no best.ckpt"]
    limit, images = trainer.limit_val_batches, len(getattr(parts.data, "splits", {}).get("val", (0,)))
    batches = -(-images // getattr(parts.data, "eval_batch_size", images or 1))
    if not images:
        raise UserError("the dev split has no image", advice="name another with {val_split} or raise {val_fraction}")
    if not (int(batches * limit) if isinstance(limit, float) else limit):
        raise UserError(
            f"limit_val_batches {limit} leaves nothing of the dev split's {images:,} images",
            option="trainer.limit_val_batches",
        )
    return []


def _why_not_measured(parts: Parts, steps: int) -> str | None:
    if not steps:
        return "it was not asked for"
    if parts.trainer.world_size > 1:
        return f"the run is on {parts.trainer.world_size} devices; --trainer.devices 1 measures one"
    return None


def _expected(
    parts: Parts, measured: Measured, steps: int | None, epochs: float | None, splits: dict[str, int], cached: bool,
    ema: bool, most: float,
) -> dict[str, float]:  # fmt: skip
    """Seconds by what they are spent on, as far as they can be told."""
    trainer: Any = parts.trainer
    options: Any = parts.options
    image, found = measured.image_seconds, {}
    if cached and image is not None:
        found["features, once"] = image * (splits.get("train", 0) + splits.get("val", 0))
    elif steps is not None:
        found["training"] = min(measured.first_seconds + measured.step_seconds * (steps - 1), most)
        if parts.model.hparams["lr"] == "auto":
            found["range test"] = 80 * measured.step_seconds
    if image is None:
        return found
    often = 0.0 if epochs is None or cached else epochs / (trainer.check_val_every_n_epoch or 1)
    if isinstance(trainer.val_check_interval, float):
        often /= trainer.val_check_interval
    passes = (1 + ema) * int(often) + 1  # the last one is for the temperature
    passes += len(BETWEEN.get(options.weights, ()))
    found["dev split"] = passes * image * splits.get("val", 0)
    if role := getattr(parts.data, "evaluation_role", None):
        found["results"] = image * splits.get(role, 0)
    return found


def _measured_lines(measured: Measured, seconds: dict[str, float]) -> list[str]:
    counted = f"{measured.steps} step{'s' if measured.steps > 1 else ''}"
    image = ""
    if measured.image_seconds:
        image = f"; {1 / measured.image_seconds:,.0f} images/s in evaluation"
    lines = [
        f"measured   {measured.step_seconds:.3g} s a step (median of {counted}; the first took "
        f"{measured.first_seconds:.2g} s){image}",
        f"memory     {_size(measured.memory)} at most, of the {measured.memory_of}",
    ]
    if seconds:
        told = ", ".join(f"{name} {_time(value)}" for name, value in seconds.items())
        lines.append(f"takes      about {_time(sum(seconds.values()))}: {told}; the report comes on top")
    return lines


def _free(folder: Path) -> int:
    """Bytes that are free where the folder would be."""
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.is_dir():
            return shutil.disk_usage(place).free
    return 0


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
