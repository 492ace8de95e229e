"""Tables of paths and labels: CSV, TSV, JSON lines or parquet, of any make; also `metadata.csv` inside a folder.

All values are text, as they stand in the file: `01` and `1` are two classes, and so is `None`. Only an empty cell is no
label. Image paths are relative to the table, or to a folder that is given.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixer_finetune.data.columns import is_below
from mixer_finetune.data.folders import is_image, printable
from mixer_finetune.data.labels import check_columns, joined, listed, separated
from mixer_finetune.data.reading import BUNDLED, SPLIT_NAMES, Asked, Label, LabelledFiles
from mixer_finetune.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
# Usual names of the columns, in any case and with any of " -_" between the words; the first that is there is taken.
_IMAGES = (
    "filename",
    "file",
    "image",
    "img",
    "path",
    "filepath",
    "imagepath",
    "imagefile",
    "imagefilepath",
    "imagename",
)
_LABELS = ("label", "class", "labels", "classname", "category", "target", "species", "breed", "y")
_SPLITS = ("split", "subset", "partition", "set", "fold")
_OTHERWISE = ("set", "fold")  # which often say something else
_ROLES = {name: role for role, names in SPLIT_NAMES.items() for name in names}
Cell = str | tuple[Any, ...] | None
Columns = Mapping[str, Sequence[Cell]]


def read_table(asked: Asked) -> LabelledFiles | None:
    """The image files that a table names, or `metadata.csv` in a folder; None where it is neither.

    Raises:
        UserError: As `labelled_files`.
    """
    path = asked.path
    if path is None or asked.source in BUNDLED:
        return None
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        inside = path.suffix.lower() == ".parquet"  # which one does not look into, unlike a text
        if inside and not of_paths(path, asked.image_column):
            return None
        root = Path(asked.image_root).expanduser() if asked.image_root is not None else path.parent
        return labelled_files(read_columns(path), root, asked, table=printable(str(path)), inside=inside)
    for metadata in (path / name for name in METADATA):
        if metadata.is_file() and has_labels(columns := read_columns(metadata)):
            return labelled_files(columns, path, asked, table=printable(str(metadata)))
    return None


def read_columns(path: Path) -> dict[str, list[Cell]]:
    """A table's columns, all values as text or as lists, None where a cell is empty.

    Raises:
        UserError: The file can't be read as what its suffix says.
    """
    try:
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            return _parquet_columns(path)
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        if suffix in (".jsonl", ".ndjson"):
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            names = list(dict.fromkeys(name for row in rows for name in row))
            return {name: [_text(row.get(name)) for row in rows] for name in names}
        reader = csv.reader(text.splitlines(keepends=True), delimiter="\t" if suffix == ".tsv" else _delimiter(text))
        lines = [(reader.line_num, line) for line in reader if line]
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as a {suffix[1:]} table ({error})", option="source") from error
    if len(lines) < 2:
        raise UserError(f"the table {path} has no rows", option="source")
    (_, header), *rows = lines
    header = [name.strip() for name in header]
    if double := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(f"{path} has several columns '{double[0]}'", option="source")
    for line, row in rows:
        if len(row) != len(header):
            problem = f"line {line} of {path} has {len(row)} cells, but its head has {len(header)}"
            raise UserError(problem, option="source")
    columns = zip(*(row for _, row in rows), strict=True)
    return {name: [cell.strip() or None for cell in column] for name, column in zip(header, columns, strict=True)}


def _delimiter(text: str) -> str:
    head = text.partition("\n")[0]
    return max(",;\t", key=head.count)


def _parquet_columns(path: Path) -> dict[str, list[Cell]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return {name: [_text(value) for value in table.column(name).to_pylist()] for name in table.column_names}


def of_paths(path: Path, image_column: str | None) -> bool:
    """Whether a parquet file names image files, in place of holding images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    columns: Columns = {field.name: [] for field in schema if pa.types.is_string(field.type)}
    if any(pa.types.is_struct(field.type) for field in schema):  # `datasets` keeps an image as bytes and path
        return False
    return image_column in columns if image_column else _usual(columns, _IMAGES) is not None


def _text(value: object) -> Cell:
    if isinstance(value, list | tuple):
        return tuple(value)
    if value is None or value == "":
        return None
    return str(value) if not isinstance(value, bool) else str(int(value))


def has_labels(columns: Columns) -> bool:
    """Whether a metadata file says classes: it has a column of files and one with a label's usual name."""
    return _usual(columns, _IMAGES) is not None and _usual(columns, _LABELS) is not None


