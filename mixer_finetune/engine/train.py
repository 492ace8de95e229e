"""The stage that trains: it leaves checkpoints, the model folder and how training ended."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, Timer, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger

from mixer_finetune.backbones.folder import save_model_folder
from mixer_finetune.backbones.foreign import load_checkpoint
from mixer_finetune.engine.configuration import as_yaml, repeatable
from mixer_finetune.engine.parts import Parts, callbacks_of
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.results import device_name
from mixer_finetune.files import write_text
from mixer_finetune.runs import RunFolder
from mixer_finetune.training.checkpoints import checkpoint_callbacks
from mixer_finetune.training.classifier import MixerClassifier
from mixer_finetune.training.metrics_file import MetricsFile
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
    data.trainer = trainer  # Lightning does so only in its fit
    planned_steps = model_steps(parts)
    _check_averages(trainer, planned_steps)
    _check_monitors(parts)
    if trainer.is_global_zero:
        _forget_results(run)
        config = repeatable(parts.config, model.backbone.origin.get("revision"), getattr(data, "revision", None))
        write_text(run.config_file, as_yaml(config))
        if parts.options.push:
            run.write_json(run.push_file, {"repo_id": parts.options.push})
    if parts.config["trainer"]["logger"] in (None, True):
        trainer.logger = TensorBoardLogger(run.tensorboard, name="", version="", default_hp_metric=False)
    for logger in trainer.loggers:
        logger.log_hyperparams(_flat(parts.config))
    dev_images = len(getattr(data, "splits", {}).get("val", ()))
    every, monitor = parts.options.save_every_n_steps, f"val/{model.task.monitor}"
    callbacks_of(trainer).extend(
        [MetricsFile(run.metrics_file), *checkpoint_callbacks(run, every, dev_images, monitor)]
    )

    started = time.perf_counter()
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    seconds = time.perf_counter() - started
    run = RunFolder(Path(trainer.strategy.broadcast(str(run))))  # the first process made it
    if parts.options.weights == "best":
        _take_best(model, run)
    if hasattr(data, "gather_bad_images"):
        data.gather_bad_images()
    if trainer.is_global_zero:
        save_model_folder(run.model, model.assembled(), model.label_names)
        run.write_json(run.training_file, _summary(parts, planned_steps, seconds))
    return run


def model_steps(parts: Parts) -> int | None:
    """Optimizer steps of the whole run; None where only training will tell."""
    parts.data.trainer = parts.trainer
    return getattr(parts.data, "total_steps", None)


def _check_averages(trainer: pl.Trainer, steps: int | None) -> None:
    """Refuse averages of weights that would never begin: the model would end with its initial weights."""
    for callback in callbacks_of(trainer):
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
        logged += [f"val/{name}" for name in (*parts.model.task.metrics(TOP_K + 1), "loss")]
    for callback in callbacks_of(parts.trainer):
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in logged:
            problem = f"{type(callback).__name__} monitors '{monitor}', which this run does not log"
            raise UserError(problem, advice=f"its monitor can be {', '.join(logged)}")


def _forget_results(run: RunFolder) -> None:
    """Remove what an earlier, shorter training of the run left, which would be taken for results of this one."""
    for path in (run.training_file, run.results_file, run.predictions_file, run.report, run.card):
        path.unlink(missing_ok=True)


def _take_best(model: Any, run: RunFolder) -> None:
    """Put the weights of best.ckpt into the model."""
    if run.best_checkpoint.is_file():
        model.load_state_dict(load_checkpoint(run.best_checkpoint)["state_dict"])
    else:
        log.info("no validation took place, so the last weights stand for the best")


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
        "bad_images": sorted(getattr(data, "bad_images", ())),
        "backbone": model.backbone.origin,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "device": device_name(trainer),
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
    }


def _ended_by(trainer: pl.Trainer, planned_steps: int | None) -> str:
    """What ended training: "schedule", "max_time", or a callback by its name."""
    if planned_steps is None or trainer.global_step >= planned_steps:
        return "schedule"
    for callback in callbacks_of(trainer):
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            return "max_time"
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
