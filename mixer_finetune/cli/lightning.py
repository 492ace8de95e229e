"""`fit`, `validate` and `test`: the commands whose options are those of model, data and Lightning's Trainer."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mixer_finetune.engine.arguments import normalised, take_apart, take_classes
from mixer_finetune.engine.recipes import all_recipes
from mixer_finetune.errors import UserError
from mixer_finetune.runs import RunFolder

USAGES = {
    "fit": "fit [--recipe NAME] ... [--config FILE] ... [options]     or: fit --resume RUN",
    "validate": "validate RUN|CHECKPOINT [options]",
    "test": "test RUN|CHECKPOINT [options]",
}
ABOUT = {
    "fit": "Fine-tune a Mixer backbone, evaluate it, and write all of it into a run folder.\n\n"
    "Recipes merge in their order, then --config files, then the options typed, wherever they stand on the line.",
    "validate": "Metrics of a run's model, or of a checkpoint, on the dev split.",
    "test": "Metrics of a run's model, or of a checkpoint, on the test split.",
}
_OF_EVALUATION = (
    "\n\nThe run's own configuration holds; recipes, --config files and options come over it: --data.source evaluates "
    "on other data of the same classes, --model.image_size at another resolution, --trainer.devices on other hardware."
)
# What most users want; the rest is behind --help model, data, trainer or all.
COMMON = {
    "model": (
        "backbone", "image_size", "resize", "train", "head", "optimizer", "lr", "layer_decay", "weight_decay",
        "warmup_steps", "label_smoothing", "drop_path", "ema_decay", "sam_rho", "class_weights",
        "teacher", "train_sizes",
    ),
    "data": (
        "source", "val_fraction", "batch_size", "micro_batch_size", "sampling", "crop_area", "flip", "rotation",
        "trivial_augment", "mixup", "cutmix", "num_workers", "on_bad_image",
    ),
    "trainer": (
        "max_epochs", "max_steps", "max_time", "accelerator", "devices", "strategy", "precision", "callbacks", "logger",
        "fast_dev_run",
    ),
}  # fmt: skip
# Options of the data that only training takes notice of, beside augmentation.
OF_TRAINING = ("batch_size", "micro_batch_size", "sampling", "repeats", "plain_batches")
_OWN = ("recipe", "config", "resume", "ckpt_path", "print_config", "help")
_RUN = (
    "seed_everything",
    "output_dir",
    "name",
    "weights",
    "early_stopping",
    "calibrate",
    "evaluate_on",
    "push",
    "save_every_n_steps",
)


def fit(arguments: list[str]) -> int:
    """Fine-tune; returns the exit status."""
    resume, rest = take(arguments, "resume")
    ckpt_path, rest = take(rest, "ckpt_path")
    _refuse_words(rest)
    if _helped("fit", rest):
        return 0
    take_apart(rest)  # mistakes in names and files are found before anything heavy is imported
    if resume:
        resume = str(RunFolder.open(resume))
    rest, print_config = _without(rest, "--print_config")
    if print_config:
        return _print_config(rest, resume)
    from mixer_finetune.engine.fit import fit as run

    run(rest, resume=resume, ckpt_path=ckpt_path)
    return 0


def validate(arguments: list[str]) -> int:
    """Metrics on the dev split; returns the exit status."""
    return _evaluate("validate", "val", arguments)


def test(arguments: list[str]) -> int:
    """Metrics on the test split; returns the exit status."""
    return _evaluate("test", "test", arguments)


def _evaluate(command: str, role: str, arguments: list[str]) -> int:
    checkpoint, rest = take(arguments, "ckpt_path")
    if _helped(command, rest):
        return 0
    target = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if target is None and checkpoint is None:
        raise UserError(f"expected: {USAGES[command]}, or {command} --recipe NAME --ckpt_path FILE")
    _refuse_words(rest)
    rest, print_config = _without(rest, "--print_config")
    from mixer_finetune.engine.evaluate import configure_evaluation, evaluate

    cli = configure_evaluation(target, rest, checkpoint, imports=not print_config)
    if print_config:
        return _show(cli.plain())
    evaluate(cli, role)
    return 0


def take(arguments: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """The last value given for an option, and the rest of the line."""
    value, rest, items = None, [], list(arguments)
    while items:
        item = items.pop(0)
        name, equals, text = item.partition("=")
        if name != f"--{option}":
            rest.append(item)
            continue
        value = text if equals else items.pop(0) if items else ""
        if not value or (value.startswith("-") and not equals):
            raise UserError(f"{name} needs a value")
    return value, rest


def _without(arguments: list[str], flag: str) -> tuple[list[str], bool]:
    return [item for item in arguments if item != flag], flag in arguments


def _refuse_words(arguments: list[str]) -> None:
    """Say what a word that belongs to no option may have been meant for."""
    if not arguments or arguments[0].startswith("-"):
        return
    word = arguments[0]
    if word in all_recipes():
        raise UserError(f"'{word}' belongs to no option", advice=f"did you mean {{recipe}} {word}?")
    if Path(word).expanduser().exists() or "/" in word:
        raise UserError(
            f"'{word}' belongs to no option", advice=f"did you mean --recipe imagefolder --data.source {word}?"
        )
    raise UserError(f"'{word}' belongs to no option", advice="see fit --help")


def _print_config(arguments: list[str], resume: str | None) -> int:
    from mixer_finetune.engine.parser import configure

    taken, base = take_apart(arguments), normalised(RunFolder.open(resume).read_config() if resume else {})
    taken.classes = take_classes(base) | taken.classes
    return _show(configure(taken, base, needs_data=False, imports=False).plain())


def _show(config: dict[str, Any]) -> int:
    from mixer_finetune.engine.configuration import as_yaml

    print(as_yaml(config), end="")
    return 0


def spell(option: str) -> str:
    """A parameter as it is typed behind these commands."""
    if "." in option or option in _OWN or option in _RUN:
        return f"--{option}"
    from mixer_finetune.augment import Augmentation
    from mixer_finetune.data.module import ImageDataModule
    from mixer_finetune.training.classifier import MixerClassifier

    for group, cls in (("model", MixerClassifier), ("data", ImageDataModule)):
        if option in inspect.signature(cls.__init__).parameters:
            return f"--{group}.{option}"
    if option in {each.name for each in fields(Augmentation)}:  # which the data module takes as keywords
        return f"--data.{option}"
    return f"--{option}"


# Help


def _helped(command: str, arguments: list[str]) -> bool:
    """Print the help that was asked for; whether any was."""
    at = next((i for i, item in enumerate(arguments) if item in ("--help", "-h")), None)
    if at is None:
        return False
    wanted = arguments[at + 1] if at + 1 < len(arguments) else ""
    if wanted not in ("", *COMMON, "all"):
        raise UserError(f"there is no help on '{wanted}'", advice="use {help} model, data, trainer or all")
    _print_help(command, wanted)
    return True


def print_fit_options(command: str, left_out: Sequence[str]) -> None:
    """Help on the options of fit that another command takes, too.

    Args:
        command: Its name.
        left_out: Options of the run that it sets itself.
    """
    _print_groups(command, "", [name for name in _RUN if name not in left_out])


def _print_help(command: str, wanted: str) -> None:
    print(f"usage: mixer-finetune {USAGES[command]}\n\n{ABOUT[command]}{'' if command == 'fit' else _OF_EVALUATION}")
    _print_groups(command, wanted, _RUN if command == "fit" else ())


def _print_groups(command: str, wanted: str, of_run: Sequence[str]) -> None:
    from mixer_finetune.engine.arguments import Arguments
    from mixer_finetune.engine.parser import MixerCLI

    actions = MixerCLI(Arguments()).actions
    if wanted in ("", "all"):
        print("\nrun:")
        for name, text in _own_helps(command).items():
            _print_option(f"--{name}", text)
        for name in of_run:
            _print_action(actions[name], name)
    for group in COMMON if wanted in ("", "all") else (wanted,):
        names = [name for name in actions if name.startswith(f"{group}.")]
        shown = [f"{group}.{name}" for name in COMMON[group]] if wanted == "" else names
        left_out = len(names) - len(shown)
        print(
            f"\n{group}:"
            + (
                f"   ({left_out} more: mixer-finetune {command if command in USAGES else 'fit'} --help {group})"
                if left_out
                else ""
            )
        )
        for name in shown:
            _print_action(actions[name], name)
    if wanted in ("", "all", "trainer"):
        print(
            "\nA callback or logger of Lightning's takes its arguments behind it: --trainer.callbacks+=EarlyStopping "
            "--trainer.callbacks.monitor=val/loss --trainer.callbacks+=LearningRateMonitor."
        )


def print_data_options(command: str) -> None:
    """Help on the options that a command which trains nothing has in common with fit: files, and the data's."""
    from mixer_finetune.augment import Augmentation
    from mixer_finetune.engine.arguments import Arguments
    from mixer_finetune.engine.parser import MixerCLI

    actions, of_training = MixerCLI(Arguments()).actions, set(OF_TRAINING) | {f.name for f in fields(Augmentation)}
    print("\nfiles, of which the data's options count, and backbone and size where they are not given above:")
    for name, text in _own_helps(command).items():
        if name.startswith(("recipe", "config")):
            _print_option(f"--{name}", text)
    _print_action(actions["seed_everything"], "seed_everything")
    print("\ndata, as for fit:")
    for name in (name for name in actions if name.startswith("data.")):
        if name.removeprefix("data.") not in of_training:
            _print_action(actions[name], name)


