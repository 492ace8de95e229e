"""The stage that trains: it leaves checkpoints, the model folder and how training ended."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import TensorBoardLogger

from mixer_finetune.backbones.adapters import is_adapter
from mixer_finetune.backbones.folder import save_model_folder
from mixer_finetune.data.fingerprint import fingerprint
from mixer_finetune.data.module import ImageDataModule
from mixer_finetune.engine.adapter import keep_adapter
from mixer_finetune.engine.calibrate import calibrate
from mixer_finetune.engine.choose import BETWEEN, choose_weights
from mixer_finetune.engine.configuration import as_yaml, repeatable
from mixer_finetune.engine.parts import Parts, callbacks_of
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.results import device_name
from mixer_finetune.files import write_text
from mixer_finetune.integrity import hashes_of
from mixer_finetune.runs import RunFolder
from mixer_finetune.training.checkpoints import StartingWeights, checkpoint_callbacks
from mixer_finetune.training.classifier import MixerClassifier
from mixer_finetune.training.metrics_file import MetricsFile
from mixer_finetune.training.stopping import EarlyStop
from mixer_finetune.training.task import TOP_K

log = logging.getLogger(__name__)


def train(parts: Parts, run: RunFolder, checkpoint: Path | None) -> RunFolder:
    """Train, and write what was trained.

    Args:
        parts: Of the run, checked.
        run: Its folder, which only the first process may have made.
        checkpoint: To go on from.

    Returns:
        The run folder, on all processes.

    Raises:
        UserError: A callback can't do what it is for in this run, or the data or the model turn out not to fit.
    """
    trainer, model, data = parts.trainer, parts.model, parts.data
    planned_steps = check_training(parts)
    if trainer.is_global_zero:
        _forget_results(run)
        _write_config(parts, run)
        if isinstance(data, ImageDataModule):
            run.write_json(run.data_file, fingerprint(data.label_names, data.splits, data.excluded))
        if parts.options.push:
            run.write_json(run.push_file, {"repo_id": parts.options.push})
    if parts.config["trainer"]["logger"] in (None, True):
        trainer.logger = TensorBoardLogger(run.tensorboard, name="", version="", default_hp_metric=False)
    for logger in trainer.loggers:
        logger.log_hyperparams(_flat(parts.config))
    dev_images = len(getattr(data, "splits", {}).get("val", ()))
    every, monitor = parts.options.save_every_n_steps, f"val/{model.task.monitor}"
    if parts.options.early_stopping:
        callbacks_of(trainer).append(EarlyStop(parts.options.early_stopping, monitor))
    if parts.options.weights in BETWEEN:
        callbacks_of(trainer).append(StartingWeights(run.starting_weights))
    callbacks_of(trainer).append(LambdaCallback(on_train_start=lambda *_: _write_config(parts, run)))
    callbacks_of(trainer).extend(
        [MetricsFile(run.metrics_file), *checkpoint_callbacks(run, every, dev_images, monitor)]
    )

    started = time.perf_counter()
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    seconds = time.perf_counter() - started
    run = RunFolder(Path(trainer.strategy.broadcast(str(run))))  # the first process made it
    summary = _summary(parts, planned_steps, seconds)
    summary["weights"], dev = choose_weights(parts, run)
    summary["dev"] = dev or summary["dev"]
    calibration = calibrate(parts, _chosen_on_dev(summary["weights"], parts))
    keep_adapter(parts, run)
    if hasattr(data, "gather_bad_images"):
        data.gather_bad_images()
    if trainer.is_global_zero:
        save_model_folder(run.model, model.assembled(), model.label_names)
        if calibration is not None:
            calibration.write(run.calibration_file)
        summary["bad_images"] = sorted(getattr(data, "bad_images", ()))
        summary["files"] = {k: v for k, v in hashes_of(run).items() if k.startswith(run.model.name)}
        run.write_json(run.training_file, summary)
    return run


def _chosen_on_dev(weights: str, parts: Parts) -> str | None:
    """What was chosen on the dev split, for whoever believes its numbers."""
    if weights != "last":
        return f"the {weights} weights"
    return "the end of training" if parts.options.early_stopping else None


def _write_config(parts: Parts, run: RunFolder) -> None:
    """config.yaml, with the learning rate that was chosen, once it is."""
    if not parts.trainer.is_global_zero:
        return
    model, data = parts.model, parts.data
    config = repeatable(parts.config, model.backbone.origin.get("revision"), getattr(data, "revision", None))
    options = config["model"].get("init_args", config["model"])
    if options.get("lr", 0.0) in (None, "auto") and isinstance(model.hparams.get("optimizer"), str):
        options["lr"] = model.hparams["lr"]
    write_text(run.config_file, as_yaml(config))


def check_training(parts: Parts) -> int | None:
    """Refuse what could not be trained as it is meant.

    Returns:
        Optimizer steps of the whole run; None where only training will tell.

    Raises:
        UserError: The run has no step or no end, or a callback can't do what it is for in it.
    """
    trainer, model, data = parts.trainer, parts.model, parts.data
    data.trainer = trainer  # Lightning does so only in its fit
    planned_steps = model_steps(parts)
    _check_callbacks(trainer, planned_steps)
    if isinstance(model, MixerClassifier) and isinstance(data, ImageDataModule):
        model.take_task(data.task)  # before anything watches a metric of it
    _check_monitors(parts)
    return planned_steps


def model_steps(parts: Parts) -> int | None:
    """Optimizer steps of the whole run; None where only training will tell."""
    parts.data.trainer = parts.trainer
    return getattr(parts.data, "total_steps", None)


def _check_callbacks(trainer: pl.Trainer, steps: int | None) -> None:
    """Refuse what would train something else than was meant."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler):
            problem = "GradientAccumulationScheduler can't change how batches are cut"
            raise UserError(problem, advice="set {data.batch_size}, which a step takes, and {data.micro_batch_size}")
        start = getattr(callback, "update_starting_at_step", None)
        if isinstance(callback, WeightAveraging) and start is not None and steps is not None and start >= steps:
            name = type(callback).__name__
            raise UserError(
                f"{name} is to start at step {start}, but the run has {steps} steps: it would give the initial weights",
                option="trainer.callbacks",
            )


