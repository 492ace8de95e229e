"""fit, validate and test: a LightningCLI builds the parts, and a run folder takes what comes out."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from mixer_finetune.backbones.folder import save_model_folder
from mixer_finetune.backbones.foreign import load_checkpoint
from mixer_finetune.data.module import ImageDataModule
from mixer_finetune.engine.options import as_yaml, known_options, plain_error, run_parser
from mixer_finetune.errors import NoImagesError, UserError
from mixer_finetune.evaluation.report import write_report
from mixer_finetune.evaluation.results import collect_results, write_results
from mixer_finetune.files import UNWRITABLE, write_text
from mixer_finetune.runs import new_run_folder, remove_empty_run_folder
from mixer_finetune.sharing.card import model_card
from mixer_finetune.sharing.push import check_access, push
from mixer_finetune.training.checkpoints import checkpoint_callbacks, resume_point
from mixer_finetune.training.classifier import MixerClassifier
from mixer_finetune.training.precision import use_fast_float32
from mixer_finetune.training.progress import MetricsFile, RunProgress, say

_RUN_KEYS = ("output_dir", "name", "weights", "push", "save_every_n_steps")


class MixerCLI(LightningCLI):
    """LightningCLI that gives the model the classes of the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what one part knows and another needs."""
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.label_names", "model.label_names", apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")


def fit(config: dict[str, Any], resume: Path | None = None) -> int:
    """Fine-tune, evaluate and write the run folder.

    Args:
        config: Merged options: the run's own keys, and `model`, `data`, `trainer`.
        resume: Run folder to go on with.

    Returns:
        Exit status: 0, or 1 where the run was interrupted.

    Raises:
        UserError: A mistake in the configuration or the data; no run folder is left behind.
    """
    checkpoint = resume_point(resume) if resume else None
    cli = _build(config)
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    data.require("train")
    if config["weights"] == "best" and "val" not in data.splits:
        raise UserError(
            "--weights best needs a dev split to be best on; name one with --data.val_split or set --data.val_fraction"
        )
    if config["push"] and trainer.is_global_zero:
        check_access(config["push"])
    data.trainer = trainer  # Lightning does so only in its fit
    if resume and (resume / "results.json").is_file() and load_checkpoint(checkpoint)["global_step"] >= data.total_steps:
        say(f"{resume} is finished; to train on, raise --trainer.max_epochs or --trainer.max_steps")
        return 0
    run = resume or new_run_folder(config["output_dir"], config["name"], create=trainer.is_global_zero)
    try:
        if trainer.is_global_zero:
            write_text(run / "config.yaml", as_yaml(_repeatable(config, model, data)))
        trainer.callbacks.append(metrics_file := MetricsFile(run / "metrics.csv"))
        if config["trainer"]["logger"] in (None, True):
            trainer.logger = TensorBoardLogger(run / "tensorboard", name="", version="", default_hp_metric=False)
        trainer.callbacks += checkpoint_callbacks(run, config["save_every_n_steps"], len(data.splits.get("val", ())))
        started = time.perf_counter()
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        seconds = time.perf_counter() - started
        run = Path(trainer.strategy.broadcast(str(run)))  # the first process made it
        if config["weights"] == "best":
            _take_best(model, run)
        # A resumed run's clocks count from where it was resumed, but the one of all its parts.
        spent = {"all": metrics_file.seconds, "fit": seconds, **_clocks(trainer, data)}
        if data.evaluation_role is not None:
            started = time.perf_counter()
            try:
                trainer.test(model, data, verbose=False)
            except NoImagesError as error:  # what was trained is not lost for that
                say(f"not evaluated: {error}")
                data.evaluation_role = None
            spent["test"] = time.perf_counter() - started
        data.gather_bad_images()
        if trainer.is_global_zero:
            _finish(run, config, cli, spent)
    except BaseException as error:
        if trainer.is_global_zero:
            if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
                launcher.kill(signal.SIGTERM)  # on GPUs they would wait for this process; gloo's see it go
            if resume is None:
                remove_empty_run_folder(run)
            if isinstance(error, SystemExit) and run.is_dir():  # how Lightning ends an interrupted run
                say(f"interrupted; go on with: mixer-finetune fit --resume {run}")
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                then = f"free the disk, then: mixer-finetune fit --resume {run}" if run.is_dir() else "change --output_dir"
                raise UserError(f"the run folder {run} can't be written ({error.strerror}); {then}") from error
        if isinstance(error, SystemExit):
            raise SystemExit(1) from error  # Lightning's is 0 on SIGTERM, as if the run were finished
        raise
    return 0


def _repeatable(config: dict[str, Any], model: MixerClassifier, data: ImageDataModule) -> dict[str, Any]:
    """The configuration that gives this very run again: with the commits that it used, and without pushing it once more."""
    revisions = {"model": model.backbone.origin.get("revision"), "data": data.revision}
    pinned = {group: {**config[group], "revision": commit or config[group]["revision"]} for group, commit in revisions.items()}
    return {**config, **pinned, "push": None}


def _take_best(model: MixerClassifier, run: Path) -> None:
    """Put the weights of best.ckpt into the model."""
    best = run / "checkpoints" / "best.ckpt"
    if best.is_file():
        model.load_state_dict(load_checkpoint(best)["state_dict"])
    else:
        say("no validation took place, so the last weights stand for the best")


def _clocks(trainer: pl.Trainer, data: ImageDataModule) -> dict[str, float]:
    """Where the seconds of the fit went."""
    progress = next(callback for callback in trainer.callbacks if isinstance(callback, RunProgress))
    return {
        "waiting_for_data": data.train_wait,
        "validation": progress.validation_seconds,
        "checkpoints": getattr(trainer.strategy.checkpoint_io, "seconds", 0.0),
        "images_per_second": progress.images_per_second,
    }


def _finish(run: Path, config: dict[str, Any], cli: Any, spent: dict[str, float]) -> None:
    """Write the model folder, results and pictures, and say what can be done next.

    Args:
        run: Run folder.
        config: Merged options.
        cli: With trainer, model and data.
        spent: Seconds, and images a second, for results.json.
    """
    model, data = cli.model, cli.datamodule
    save_model_folder(run / "model", model.backbone, data.label_names)
    results = collect_results(model, data, data.evaluation_role)
    results["seconds"] = round(spent["all"], 1)
    results["steps"] = cli.trainer.global_step
    results["time"] = {key: round(value, 2) for key, value in spent.items() if key != "all"}
    write_results(run, results, model, data)
    report = write_report(run, data=data)
    write_text(run / "model" / "README.md", model_card(run))
    if results["metrics"]:
        shown = ", ".join(f"{key} {value:.2%}" for key, value in results["metrics"].items())
        say(f"{results['split']} ({results['samples']:,} images): {shown}")
    if data.bad_images:
        say(f"skipped {len(data.bad_images)} image(s) that can't be decoded: see results.json")
    say(f"trained in {spent['all']:.0f} s; everything is in {run}")
    say(f"the report to look at: {report}")
    say("next:")
    say(f"  mixer-finetune predict {run} FOLDER     classify images")
    say(f"  mixer-finetune push {run} user/name     share the model on the Hub")
    say(f"  mixer-finetune test {run}               evaluate again")
    say(f"  mixer-finetune fit --config {run}/config.yaml   repeat the run")
    if config["push"]:  # last, so that a Hub that fails leaves the user with all of the above
        say(push(run, config["push"]))


def evaluate(config: dict[str, Any], role: str) -> int:
    """Metrics of a run's model or a checkpoint on the dev ("val") or test split, printed."""
    cli = _build(config)
    model, data, trainer = cli.model, cli.datamodule, cli.trainer
    if "trained head kept" not in model.head_note:
        raise UserError(
            f"the data's {data.num_classes} classes ({', '.join(data.label_names[:5])}, ...) are not those that the model was "
            "trained for; choose its own data with --data.source"
        )
    data.require(role)
    data.evaluation_role = role
    trainer.test(model, data, verbose=False)
    if trainer.is_global_zero:
        results = collect_results(model, data, role)
        for key, value in results["metrics"].items():
            say(f"{key:<14} {value:.4f}")
        say(f"on {results['samples']:,} images of split {data.splits[role].name} of {data.source}")
    return 0


