"""Parquet files with images in them, alone or in a folder, and what else `datasets` reads of a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mixer_finetune.data.reading import Asked, Tables
from mixer_finetune.errors import UserError


def read_parquet(asked: Asked) -> Tables | None:
    """All splits of a file or a folder, or of a bundled data set; None where there is neither.

    Raises:
        UserError: It can't be read.
    """
    path = asked.path
    if path is None or not path.exists():
        return None
    name = str(asked.source)
    with readable(name) as datasets:
        if path.is_dir():
            tables = datasets.load_dataset(str(path), name=asked.config)
        elif path.suffix == ".parquet":
            tables = datasets.load_dataset("parquet", data_files={"train": str(path)})
        else:
            kinds = "a folder, a table (.csv, .tsv, .jsonl, .parquet) or a Hub id"
            raise UserError(f"{path} is no table of images", option="source", choices=kinds)
    if not len(tables):
        raise UserError(f"'{name}' holds no data", option="source")
    return Tables(name, tables, None, [os.path.realpath(path if path.is_dir() else path.parent)])


@contextmanager
def readable(source: str) -> Iterator[Any]:
    """Read by the `datasets` package, which is given, in this block.

    Raises:
        UserError: It fails.
    """
    import datasets

    datasets.config.USE_PARQUET_EXPORT = False  # or other hosts are asked
    datasets.disable_progress_bars()
    try:
        yield datasets
    except (
        datasets.exceptions.DatasetNotFoundError,
        datasets.exceptions.DataFilesNotFoundError,
        datasets.exceptions.DatasetGenerationError,
        datasets.exceptions.DatasetBuildError,
        FileNotFoundError,
        ValueError,
        RuntimeError,
    ) as error:
        if "scripts are no longer supported" in str(error):
            problem = f"'{source}' is read by a script of its own, which would have to be run"
            advice = "take what the Hub made of it: {data.revision} refs/convert/parquet"
            raise UserError(problem, advice=advice) from error
        if isinstance(error, RuntimeError):
            raise
        if empty := re.search(r'Instruction "(.+)" corresponds to no data', str(error)):
            problem = f"the split '{empty[1]}' of {source} is empty; remove its files or add images"
            raise UserError(problem) from error
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(f"'{source}' can't be read as an image data set: {cause}", option="source") from error