def labelled_files(
    columns: Columns,
    root: Path,
    asked: Asked,
    *,
    table: str,
    inside: bool = False,
) -> LabelledFiles:
    """The image files that a table names, with their classes.

    Args:
        columns: Of the table.
        root: Folder that its paths are relative to.
        asked: Names of columns that are not usual ones, and values of the split column to use as "train", "val" and
            "test".
        table: What to call the table.
        inside: Whether all files must lie below `root`.

    Raises:
        UserError: A column is missing or several could be meant, a file is not there, or labels are missing.
    """
    images = _column(columns, asked.image_column, "image_column", _IMAGES, _of_images(columns), table)
    splits, unused = _split_column(columns, asked, table)
    others = [name for name in columns if name not in (images, splits)]
    named, labels, names_of_all = _labels(columns, others, asked, table)
    paths = [str(path or "") for path in columns[images]]
    missing = [path for path in paths if not os.path.isfile(os.path.join(root, path))]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(paths):,} files of {table} are not in {root} (the first is "
            f"{printable(missing[0]) or 'an empty cell'})",
            advice="say where they are with {image_root}",
        )
    real = os.path.realpath(root)
    if inside and (outside := [path for path in paths if not is_below(os.path.join(real, path), real)]):
        raise UserError(
            f"{len(outside):,} of {len(paths):,} files of {table} lie outside of {root} (the first is "
            f"{printable(outside[0])}) and are not read",
            advice="say where they are with {image_root}",
        )
    pairs = list(zip(paths, labels, strict=True))
    found: dict[str, tuple[str, list[tuple[str, Label]]]] = {}
    left: dict[str, int] = {}
    if splits is None:
        found["train"] = ("train", pairs)
    else:
        names = {value: role for role, value in asked.splits.items() if value is not None}
        for pair, cell in zip(pairs, columns[splits], strict=True):
            value = str(cell or "")
            role = names.get(value) or _ROLES.get(value.casefold())
            if role is None or (role in names.values() and names.get(value) != role):
                left[value or "an empty cell"] = left.get(value or "an empty cell", 0) + 1
            else:
                found.setdefault(role, (value, []))[1].append(pair)
        for role, name in ((role, name) for name, role in names.items()):
            if role not in found:
                raise UserError(f"{table} has no row of split '{name}'", option=f"{role}_split")
    left_out = ", ".join([f"{count:,} rows of split '{value}'" for value, count in left.items()] + unused)
    kind = f"files in '{images}', {named}"
    return LabelledFiles(printable(str(asked.source)), str(root), found, kind, left_out, label_names=names_of_all)


def _split_column(columns: Columns, asked: Asked, table: str) -> tuple[str | None, list[str]]:
    """The column that says which split a row belongs to; and the columns that might have, but say something else.

    Raises:
        UserError: It is named as one, and names no split.
    """
    unused: list[str] = []
    wanted = [name for name in asked.splits.values() if name is not None]
    for usual in _SPLITS:
        if (name := _usual(columns, (usual,))) is None:
            continue
        values = list(dict.fromkeys(str(cell or "") for cell in columns[name]))
        if any(value.casefold() in _ROLES or value in wanted for value in values):
            return name, unused
        if usual not in _OTHERWISE:
            shown = ", ".join(printable(value) or "an empty cell" for value in values[:5])
            problem = f"column '{name}' of {table} has no split of a usual name (it has {shown})"
            raise UserError(problem, advice="name one with {train_split}")
        unused.append(f"column '{name}', which names no split")
    for role, name in asked.splits.items():
        if name is not None:
            raise UserError(f"{table} has no row of split '{name}'", option=f"{role}_split")
    return None, unused


def _labels(columns: Columns, others: list[str], asked: Asked, table: str) -> tuple[str, list[Label], list[str] | None]:
    """Where the labels are, in words; of each row its label, or its labels; and the classes, where those are stated."""
    if asked.unlabelled:
        return "no labels read", [""] * len(next(iter(columns.values()))), None
    if asked.label_columns:
        wanted = check_columns(asked.label_columns, others, table)
        several = joined({name: columns[name] for name in wanted}, table)
        return several.how, list(several.rows), several.names
    name = _column(columns, asked.label_column, "label_column", _LABELS, others, table)
    cells = columns[name]
    if any(isinstance(cell, tuple) for cell in cells):
        if asked.label_separator:
            problem = f"'{name}' of {table} holds lists, which need no separator"
            raise UserError(problem, advice="leave out {label_separator}")
        several = listed(cells, name, table)
        return several.how, list(several.rows), several.names
    if asked.label_separator:
        several = separated(cells, asked.label_separator, name)
        return several.how, list(several.rows), None
    if empty := [i for i, label in enumerate(cells) if label is None]:
        raise UserError(
            f"{len(empty):,} of {len(cells):,} rows of {table} have no '{name}' (the first is row {empty[0] + 1})",
            advice="remove those rows, or choose another {label_column}",
        )
    return f"labels in '{name}'", [str(cell) for cell in cells], None


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character not in " -_.")


def _usual(columns: Columns, names: Sequence[str]) -> str | None:
    by_name = {_plain(name): name for name in reversed(list(columns))}
    return next((by_name[name] for name in names if name in by_name), None)


def _of_images(columns: Columns) -> list[str]:
    """Columns whose values are names of image files."""
    return [
        name
        for name, cells in columns.items()
        if all(isinstance(cell, str) and is_image(cell) for cell in list(cells)[:20])
    ]


def _column(
    columns: Columns, wanted: str | None, option: str, usual: Sequence[str], candidates: list[str], table: str
) -> str:
    """The column that was named, else that with a usual name, else the only one that it can be."""
    if wanted is not None:
        if wanted not in columns:
            choices = " or ".join(columns)
            raise UserError(f"{table} has no column '{wanted}'", option=option, choices=choices)
        return wanted
    if found := _usual(columns, usual):
        return found
    if len(candidates) == 1:
        return candidates[0]
    kind = "column of image files" if option == "image_column" else "label column"
    several = f"several that could be the {kind}: {', '.join(candidates)}" if candidates else f"no {kind}"
    advice = f"name it with {{{option}}}"
    if option == "label_column" and candidates and all(set(columns[name]) <= {"0", "1"} for name in candidates):
        advice += f", or where an image may have several labels give {{label_columns}} [{','.join(candidates)}]"
    raise UserError(f"{table} has {several} (it has {', '.join(columns)})", advice=advice)