def _build(config: dict[str, Any]) -> Any:
    """Trainer, model and data from a configuration, with what is wrong in one line."""
    _quiet()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    asked_classes = config["model"]["num_classes"]
    parts = {key: value for key, value in config.items() if key not in _RUN_KEYS}
    parts["model"] = {key: value for key, value in parts["model"].items() if key != "num_classes"}
    trainer_options = dict(parts["trainer"])
    if trainer_options.get("plugins") is None:
        trainer_options["plugins"] = [{"class_path": "mixer_finetune.training.checkpoints.AtomicCheckpointIO"}]
    if trainer_options.get("profiler") is None:
        trainer_options["profiler"] = {"class_path": "mixer_finetune.training.progress.Unprofiled"}
    trainer_options.pop("logger", None)
    callbacks = trainer_options.pop("callbacks", None) or []
    parts["trainer"] = {
        **trainer_options,
        "logger": config["trainer"]["logger"] or False,
        "callbacks": callbacks,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "default_root_dir": config["output_dir"],
    }
    try:
        cli = MixerCLI(
            MixerClassifier,
            ImageDataModule,
            args=parts,
            run=False,
            save_config_callback=None,
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False},
        )
    except UserError:
        raise
    except ArgumentError as error:
        raise UserError(plain_error(error, known_options(run_parser("fit", "")))) from error
    except (ValueError, TypeError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise UserError(" ".join(str(error).split())[:500]) from error
    clip = config["trainer"]["gradient_clip_val"]
    if clip is not None and clip < 0:
        raise UserError(f"--trainer.gradient_clip_val must be 0 or more, got {clip}")
    if asked_classes not in (None, cli.datamodule.num_classes):
        raise UserError(
            f"--model.num_classes {asked_classes} contradicts the data, which has {cli.datamodule.num_classes} classes; leave it out"  # noqa: E501
        )
    note = use_fast_float32()
    cli.trainer.callbacks.append(RunProgress(note, visible=config["trainer"]["enable_progress_bar"] is not False))
    return cli


def _quiet() -> None:
    """Keep Lightning's tips and notices about what is meant to be so out of the user's way."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*args parameter is intended to run from within Python.*",
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*logging interval.*",
        ".*when logging on epoch level in distributed setting.*",  # metrics are of all processes already
        ".*but CUDA.*|.*GPU available but not used.*",
        ".*`isinstance\\(treespec, LeafSpec\\)`.*",
        ".*Total length of `.*` across ranks is zero.*",
        ".*method of metric .* was called before.*",  # by a process without images; all of them together are looked at
        ".*dataloader is not resumable.*",  # it is, by its own means: see ImageDataModule
    ):
        warnings.filterwarnings("ignore", message=message)
