"""The command line: what was typed, merged with recipes and configurations, before anything heavy is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mixer_finetune import __version__
from mixer_finetune.errors import UserError

USAGE = f"""mixer-finetune {__version__}: fine-tune MLP-Mixer image classifiers.

usage: mixer-finetune COMMAND ...     (or: python -m mixer_finetune COMMAND ...)

  fit       fine-tune: fit --recipe digits [--recipe ddp] [--config mine.yaml] [--model.lr 0.01] ...
            go on with an interrupted run: fit --resume RUN
  validate  metrics on the dev split:  validate RUN|CHECKPOINT [--data.source ...]
  test      metrics on the test split: test RUN|CHECKPOINT [--data.source ...]
  predict   classify images: predict RUN|CHECKPOINT|MODEL FOLDER|FILE ... [--output predictions.csv]
  report    write RUN/report.html again: report RUN [--output FILE]
  export    write a finished run's model for other runtimes: export RUN --format onnx|torch-export|safetensors
  push      put a finished run's model on the Hugging Face Hub: push RUN user/name [--private] [--dry_run]
  recipes   list, show, copy or validate recipes
  backbones list or show architectures and their published weights

Every command takes --help, and --debug to show the traceback of an error.
To begin: mixer-finetune fit --recipe digits"""

FIT_HELP = """Fine-tune a Mixer backbone.

Recipes merge in their order, then --config files, then the options typed, wherever they stand on the line.
  --recipe NAME|FILE, -r   a recipe or overlay; may be repeated (see: mixer-finetune recipes)
  --config FILE, -c        a YAML file of options; may be repeated; RUN/config.yaml replays a run
  --resume RUN             go on with an interrupted run
  --print_config           print the merged configuration and stop"""


EVALUATE_HELP = """Metrics of a run's model, or of a checkpoint, on its test split (test) or dev split (validate).

The run's own configuration holds, and options that are typed, --recipe and --config come over it: --data.source evaluates on
other data of the same classes, --model.image_size at another resolution, --trainer.devices on other hardware.
  --ckpt_path FILE     a checkpoint in the place of RUN, with --recipe or --data.source
  --print_config       print the merged configuration and stop"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 interrupted, 2 a mistake that the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _share_the_cores()
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _dispatch(arguments)
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except OSError as error:
        from mixer_finetune.files import UNWRITABLE

        if debug or error.errno not in UNWRITABLE:
            raise
        place = error.filename2 or error.filename or "a file"
        print(f"error: {place} can't be written ({error.strerror}): free the disk, or choose another place", file=sys.stderr)
        return 2


