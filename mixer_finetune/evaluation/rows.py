"""Rows of `predict` on their way to disk.

They go to `<output>.part`, an Arrow stream that can be read up to its last whole batch whenever the process dies, and
become CSV, JSON lines or parquet at the end. A resumed predict goes on behind the last whole batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from mixer_finetune.data.sources import Split
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.predictions import prediction_columns
from mixer_finetune.files import refuse_link, write_atomically
from mixer_finetune.texts import csv_cell


def row_schema(
    k: int, features: bool, several: bool, computed_by: str, more: Sequence[tuple[str, pa.DataType]] = ()
) -> pa.Schema:
    """Columns: file, the k most probable labels with their probabilities, what went wrong, and pre-logits if wanted.

    Args:
        k: Labels a row.
        features: Whether there are pre-logits.
        several: Whether an image may have several labels: its labels are then a list of names, in CSV as JSON.
        computed_by: What the values depend on besides the images, so that a resumed predict does not mix two kinds.
        more: Further columns.
    """
    columns = [(name, pa.string() if name.startswith("label") else pa.float32()) for name in prediction_columns(k)]
    fields = [
        ("file", pa.string()),
        *([("labels", pa.list_(pa.string()))] if several else []),
        *columns,
        *more,
        ("error", pa.string()),
    ]
    fields += [("features", pa.list_(pa.float32()))] if features else []
    return pa.schema(fields, metadata={"computed_by": computed_by})


def begin_rows(part: Path, schema: pa.Schema, images: Split, resume: bool) -> int:
    """Make the stream ready to be appended to.

    Args:
        part: File of the stream.
        schema: Of its rows.
        images: All that are to be classified.
        resume: Whether to go on with what is there.

    Returns:
        How many images are in it already.

    Raises:
        UserError: There is no stream to go on with, or it is of other images or options, or a link.
    """
    refuse_link(part)
    head = schema.serialize().to_pybytes()
    if not resume:
        if part.exists() and part.stat().st_size > len(head):
            raise UserError(f"{part} is what an interrupted predict left", advice="go on with {resume}, or remove it")
        part.write_bytes(head)
        return 0
    if not part.is_file():
        raise UserError(f"there is no {part} to go on with", advice="leave out {resume}")
    names: list[str] = []
    with open(part, "rb") as file:
        try:
            stream = pa.ipc.open_stream(file)
            whole = file.tell()
            same = stream.schema.equals(schema, check_metadata=True)
            while True:
                names += stream.read_next_batch().column("file").to_pylist()
                whole = file.tell()
        except (StopIteration, pa.ArrowInvalid, OSError):
            pass  # the end, or a batch that was being written
    if not names:
        part.write_bytes(head)
        return 0
    if not same or len(names) > len(images) or any(images.image_name(i) != name for i, name in enumerate(names)):
        raise UserError(f"{part} is of other images, options or another model", advice="remove it to begin anew")
    with open(part, "rb+") as file:
        file.truncate(whole)
    return len(names)


def finish_rows(
    part: Path,
    target: Path,
    see: Callable[[dict[str, Any]], None] | None = None,
    count: Callable[[pa.RecordBatch], None] | None = None,
) -> list[str]:
    """Turn the stream into the output, whole or not at all, and remove it.

    Args:
        part: File of the stream.
        target: A .csv, .jsonl or .parquet file.
        see: Is shown each row, without its features.
        count: Is told of all rows.

    Returns:
        What went wrong with images, a line for each.
    """
    problems: list[str] = []

    def batches() -> Iterator[pa.RecordBatch]:
        with open(part, "rb") as file:
            for batch in pa.ipc.open_stream(file):
                problems.extend(problem for problem in batch.column("error").to_pylist() if problem)
                if see is not None:
                    shown = [name for name in batch.schema.names if name != "features"]
                    for row in batch.select(shown).to_pylist():
                        see(row)
                if count is not None:
                    count(batch)
                yield batch

    def write(path: Path) -> None:
        with open(part, "rb") as file:
            schema = pa.ipc.open_stream(file).schema
        if target.suffix == ".jsonl":
            with open(path, "w", encoding="utf-8") as lines:
                for batch in batches():
                    for row in batch.to_pylist():
                        filled = {name: value for name, value in row.items() if value is not None}
                        lines.write(json.dumps(filled, ensure_ascii=False) + "\n")
            return
        kind: Any = csv.CSVWriter if target.suffix == ".csv" else parquet.ParquetWriter
        as_written = _as_cells if target.suffix == ".csv" else _as_is
        with kind(str(path), as_written(schema.empty_table()).schema) as writer:
            for batch in batches():
                writer.write_table(as_written(pa.Table.from_batches([batch])))

    write_atomically(target, write)
    part.unlink()
    return problems


def _as_is(rows: pa.Table) -> pa.Table:
    return rows.replace_schema_metadata(None)


def _as_cells(rows: pa.Table) -> pa.Table:
    """The rows with lists as JSON, since a cell of CSV holds none, and no name that a spreadsheet would compute."""
    for i, field in enumerate(rows.schema):
        if pa.types.is_list(field.type):
            cells = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in rows[i].to_pylist()]
            rows = rows.set_column(i, field.name, pa.array(cells, pa.string()))
        elif pa.types.is_string(field.type):
            cells = [None if cell is None else csv_cell(cell) for cell in rows[i].to_pylist()]
            rows = rows.set_column(i, field.name, pa.array(cells, pa.string()))
    return rows.replace_schema_metadata(None)
