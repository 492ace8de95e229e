"""The commands that take what a run left: their options, before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixer_finetune.errors import UserError


def predict(arguments: list[str]) -> int:
    """`mixer-finetune predict ...`; returns the exit status."""
    from jsonargparse import ArgumentParser

    from mixer_finetune.engine.options import parse

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
    from mixer_finetune.evaluation import predict as predicting

    return predicting.predict(inputs[0], inputs[1:], **options)


def report(arguments: list[str]) -> int:
    """`mixer-finetune report ...`; returns the exit status."""
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
    from mixer_finetune.evaluation.report import write_report

    output = Path(options["output"]).expanduser() if options["output"] else None
    print(f"wrote {write_report(run, output, method=options['explain'])}")
    return 0


def export(arguments: list[str]) -> int:
    """`mixer-finetune export ...`; returns the exit status."""
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
    from mixer_finetune.sharing import export as exporting

    options["output"] = Path(options["output"]).expanduser() if options["output"] else None
    print(exporting.export(run, **options))
    return 0


def push(arguments: list[str]) -> int:
    """`mixer-finetune push ...`; returns the exit status."""
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
    from mixer_finetune.sharing import push as pushing

    print(pushing.push(run, repo_id, **options))
    return 0


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


def _run_and_options(parser: Any, form: str, arguments: list[str], more: int = 0) -> tuple[Any, ...]:
    """The run folder, `more` further words, and the options of a command; only Nones where help was asked for.

    Raises:
        UserError: The words do not have the form, or the folder is not a run folder.
    """
    from mixer_finetune.engine.options import parse
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
