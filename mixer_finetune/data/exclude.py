"""Images that are left out of a data set: a table names them by split and file or row, as `audit` writes it.

What the table says must be true of the data: a name or row that is not there, or another image in its place, is
refused.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.data.folders import FileRecords, printable
from mixer_finetune.data.sources import Split
from mixer_finetune.errors import UserError

# What says that an image is left out, and that it stays, in any case.
YES, NO = ("yes", "1", "true"), ("no", "0", "false", "")
_CHUNK = 1024


@dataclass(frozen=True)
class _Named:
    """An image as a line of the table names it."""

    line: int
    file: str
    row: int | None
    digest: str


def leave_out(
    splits: Mapping[str, Split], table: str | Path
) -> tuple[dict[str, Split], dict[str, dict[str, Any]], list[str]]:
    """The splits without the images that a table names.

    Args:
        splits: By role, as the data set has them.
        table: A CSV file with the columns `split` and `file` or `row`; where it has a column `exclude`, only lines
            with "yes" there count; where it has a column `digest`, each image is compared with it (`content_digest`).

    Returns:
        The splits; by role how many images are left out, and a hash of which; what was done, for the user.

    Raises:
        UserError: The table can't be read, or does not match the data, or nothing would be left of a split.
    """
    path = Path(table).expanduser()
    named = _read(path)
    by_name = {split.name: role for role, split in splits.items()}
    for name in named:
        if name not in by_name:
            problem = f"{path} leaves out images of split '{name}', and the data has {', '.join(by_name)}"
            raise _mismatch(problem)
    if any(split.streamed for split in splits.values()) and named:
        problem = "images to leave out are compared with the data, which is streamed"
        raise UserError(problem, advice="leave out {stream} or {exclude}")
    left, facts, said = dict(splits), dict[str, dict[str, Any]](), []
    for role, split in splits.items():
        if split.name not in named:
            continue
        at = np.unique(_positions(split, named[split.name], path))
        if len(at) == len(split):
            raise UserError(f"{path} leaves out all {len(split):,} images of {split.name}", option="exclude")
        facts[role] = {"images": len(at), "hash": _hash(split, at)}
        said.append(f"{len(at):,} of {split.name}")
        left[role] = split.take(np.delete(np.arange(len(split)), at), split.name)
    return left, facts, [f"left out by {path.name}: {', '.join(said) or 'nothing'}"]


def content_digest(record: Mapping[str, Any]) -> str:
    """A hash of an image's file, as 16 characters; empty where it can't be read.

    Args:
        record: With `bytes` or `path`.
    """
    content = record.get("bytes")
    if content is None:
        try:
            content = Path(record["path"]).read_bytes()
        except (OSError, TypeError):
            return ""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def names_of(split: Split) -> list[str]:
    """The file of each image of a split, as a table names it; empty where an image lies in a table without a name."""
    if isinstance(split.records, FileRecords):
        return [printable(split.records.paths[row]) for row in split.rows]
    names = []
    for start in range(0, len(split), _CHUNK):
        records = split.image_records(np.arange(start, min(start + _CHUNK, len(split))))
        names += [_name(record) for record in records]
    return names


def _name(record: Mapping[str, Any]) -> str:
    """The name of an image in a table; of a path of this machine only its end."""
    path = record.get("path") or ""
    return printable(Path(path).name if Path(path).is_absolute() else path)


def _read(path: Path) -> dict[str, list[_Named]]:
    """The images of each split that are to be left out."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns, rows = list(reader.fieldnames or ()), [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise UserError(f"there is no file '{path}' of images to leave out", option="exclude") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as a CSV table ({error})", option="exclude") from error
    if "split" not in columns or not {"file", "row"} & set(columns):
        found = ", ".join(columns) or "none"
        problem = f"{path} needs a column 'split' and a column 'file' or 'row' to say which images to leave out"
        raise UserError(f"{problem} (it has {found})", option="exclude")
    named: dict[str, list[_Named]] = defaultdict(list)
    for line, row in rows:
        cells = {name: (row.get(name) or "").strip() for name in ("split", "row", "digest")}
        cells["file"] = row.get("file") or ""  # a name may begin or end with a space
        said = (row.get("exclude") or "").strip().casefold() if "exclude" in columns else YES[0]
        if said not in YES + NO:
            raise UserError(f"line {line} of {path} has '{said}' in 'exclude'; expected yes or no", option="exclude")
        if said in NO:
            continue
        if cells["row"] and not cells["row"].isdecimal():
            raise UserError(f"line {line} of {path} has '{cells['row']}' in 'row'; expected a number", option="exclude")
        if not cells["split"] or not (cells["file"] or cells["row"]):
            raise UserError(f"line {line} of {path} names no image", option="exclude")
        number = int(cells["row"]) if cells["row"] else None
        named[cells["split"]].append(_Named(line, cells["file"], number, cells["digest"]))
    return named


def _positions(split: Split, named: list[_Named], path: Path) -> NDArray[np.int64]:
    """Where the named images stand in the split.

    Raises:
        UserError: One does not, or is another.
    """
    of_files = isinstance(split.records, FileRecords)
    by_row = {row: i for i, row in enumerate(split.rows.tolist())}
    by_name: dict[str, list[int]] = defaultdict(list)
    if of_files:
        for i, name in enumerate(names_of(split)):
            by_name[name].append(i)
    found, absent = [], []
    for each in named:
        at = by_row.get(each.row) if each.row is not None else None
        if of_files and each.file:
            # A file is known by its name, wherever it stands now; a table may name one twice, with two labels.
            places = by_name.get(each.file, [])
            at = places[0] if len(places) == 1 else at if at in places else None
        if at is None:
            absent.append(each)
        else:
            found.append((at, each))
    if absent:
        first = absent[0]
        what = f"'{first.file}'" if first.file else f"row {first.row}"
        if of_files and len(by_name.get(first.file, ())) > 1:
            raise UserError(f"{path} names {what} by its file, which {split.name} has several times; give its row, too")
        problem = f"{split.name} has no {what}" + (f" and lacks {len(absent) - 1:,} more" if absent[1:] else "")
        raise _mismatch(f"{problem} of those that {path} leaves out")
    _check_content(split, found, path)
    return np.array([at for at, _ in found], np.int64)


def _check_content(split: Split, found: list[tuple[int, _Named]], path: Path) -> None:
    """Refuse other images than those that were meant."""
    other = []
    for start in range(0, len(found), _CHUNK):
        chunk = found[start : start + _CHUNK]
        records = split.image_records(np.array([at for at, _ in chunk], np.int64))
        for (_, each), record in zip(chunk, records, strict=True):
            renamed = not isinstance(split.records, FileRecords) and each.file not in ("", _name(record))
            if each.digest != content_digest(record) if each.digest else renamed:
                other.append(each)
    if other:
        first = other[0]
        what = f"'{first.file}'" if first.file else f"row {first.row}"
        raise _mismatch(f"{what} of {split.name} is not the image that {path} leaves out ({len(other):,} are not)")


def _mismatch(problem: str) -> UserError:
    return UserError(problem, advice="audit this data again, or leave out {exclude}")


def _hash(split: Split, at: NDArray[np.int64]) -> str:
    digest = hashlib.sha256()
    of_files = isinstance(split.records, FileRecords)
    for row in split.rows[at].tolist():
        name = split.records.paths[row].encode("utf-8", "surrogateescape") if of_files else str(row).encode()
        digest.update(name + b"\0")
    return digest.hexdigest()
