"""The command line: which command, and what becomes of its errors. A command imports what it needs, and no more."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable

from mixer_finetune import __version__
from mixer_finetune.errors import Interrupted, UserError
from mixer_finetune.texts import terminal_line

# Commands whose options are Lightning's, in lightning.py; those that are a function in a file of their own, whose
# signature has the options; those that have options of their own beside those of `fit`; and those that only
# list. Each with what it does, for the overview.
_LIGHTNING = {
    "fit": "fine-tune: fit --recipe digits [--recipe ddp] [--config mine.yaml] [--model.lr 0.01] ...\n"
    "            complete an interrupted run: fit --resume RUN",
    "validate": "metrics on the dev split:  validate RUN|CHECKPOINT [--data.source ...]",
    "test": "metrics on the test split: test RUN|CHECKPOINT [--data.source ...]",
}
_FUNCTIONS = {
    "predict": "classify images: predict RUN|CHECKPOINT|MODEL FOLDER|FILE ... [--output predictions.csv]",
    "report": "write RUN/report.html again: report RUN [--output FILE]",
    "export": "write a finished run's model for other runtimes: export RUN --format onnx|torch-export|safetensors",
    "soup": "average several runs into one model: soup RUN RUN ... [--output FOLDER]",
    "runs": "list runs with their results: runs [--source digits] [--sort result] [--json]",
    "compare": "is one run better than another: compare RUN RUN ... [--output FOLDER]",
    "push": "put a finished run's model on the Hugging Face Hub: push RUN user/name [--private] [--dry_run]",
}
_MIXED = {
    "plan": "what a fit would do, take and write, from a few steps of it: plan --recipe digits [options of fit]",
    "probe": "which backbone, block and resolution transfer best: probe --backbone A --backbone B --data.source DATA",
    "sweep": "try options, choose on the dev split, test once: sweep --vary model.lr=0.01,0.03 [options of fit]",
    "audit": "copies, likely label errors, outliers and odd images of a data set, with their pictures: audit DATA",
}
_LISTS = {
    "recipes": "list, show, copy or validate recipes",
    "backbones": "list or show architectures and their published weights",
}
COMMANDS = {**_LIGHTNING, **_FUNCTIONS, **_MIXED, **_LISTS}
_OVERVIEW = "\n".join(f"  {name:<9} {about}" for name, about in COMMANDS.items())
USAGE = f"""mixer-finetune {__version__}: fine-tune MLP-Mixer image classifiers.

usage: mixer-finetune COMMAND ...     (or: python -m mixer_finetune COMMAND ...)

{_OVERVIEW}

Every command takes --help, and --debug to show the traceback of an error.
To begin: mixer-finetune fit --recipe digits"""
# What others call a command.
HABITS = {
    "train": "fit", "finetune": "fit", "eval": "test", "evaluate": "test", "val": "validate", "infer": "predict",
    "list": "runs", "ls": "runs", "diff": "compare",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 interrupted, 2 a mistake that the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _share_the_cores()
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    spell: Callable[[str], str] = lambda option: f"--{option}"  # noqa: E731
    try:
        command, spell = _command(arguments[0])
        return _leave(_run(command, arguments[1:]))
    except UserError as error:
        if debug:
            raise
        return _complain(error.spelled(spell))
    except Interrupted as error:
        _say_interrupted(error)
        return 1
    except BrokenPipeError:
        return 0
    except OSError as error:
        from mixer_finetune.files import UNWRITABLE

        if debug or error.errno not in UNWRITABLE:
            raise
        place = error.filename2 or error.filename or "a file"
        return _complain(f"{place} can't be written ({error.strerror}): free the disk, or choose another place")


def _share_the_cores() -> None:
    """Have torch's threads wait asleep for each other: spinning, as they do by default, is slow beside other programs.

    GNU's OpenMP reads the setting when torch is imported. Where nothing else runs it costs little or nothing
    (tests/benchmarks/busy_cores.py, docs/measurements.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _command(name: str) -> tuple[Callable[[list[str]], int], Callable[[str], str]]:
    """A command, and how it spells its options."""
    if name in _LIGHTNING:
        from mixer_finetune.cli import lightning

        return getattr(lightning, name), lightning.spell
    if name in _FUNCTIONS:
        from mixer_finetune.cli.command import Command

        command = Command(getattr(importlib.import_module(f"mixer_finetune.cli.{name}"), name))
        return command, command.spell
    if name in _MIXED:
        mixed = importlib.import_module(f"mixer_finetune.cli.{name}")
        return mixed.main, mixed.spell
    if name in _LISTS:
        return importlib.import_module(f"mixer_finetune.cli.{name}").main, lambda option: f"--{option}"
    near = HABITS.get(name) or next(iter(difflib.get_close_matches(name, COMMANDS, n=1)), None)
    hint = f" (did you mean {near}?)" if near else ""
    raise UserError(f"unknown command '{name}'{hint}; commands are {', '.join(COMMANDS)}")


def _run(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    from mixer_finetune.console import show_log
    from mixer_finetune.engine.interruption import interruptible
    from mixer_finetune.memory import keep_freed_memory

    keep_freed_memory()
    with interruptible():
        show_log()
        return command(arguments)


def _leave(status: int) -> int:
    """End a process that a launcher started beside the first one, at once.

    Python's farewell tears the connection between the processes down, which sometimes aborts; the launcher would then
    kill the first process, which still writes the report.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _complain(line: str) -> int:
    from mixer_finetune.console import is_first_process

    if is_first_process():
        print(f"error: {terminal_line(line)}", file=sys.stderr)
    return 2


def _say_interrupted(error: Interrupted) -> None:
    from mixer_finetune.console import is_first_process

    line = f"interrupted by {error.signal_name}" + (f"; {error.advice}" if error.advice else "")
    try:
        if is_first_process():
            print(terminal_line(line), file=sys.stderr, flush=True)
    except OSError:
        return  # nobody reads any more: the terminal is gone