def _check_monitors(parts: Parts) -> None:
    """Refuse callbacks that watch what is never logged, before the epoch at whose end they would find that out."""
    if type(parts.model) is not MixerClassifier:
        return  # a class of the user's own may log more
    logged = [f"train/{name}" for name in ("loss", "accuracy", "loss_epoch", "accuracy_epoch", "lr")]
    if parts.data.val_dataloader():
        names = [*parts.model.task.metrics(TOP_K + 1), "loss"]
        logged += [f"val/{name}" for name in names]
        logged += [f"val/ema_{name}" for name in names if parts.model.hparams["ema_decay"]]
    for callback in callbacks_of(parts.trainer):
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in logged:
            problem = f"{type(callback).__name__} monitors '{monitor}', which this run does not log"
            raise UserError(problem, advice=f"its monitor can be {', '.join(logged)}")


def _forget_results(run: RunFolder) -> None:
    """Remove what an earlier, shorter training of the run left, which would be taken for results of this one."""
    left = (run.training_file, run.calibration_file, run.results_file, run.predictions_file, run.report, run.card)
    for path in left:
        path.unlink(missing_ok=True)


def _summary(parts: Parts, planned_steps: int | None, seconds: float) -> dict[str, Any]:
    """How training ended, for results.json.

    The clocks count from where the run was started or resumed; `seconds` are those of all its parts.
    """
    trainer, model, data, narrator = parts.trainer, parts.model, parts.data, parts.narrator
    dev = {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    return {
        "steps": trainer.global_step,
        "planned_steps": planned_steps if planned_steps is not None else trainer.global_step,
        "ended_by": _ended_by(trainer, planned_steps),
        "weights": parts.options.weights,
        "lr": model.lr_note or f"{model.hparams['lr']}",
        "seconds": round(narrator.seconds, 1),
        "time": {
            "fit": round(seconds, 2),
            "waiting_for_data": round(waited := getattr(data, "train_wait", 0.0), 2),
            "waiting_for_data_share": round(waited / seconds, 4) if seconds else 0.0,
            "validation": round(narrator.validation_seconds, 2),
            "checkpoints": round(getattr(trainer.strategy.checkpoint_io, "seconds", 0.0), 2),
            "images_per_second": round(narrator.images_per_second, 2),
        },
        "dev": dev or None,
        "bad_images": [],
        "backbone": model.backbone.origin,
        "parameters": sum(p.numel() for name, p in model.named_parameters() if not is_adapter(name)),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "device": device_name(trainer),
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
    }


def _ended_by(trainer: pl.Trainer, planned_steps: int | None) -> str:
    """What ended training: "schedule", "max_time", "early stopping", or a callback by its name."""
    if planned_steps is None or trainer.global_step >= planned_steps:
        return "schedule"
    for callback in callbacks_of(trainer):
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            return "max_time"
        if isinstance(callback, EarlyStop) and callback.stopped:
            return "early stopping"
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
            return type(callback).__name__
    return "a callback"


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat
