"""Hashes of what a run wrote: a flipped byte and an edited file are found when they are read.

training.json holds those of the model folder, results.json those of all that results, report, card and push are made
of; each is written behind the files that it vouches for. Checkpoints are archives with checksums of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixer_finetune.errors import UserError
from mixer_finetune.runs import RunFolder


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Take what lies in a file that a run wrote in this block; whatever it holds in its place is one line.

    Raises:
        UserError: The block can't make sense of it.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} does not hold what a run writes there: {said}") from error


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_of(run: RunFolder) -> dict[str, str]:
    """The hashes of a run's files that others are made from, by path in the run folder."""
    weights = (run.model / "config.json", run.model / "model.safetensors")
    told = (run.config_file, run.data_file, run.metrics_file, run.training_file, run.predictions_file)
    return {str(path.relative_to(run)): sha256(path) for path in (*weights, *told) if path.is_file()}


def check_unchanged(*paths: Path) -> None:
    """Make sure that files are as their run wrote them. Files that lie in no run folder, or in one of an earlier
    version, which recorded no hashes, pass.

    Raises:
        UserError: One is not.
    """
    for path in paths:
        folder = path.parent.parent if path.parent.name == "model" else path.parent
        run = RunFolder(folder)
        record = run.results_file if run.results_file.is_file() else run.training_file
        stated = (run.read_json(record) or {}).get("files")
        expected = stated.get(str(path.relative_to(folder))) if isinstance(stated, dict) else None
        if expected is not None and path.is_file() and sha256(path) != expected:
            raise UserError(
                f"{path} is not as its run wrote it: its sha256 is not the one in {record.name}; it is damaged or was "
                "edited",
                advice=f"bring it back from a copy, or begin anew with: mixer-finetune fit --config {run.config_file}",
            )
