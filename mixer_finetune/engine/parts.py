"""Trainer, model and data, made from a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.plugins import Precision

from mixer_finetune.engine.interruption import without_lightnings_handlers
from mixer_finetune.engine.messages import explained
from mixer_finetune.engine.parser import MixerCLI, RunOptions, parameters_of
from mixer_finetune.errors import UserError
from mixer_finetune.training.checkpoints import AtomicCheckpointIO
from mixer_finetune.training.classifier import MixerClassifier
from mixer_finetune.training.precision import AUTO, automatic_precision, use_fast_float32
from mixer_finetune.training.progress import Bar, Narrator, Unprofiled


@dataclass
class Parts:
    """What a run is made of.

    Attributes:
        options: Of the run itself.
        config: The whole configuration, in plain values.
        trainer: Lightning's.
        model: To be trained, or tested.
        data: To train or test on.
        narrator: The trainer's callback that says what happens.
    """

    options: RunOptions
    config: dict[str, Any]
    trainer: pl.Trainer
    model: MixerClassifier
    data: pl.LightningDataModule
    narrator: Narrator


def build(cli: MixerCLI, root: Path) -> Parts:
    """Make trainer, model and data.

    Args:
        cli: The configuration.
        root: Folder for what callbacks and loggers of Lightning's write without being told where.

    Raises:
        UserError: The data, the backbone or an option can't be used.
    """
    pl.seed_everything(cli.options.seed_everything, workers=True, verbose=False)
    config = cli.plain()
    with _explaining():
        parts = cli.parser.instantiate(cli.config.clone())
        seed = cli.options.seed_everything
        data = _made(cli.classes["data"], parts["data"], seed)
        model = _made(cli.classes["model"], parts["model"], seed)
        callbacks = _as_list(parts["trainer"]["callbacks"])
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(root / "checkpoints" / "lightning")
        options = {**parts["trainer"], "callbacks": callbacks}
        notes = _settle_precision(options, config["trainer"])
        trainer = _trainer(options, root)
    note = use_fast_float32()
    if trainer.strategy.root_device.type == "cpu" and note:
        notes.append(note)
    narrator = Narrator(", ".join(notes))
    callbacks_of(trainer).insert(0, narrator)
    without_lightnings_handlers(trainer)
    return Parts(cli.options, config, trainer, model, data, narrator)


def build_data(cli: MixerCLI) -> pl.LightningDataModule:
    """The data module alone.

    Raises:
        UserError: The data can't be used as asked.
    """
    with _explaining():
        options = cli.parser.instantiate(cli.config.clone())["data"]
        data: pl.LightningDataModule = _made(cli.classes["data"], options, cli.options.seed_everything)
    return data


def callbacks_of(trainer: Any) -> list[Callback]:
    """The trainer's own list of callbacks."""
    callbacks: list[Callback] = trainer.callbacks
    return callbacks


def _trainer(options: dict[str, Any], root: Path) -> pl.Trainer:
    callbacks: list[Callback] = options.pop("callbacks")
    own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    if options.pop("enable_progress_bar") is False:
        if own_bar:
            raise UserError("a progress bar is given, but switched off", option="trainer.enable_progress_bar")
    elif not own_bar:
        callbacks = [*callbacks, Bar()]
    plugins = _as_list(options.pop("plugins"))
    if not any(isinstance(plugin, pl.plugins.CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    options["profiler"] = options["profiler"] or Unprofiled()
    options["logger"] = options["logger"] or False
    options["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in callbacks)
    return pl.Trainer(
        **options,
        callbacks=callbacks,
        plugins=plugins,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        default_root_dir=root,
        use_distributed_sampler=False,  # the data module shares the batches out itself
        enable_autolog_hparams=False,  # the run logs its whole configuration
    )


def _settle_precision(options: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Put in the place of `auto` what it stands for here, for the trainer and for config.yaml: a run that is resumed or
    repeated has the same, wherever it is. Returns why, for the header.
    """
    if options["precision"] != AUTO:
        return []
    chosen, why = automatic_precision(options["accelerator"])
    plugins = _as_list(options["plugins"])
    if any(isinstance(plugin, Precision) for plugin in plugins):
        options["precision"] = config["precision"] = None  # the plugin says it
        return []
    options["precision"] = config["precision"] = chosen
    return [why]


def _made(cls: type[Any], options: Namespace, seed: int) -> Any:
    given = options.as_dict()
    if "seed" in parameters_of(cls):
        given["seed"] = seed
    return cls(**given)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


@contextmanager
def _explaining() -> Iterator[None]:
    """Turn what Lightning's own checks raise into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if line := explained(error):
            raise line from error
        raise