def _share_the_cores() -> None:
    """Have torch's threads wait asleep for each other: spinning, as they do by default, is far slower beside other programs.

    GNU's OpenMP reads the setting when torch is imported. Where nothing else runs it costs little or nothing
    (tests/benchmarks/busy_cores.py, docs/measurements.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(USAGE)
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        print(__version__)
        return 0
    if command == "recipes":
        from mixer_finetune.cli import recipes

        return recipes.main(rest)
    if command == "backbones":
        from mixer_finetune.cli import backbones as listing

        return listing.main(rest)
    if command == "fit":
        return _fit(rest)
    if command in ("validate", "test"):
        return _evaluate(command, rest)
    if command in ("predict", "report", "export", "push"):
        from mixer_finetune.cli import commands

        return getattr(commands, command)(rest)
    from mixer_finetune.engine.options import nearest

    known = ("fit", "validate", "test", "predict", "report", "export", "push", "recipes", "backbones")
    raise UserError(f"unknown command '{command}'{nearest(command, known)}; commands are {', '.join(known)}")


def _take(arguments: list[str], *names: str) -> tuple[list[str], list[str]]:
    """The values given for an option, and the rest of the line."""
    values, rest, items = [], [], iter(arguments)
    for item in items:
        name, equals, value = item.partition("=")
        if name not in names:
            rest.append(item)
            continue
        value = value if equals else next(items, "")
        if not value or (value.startswith("-") and not equals):
            raise UserError(f"{name} needs a value")
        values.append(value)
    return values, rest


def _merged(command: str, arguments: list[str], run: Path | None = None) -> tuple[dict[str, Any], bool]:
    """The configuration of a run, and whether it is only to be printed."""
    from mixer_finetune.engine.options import merge, parse, run_parser
    from mixer_finetune.engine.recipes import find_recipe

    recipe_names, arguments = _take(arguments, "--recipe", "-r")
    configs, arguments = _take(arguments, "--config", "-c")
    parser = run_parser(f"mixer-finetune {command}", FIT_HELP if command == "fit" else EVALUATE_HELP)
    if command != "fit":
        parser.usage = f"mixer-finetune {command} RUN|CHECKPOINT [options]"
    if "--help" in arguments or "-h" in arguments:
        parser.print_help()
        raise SystemExit(0)
    print_config = "--print_config" in arguments
    arguments = [argument for argument in arguments if argument != "--print_config"]
    files = [find_recipe(name) for name in recipe_names] + [Path(name).expanduser() for name in configs]
    merge(parser, ([run / "config.yaml"] if run else []) + files)
    merged = parser.get_defaults()
    config = parse(parser, arguments)
    for group, source in (("model", "backbone"), ("data", "source")):
        # A commit is one of the source that it was written down with.
        if config[group][source] != merged[f"{group}.{source}"] and config[group]["revision"] == merged[f"{group}.revision"]:
            config[group]["revision"] = None
    if config["name"] and Path(config["name"]).name != config["name"]:
        raise UserError(f"--name is one folder's name inside --output_dir, got '{config['name']}'")
    config["name"] = config["name"] or "-".join(Path(name).stem for name in recipe_names) or "custom"
    if config["data"]["source"] is None and not print_config:
        if recipe_names or configs:
            raise UserError(f"{' and '.join(recipe_names + configs)} names no data: give --data.source FOLDER, or a Hub id")
        raise UserError("no data: give --recipe (see: mixer-finetune recipes) or --data.source")
    return config, print_config


def _fit(arguments: list[str]) -> int:
    from mixer_finetune.engine.options import as_yaml
    from mixer_finetune.runs import read_run_config

    resumed, arguments = _take(arguments, "--resume")
    run = Path(resumed[-1]).expanduser() if resumed else None
    if run:
        read_run_config(run)
    config, print_config = _merged("fit", arguments, run)
    if print_config:
        print(as_yaml(config), end="")
        return 0
    from mixer_finetune.engine.fit import fit

    return fit(config, resume=run)


def _evaluate(command: str, arguments: list[str]) -> int:
    from mixer_finetune.runs import run_of

    ckpt_paths, arguments = _take(arguments, "--ckpt_path")
    positional = arguments[0] if arguments and not arguments[0].startswith("-") else None
    target = Path(positional or (ckpt_paths[-1] if ckpt_paths else "")).expanduser()
    if positional is None and not ckpt_paths and not {"--help", "-h"} & set(arguments):
        raise UserError(f"expected: {command} RUN|CHECKPOINT, or {command} --recipe NAME --ckpt_path FILE")
    rest = arguments[1:] if positional else arguments
    has_recipe = any(item.split("=")[0] in ("--recipe", "-r", "--config", "-c") for item in rest)
    run, checkpoint = (None, target) if has_recipe and target.is_file() else (None, None)
    if positional or ckpt_paths:
        if checkpoint is None:
            run, checkpoint = run_of(target)
    config, print_config = _merged(command, rest, run)
    config["model"]["backbone"] = str(checkpoint or run)
    # What shaped the run's backbone is done; what is typed now asks for another shape.
    typed = {item.partition("=")[0] for item in rest}
    for key, value in {"revision": None, "image_size": None, "patch_size": None, "in_chans": None, "resize": "auto"}.items():
        if f"--model.{key}" not in typed:
            config["model"][key] = value
    if print_config:
        from mixer_finetune.engine.options import as_yaml

        print(as_yaml(config), end="")
        return 0
    from mixer_finetune.engine.fit import evaluate

    return evaluate(config, "val" if command == "validate" else "test")