def _own_helps(command: str) -> dict[str, str]:
    """Help of the options that are no one's but the command's, from the docstring of the function behind it."""
    helps = {
        "recipe NAME, -r": "A recipe or overlay, or the path of one; may be repeated (see: mixer-finetune recipes).",
        "config FILE, -c": "A YAML file of options; may be repeated; RUN/config.yaml repeats a run.",
    }
    if command not in USAGES:
        return helps
    if command == "fit":
        helps["resume RUN"] = "Complete a run: what is missing of training, evaluation, report, card and push is done."
        helps["ckpt_path FILE"] = "Checkpoint that a new run goes on from."
    else:
        helps["ckpt_path FILE"] = "A checkpoint in place of the run's model; or alone, with --recipe or --data.source."
    return {
        **helps,
        "print_config": "Print the merged configuration, and stop.",
        "help [model|data|trainer|all]": "Show this, or all options of a group.",
    }


def _print_action(action: Any, name: str) -> None:
    from mixer_finetune.engine.messages import type_name

    text = (action.help or "").replace("%%", "%").strip()
    default = (
        "none"
        if action.default is None
        else str(action.default).lower()
        if action.default in (True, False)
        else action.default
    )
    _print_option(f"--{name} {type_name(getattr(action, '_typehint', None)).upper()}", f"{text} (default: {default})")


def _print_option(option: str, text: str) -> None:
    width = 100 if sys.stdout.isatty() else 110
    lines = textwrap.wrap(" ".join(text.split()), width - 8)
    print(f"  {option}")
    for line in lines:
        print(f"        {line}")
