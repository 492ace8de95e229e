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
        from mixer_finetune.runs import UNWRITABLE

        if debug or error.errno not in UNWRITABLE:
            raise
        place = error.filename2 or error.filename or "a file"
        print(f"error: {place} can't be written ({error.strerror}): free the disk, or choose another place", file=sys.stderr)
        return 2


def _share_the_cores() -> None:
    """Have torch's threads wait asleep for each other: spinning, as they do by default, is far slower beside other programs.

    GNU's OpenMP reads the setting when torch is imported. Where nothing else runs it costs little or
    nothing (tests/benchmarks/busy_cores.py, docs/measurements.md).
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
        from mixer_finetune import recipes

        return recipes.main(rest)
    if command == "backbones":
        from mixer_finetune.backbones import listing

        return listing.main(rest)
    if command == "fit":
        return _fit(rest)
    if command in ("validate", "test"):
        return _evaluate(command, rest)
    if command == "predict":
        return _predict(rest)
    if command == "report":
        return _report(rest)
    if command == "export":
        return _export(rest)
    if command == "push":
        return _push(rest)
    from mixer_finetune.options import nearest

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


def _flags(arguments: list[str], names: set[str]) -> list[str]:
    """The line with `--flag`, alone or before true or false, as `--flag=true` or `--flag=false`."""
    joined: list[str] = []
    for item in arguments:
        if joined and joined[-1] in names:
            joined[-1] += f"={item}" if item in ("true", "false") else "=true"
            if item in ("true", "false"):
                continue
        joined.append(item)
    return [f"{item}=true" if item in names else item for item in joined]


def _merged(command: str, arguments: list[str], run: Path | None = None) -> tuple[dict[str, Any], bool]:
    """The configuration of a run, and whether it is only to be printed."""
    from mixer_finetune.options import merge, parse, run_parser
    from mixer_finetune.recipes import find_recipe

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
    from mixer_finetune.options import as_yaml
    from mixer_finetune.runs import read_run_config

    resumed, arguments = _take(arguments, "--resume")
    run = Path(resumed[-1]).expanduser() if resumed else None
    if run:
        read_run_config(run)
    config, print_config = _merged("fit", arguments, run)
    if print_config:
        print(as_yaml(config), end="")
        return 0
    from mixer_finetune.engine import fit

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
        from mixer_finetune.options import as_yaml

        print(as_yaml(config), end="")
        return 0
    from mixer_finetune.engine import evaluate

    return evaluate(config, "val" if command == "validate" else "test")


def _predict(arguments: list[str]) -> int:
    from jsonargparse import ArgumentParser

    from mixer_finetune.options import parse

    parser = ArgumentParser(
        prog="mixer-finetune predict RUN|CHECKPOINT|MODEL [FOLDER|FILE|PATTERN ...]",
        description="Classify images, or a split of a data set: a row each with file, top-k labels, probabilities. MODEL may "
        "be a Hub id. An image that can't be decoded gets a row that says why.",
        exit_on_error=False,
    )
    parser.add_argument("--source", type=str | None, default=None, help="A data set instead of files: as --data.source of fit.")
    parser.add_argument("--split", type=str, default="test", help="Its split: train, val or test.")
    parser.add_argument("--output", type=str, default="predictions.csv", help="A .csv, .jsonl or .parquet file.")
    parser.add_argument("--top_k", type=int, default=5, help="How many labels a row gives.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images at once.")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, ...; the best one present when not given.")
    parser.add_argument("--compile", type=bool, default=False, help="Compile the blocks first: for many images.")
    parser.add_argument("--precision", type=str, default="32-true", help="32-true or bf16-mixed.")
    parser.add_argument("--features", type=bool, default=False, help="Add the pre-logits (embeddings); .jsonl or .parquet.")
    parser.add_argument("--tta", type=bool, default=False, help="Average over the image and its mirror image.")
    parser.add_argument("--explain", type=str | None, default=None, help="Folder for pictures of where the evidence lies.")
    parser.add_argument("--resume", type=bool, default=False, help="Go on with what an interrupted predict left.")
    arguments = _flags(arguments, {"--features", "--tta", "--resume", "--compile"})
    if "--help" in arguments or "-h" in arguments:
        parser.print_help()
        return 0
    first_option = next((i for i, item in enumerate(arguments) if item.startswith("--")), len(arguments))
    inputs, options = arguments[:first_option], parse(parser, arguments[first_option:])
    if not inputs or (len(inputs) == 1 and not options["source"]):
        raise UserError("expected: predict RUN|CHECKPOINT|MODEL FOLDER|FILE ..., or predict RUN --source DATA --split test")
    from mixer_finetune.predict import predict

    return predict(inputs[0], inputs[1:], **options)


def _report(arguments: list[str]) -> int:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="mixer-finetune report RUN",
        description="Write a finished run's report: one page that needs no network. fit writes it at the end, too.",
        exit_on_error=False,
    )
    parser.add_argument("--output", type=str | None, default=None, help="The page; RUN/report.html when not given.")
    parser.add_argument(
        "--explain", type=str, default="integrated_gradients", help="Where evidence lies: integrated_gradients or occlusion."
    )
    run, options = _run_and_options(parser, "report RUN", arguments)
    if run is None:
        return 0
    from mixer_finetune.publish.report import write_report

    output = Path(options["output"]).expanduser() if options["output"] else None
    print(f"wrote {write_report(run, output, method=options['explain'])}")
    return 0


def _export(arguments: list[str]) -> int:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="mixer-finetune export RUN",
        description="Write a finished run's model for other runtimes, with pre-processing and label names in it, and compare "
        "its probabilities with the model's.",
        exit_on_error=False,
    )
    parser.add_argument("--format", type=str, default="onnx", help="onnx, torch-export or safetensors.")
    parser.add_argument("--output", type=str | None, default=None, help="File or folder; RUN/export/... when not given.")
    parser.add_argument("--dtype", type=str, default="float32", help="Of safetensors: float32, bfloat16 or float16.")
    parser.add_argument("--quantize", type=str | None, default=None, help="int8, with onnx; measured on the dev split.")
    run, options = _run_and_options(parser, "export RUN --format onnx", arguments)
    if run is None:
        return 0
    from mixer_finetune.publish.export import export

    options["output"] = Path(options["output"]).expanduser() if options["output"] else None
    print(export(run, **options))
    return 0


def _push(arguments: list[str]) -> int:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="mixer-finetune push RUN user/name",
        description="Put a finished run's model on the Hugging Face Hub, as one commit: weights, configuration, model card, "
        "pictures, recipe and results. Checkpoints, tokens, local paths and your images are not sent.",
        exit_on_error=False,
    )
    parser.add_argument("--private", type=bool, default=False, help="Make a new repository private.")
    parser.add_argument("--revision", type=str, default="main", help="Branch; created where it does not exist.")
    parser.add_argument("--create_pr", type=bool, default=False, help="Open a pull request in place of a commit.")
    parser.add_argument("--force", type=bool, default=False, help="Put the commit on top of ones that this run did not make.")
    parser.add_argument("--dry_run", type=bool, default=False, help="Only say what would be sent.")
    arguments = _flags(arguments, {"--private", "--create_pr", "--force", "--dry_run"})
    run, repo_id, options = _run_and_options(parser, "push RUN user/name", arguments, more=1)
    if run is None:
        return 0
    from mixer_finetune.publish.push import push

    print(push(run, repo_id, **options))
    return 0


def _run_and_options(parser: Any, form: str, arguments: list[str], more: int = 0) -> tuple[Any, ...]:
    """The run folder, `more` further words, and the options of a command; only Nones where help was asked for.

    Raises:
        UserError: The words do not have the form, or the folder is not a run folder.
    """
    from mixer_finetune.options import parse
    from mixer_finetune.runs import read_run_config

    if "--help" in arguments or "-h" in arguments:
        parser.print_help()
        return (None,) * (2 + more)
    first_option = next((i for i, item in enumerate(arguments) if item.startswith("--")), len(arguments))
    words, options = arguments[:first_option], parse(parser, arguments[first_option:])
    if len(words) != 1 + more:
        raise UserError(f"expected: {form}, got {' '.join(words) or 'nothing'}")
    run = Path(words[0]).expanduser()
    read_run_config(run)
    return run, *words[1:], options
