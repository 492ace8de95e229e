"""fit: a run, stage by stage. Whatever a stage left undone, resuming does, and no more.

configure -> check -> train -> evaluate -> results -> report -> card -> push
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from mixer_finetune.backbones.foreign import load_checkpoint
from mixer_finetune.data.checks import findings
from mixer_finetune.data.fingerprint import difference, fingerprint
from mixer_finetune.data.module import ImageDataModule
from mixer_finetune.engine import slurm
from mixer_finetune.engine.arguments import Arguments, normalised, take_apart, take_classes
from mixer_finetune.engine.choose import BETWEEN
from mixer_finetune.engine.finish import finish, missing_stages
from mixer_finetune.engine.interruption import interruptible
from mixer_finetune.engine.messages import explained
from mixer_finetune.engine.parser import MixerCLI, configure
from mixer_finetune.engine.parts import Parts, build
from mixer_finetune.engine.quiet import quiet
from mixer_finetune.engine.train import model_steps, train
from mixer_finetune.errors import Interrupted, UserError, check_at_least
from mixer_finetune.files import UNWRITABLE
from mixer_finetune.hub.commit import check_access
from mixer_finetune.runs import RunFolder
from mixer_finetune.training.checkpoints import resume_point

log = logging.getLogger(__name__)
# Names the run folder to the processes that a launcher starts.
_RUN_VARIABLE = "MIXER_FINETUNE_RUN"
# What shaped a model before it was trained, and is not done again to the trained one.
ALREADY_DONE: dict[str, Any] = {
    "revision": None,
    "image_size": None,
    "patch_size": None,
    "in_chans": None,
    "resize": "auto",
    "head": "auto",
    "adapter": "none",
    "train_sizes": None,
    "size_order": "drawn",
    "final_epochs": 0,
    "teacher": None,
}


def fit(
    config: Mapping[str, Any] | Sequence[str] = (),
    *,
    recipe: str | Sequence[str] = (),
    resume: str | os.PathLike[str] | None = None,
    ckpt_path: str | os.PathLike[str] | None = None,
) -> RunFolder:
    """Fine-tune, evaluate and write the run folder.

    Args:
        config: Options, nested as in a YAML file ({"model": {"lr": 0.1}, "data": {"source": "photos"}}), or as they are
            typed behind `fit`; they come over all recipes.
        recipe: Names of recipes and overlays, or paths of YAML files.
        resume: Run folder to complete: what is missing of training, evaluation, report, card and push is done.
        ckpt_path: Checkpoint that a new run goes on from.

    Returns:
        The run folder.

    Raises:
        UserError: A mistake in the configuration or the data; a run that never trained leaves no folder behind.
        Interrupted: By a signal; its `advice` says how to go on.
    """
    quiet()
    arguments = _arguments(config, [recipe] if isinstance(recipe, str) else recipe)
    with interruptible():
        if resume is not None:
            return _resume(RunFolder.open(resume), arguments)
        cli = configure(arguments)
        run = slurm.folder_of_job(RunFolder.planned(cli.options.output_dir, str(cli.options.name)))
        if earlier := slurm.run_of_requeued_job(run):
            log.info(f"the job was queued again: going on with {earlier}")
            return _resume(RunFolder.open(earlier), arguments)
        return _start(cli, run, Path(ckpt_path) if ckpt_path else None)


def _arguments(config: Mapping[str, Any] | Sequence[str], recipes: Sequence[str]) -> Arguments:
    named = [part for name in recipes for part in ("--recipe", name)]
    if not isinstance(config, Mapping):
        return take_apart([*named, *config])
    arguments, content = take_apart(named), normalised(dict(config))
    arguments.classes |= take_classes(content)
    arguments.files.append(("the configuration", content))
    return arguments


def _start(cli: MixerCLI, run: RunFolder, checkpoint: Path | None) -> RunFolder:
    """A new run."""
    launched = os.environ.get(_RUN_VARIABLE) if "LOCAL_RANK" in os.environ else None
    run = RunFolder(Path(launched)) if launched else run
    parts = checked(cli, run)
    if checkpoint is not None:
        load_checkpoint(checkpoint)
    if parts.trainer.is_global_zero and not launched:
        run = run.create()
        os.environ[_RUN_VARIABLE] = str(run)
    with _leaving_well(parts, run, new=True):
        if parts.trainer.is_global_zero and isinstance(parts.data, ImageDataModule):
            for line in findings(parts.data.splits, parts.data.label_names, crops=parts.data.fit in (None, "crop")):
                log.info(f"note       {line}")
        run = train(parts, run, checkpoint)
        finish(parts, run)
    return run


def _resume(run: RunFolder, arguments: Arguments) -> RunFolder:
    """What is missing of a run."""
    base = normalised(run.read_config())
    wanted = run.read_json(run.push_file) or {}
    base["push"] = None if "commit" in wanted else wanted.get("repo_id")
    arguments.classes = take_classes(base) | arguments.classes
    cli = configure(arguments, base)
    training = run.read_json(run.training_file)
    longer = training is not None and _length(cli.plain()) != _length(base)
    if training is not None and not longer:
        if not missing_stages(run, cli.options.push):
            return _say_finished(run, training)
        return _complete(run, cli)
    parts = checked(cli, run)
    _check_same_data(run, parts.data)
    if training is not None and training["planned_steps"] >= (model_steps(parts) or 0):
        return _say_finished(run, training) if not missing_stages(run, cli.options.push) else _complete(run, cli)
    with _leaving_well(parts, run, new=False):
        train(parts, run, resume_point(run))
        finish(parts, run)
    return run


def _check_same_data(run: RunFolder, data: Any) -> None:
    """Refuse to go on with other data than the run began with: its dev split would be drawn anew in silence."""
    before = run.read_json(run.data_file)
    if before is None or not isinstance(data, ImageDataModule):
        return
    if changes := difference(before, fingerprint(data.label_names, data.splits, data.excluded)):
        raise UserError(
            f"the data has changed since {run} began: {changes}; bring it back, or begin anew with: mixer-finetune fit "
            f"--config {run.config_file}"
        )


def _length(config: Mapping[str, Any]) -> tuple[Any, Any]:
    trainer = config.get("trainer") or {}
    return trainer.get("max_epochs"), trainer.get("max_steps")


def _say_finished(run: RunFolder, training: Mapping[str, Any]) -> RunFolder:
    log.info(
        f"{run} is finished (after {training['steps']:,} steps, ended by {training['ended_by']}); to train on, raise "
        "trainer.max_epochs or trainer.max_steps"
    )
    return run


def _complete(run: RunFolder, cli: MixerCLI) -> RunFolder:
    """What is missing behind a training that has ended."""
    log.info(f"{run} is trained; missing: {', '.join(missing_stages(run, cli.options.push))}")
    take_weights_of(cli, str(run.model))
    parts = checked(cli, run)
    if not run.results_file.is_file():
        _check_same_data(run, parts.data)
    with _leaving_well(parts, run, new=False):
        finish(parts, run)
    return run


def take_weights_of(cli: MixerCLI, model: str) -> None:
    """Have a configuration start from a trained model, as it is."""
    for name, value in {"backbone": model, **ALREADY_DONE}.items():
        cli.config[f"model.{name}"] = value


def checked(cli: MixerCLI, run: RunFolder) -> Parts:
    """The parts of a run, after all checks that need no training."""
    if cli.options.push and os.environ.get("LOCAL_RANK", "0") == "0":
        check_access(cli.options.push)
    parts = build(cli, run.path)
    if hasattr(parts.data, "require"):
        parts.data.require("train")
    options = parts.options
    check_at_least(1, early_stopping=options.early_stopping)
    if "val" not in getattr(parts.data, "splits", {"val": None}):
        advice = "name one with {val_split} or set {val_fraction}"
        if options.weights != "last":
            raise UserError(f"the {options.weights} weights need a dev split to be best on", advice=advice)
        if options.early_stopping:
            raise UserError("early stopping needs a dev split to watch", advice=advice)
        if options.evaluate_on == "val":
            raise UserError("there is no dev split to evaluate on", advice=advice)
    elif options.evaluate_on == "val" and isinstance(parts.data, ImageDataModule):
        parts.data.evaluation_role = "val"
    if options.weights in BETWEEN and parts.model.hparams.get("adapter") == "dora":
        problem = f"the {options.weights} weights lie on a line from the starting ones, and a DoRA can't be put on one"
        raise UserError(problem, option="model.adapter", choices="lora")
    return parts


@contextmanager
def _leaving_well(parts: Parts, run: RunFolder, new: bool) -> Iterator[None]:
    """Whatever goes wrong: end the other processes, leave no empty folder, and say how to go on."""
    try:
        yield
    except BaseException as error:
        trainer = parts.trainer
        if not trainer.is_global_zero:
            raise
        if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGTERM)  # on GPUs they would wait for this process; gloo's see it go
        if new:
            run.discard_if_untrained()
        if isinstance(error, Interrupted) and run.path.is_dir():
            error.advice = f"go on with: mixer-finetune fit --resume {run}"
            slurm.requeue(error)
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            problem = f"the run folder {run} can't be written ({error.strerror})"
            if run.path.is_dir():
                raise UserError(f"{problem}; free the disk, then: mixer-finetune fit --resume {run}") from error
            raise UserError(problem, option="output_dir") from error
        if line := explained(error):
            raise line from error
        raise
