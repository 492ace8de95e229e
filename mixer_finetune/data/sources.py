"""Image data sets: from the Hub, folders of images, tables or Python objects, and which split plays which role.

    Hub id, parquet, Python objects  ->  tables by split (`datasets`)  ->  columns and class names
    folder of images, table of paths ->  files by split and class                                   ->  Split

Images stay undecoded until a worker needs them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.data import columns as _columns
from mixer_finetune.data.classes import in_order, match_classes
from mixer_finetune.data.folders import FileRecords, printable, read_folder
from mixer_finetune.data.hub_tables import read_hub
from mixer_finetune.data.labels import check_separator, indicators, rarest
from mixer_finetune.data.objects import read_objects
from mixer_finetune.data.parquet import read_parquet
from mixer_finetune.data.reading import BUNDLED, SPLIT_NAMES, Asked, LabelledFiles, Tables
from mixer_finetune.data.streaming import read_stream
from mixer_finetune.data.tables import read_table
from mixer_finetune.errors import UserError
from mixer_finetune.hub.metadata import card_metadata

# Each gives files by class, or tables; None where what is asked for is none of its own. The first that does not counts.
_READERS: tuple[Callable[[Asked], LabelledFiles | Tables | None], ...] = (
    read_stream,
    read_objects,
    read_table,
    read_folder,
    read_parquet,
    read_hub,
)


@dataclass(frozen=True)
class Split:
    """Images and labels of one part of a data set.

    Attributes:
        name: As in the data set ("train", "valid", ...).
        records: A `datasets.Dataset`, or FileRecords; its image column gives `bytes` and `path`.
        image_column: That column's name.
        labels: Class of each image, (n,); -1 where it is not known. Where images have several labels, (n, C) of 0 and
            1.
        rows: Which rows of `records` belong to the split, shape (n,).
    """

    name: str
    records: Any
    image_column: str
    labels: NDArray[Any]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: NDArray[np.int64], name: str) -> Split:
        """The part of the split at those positions."""
        return replace(self, name=name, labels=self.labels[rows], rows=self.rows[rows])

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """Row group of each image, (n,), where they are streamed."""
        return self.records.groups[self.rows] if self.streamed else None

    @property
    def streamed(self) -> bool:
        """Whether images are fetched when they are needed."""
        return getattr(self.records, "streamed", False)

    @property
    def several(self) -> bool:
        """Whether an image may have several labels."""
        return self.labels.ndim == 2

    @property
    def strata(self) -> NDArray[np.int64]:
        """What images are spread evenly by, (n,): their class; of several labels the rarest."""
        return rarest(self.labels) if self.several else self.labels

    def class_counts(self, classes: int) -> NDArray[np.int64]:
        """Images of each class, (classes,)."""
        if self.several:
            counts: NDArray[np.int64] = self.labels.sum(0, dtype=np.int64)
            return counts
        return np.bincount(self.labels[self.labels >= 0], minlength=classes)

    def renumbered(self, numbers: NDArray[np.int64], classes: int) -> Split:
        """The split with class i as class `numbers[i]` of so many."""
        if not self.several:
            return replace(self, labels=np.where(self.labels < 0, -1, numbers[self.labels]))
        labels = np.zeros((len(self), classes), np.uint8)
        labels[:, numbers] = self.labels
        return replace(self, labels=labels)

    def image_records(self, indices: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The undecoded images at those positions."""
        records: list[dict[str, Any]] = self.records[self.rows[indices].tolist()][self.image_column]
        return records

    def image_name(self, index: int) -> str:
        """What to call the image at that position: its file's name where there is one."""
        path = self.image_records(np.array([index]))[0].get("path")
        return printable(path) if path else f"{self.name}[{int(self.rows[index])}]"


@dataclass(frozen=True)
class Source:
    """A data set with its roles found out.

    Attributes:
        name: What the user calls it: a Hub id, a path, or "datasets.Dataset" and the like.
        description: What was chosen, in one line for the user.
        label_names: Name of each class.
        splits: "train", "val" and "test" where they exist.
        revision: Commit of a Hub data set.
        license: As the data set's card states it.
    """

    name: str
    description: str
    label_names: list[str]
    splits: dict[str, Split]
    revision: str | None
    license: str | None


def open_source(
    source: Any,
    *,
    config: str | None = None,
    revision: str | None = None,
    splits: Mapping[str, str | None] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    label_columns: Sequence[str] | None = None,
    image_root: str | Path | None = None,
    stream: bool = False,
    stream_cache_gb: float = 10.0,
    unlabelled: bool = False,
) -> Source:
    """Open a data set and find its image column, label column and splits.

    Args:
        source: A Hub id, a folder (images in one folder a class, or parquet files), a table of paths and labels (.csv,
            .tsv, .jsonl, .parquet), a parquet file with images in it, or the bundled `digits`; a `datasets.Dataset` or
            `DatasetDict`; a pair of lists (paths, labels), or such pairs by split.
        config: Configuration of a Hub data set with several.
        revision: Branch, tag or commit of a Hub data set.
        splits: Names of the splits to use as "train", "val" and "test", where the usual names do not serve.
        image_column: Name of the image column, where there are several.
        label_column: Name of the label column, where there are several.
        label_separator: What stands between several labels of an image in one cell.
        label_columns: Names of columns of 0 and 1, one a class.
        image_root: Folder that a table's paths are relative to; the table's own when not given.
        stream: Whether to read the images of parquet files while the run goes on, and never all of them.
        stream_cache_gb: Most gigabytes of them that are kept on the disk.
        unlabelled: Whether images alone are wanted: labels of tables are neither asked for nor read.

    Raises:
        UserError: There is no such data set, column or split, or labels are missing.
    """
    if label_columns and (label_column or label_separator):
        raise UserError("labels are in columns of 0 and 1, or in one column", advice="leave out {label_columns}")
    check_separator(label_separator)
    asked = Asked(
        source,
        config,
        revision,
        splits or {},
        image_column,
        label_column,
        label_separator,
        label_columns,
        image_root,
        stream,
        stream_cache_gb,
        unlabelled,
    )
    for read in _READERS:
        if (found := read(asked)) is not None:
            break
    else:
        near = difflib.get_close_matches(str(source), BUNDLED, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"there is no data '{source}'{hint}: expected a folder, a table (.csv, .tsv, .jsonl, .parquet), a Hub id "
            f"(user/name) or the bundled {BUNDLED[0]}",
            option="source",
        )
    if isinstance(found, LabelledFiles) and read is not read_table and (label_columns or label_separator):
        problem = f"{source} has a folder for each class, so that an image has one label"
        raise UserError(problem, advice=f"leave out {{{'label_columns' if label_columns else 'label_separator'}}}")
    return _of_files(found, asked) if isinstance(found, LabelledFiles) else _of_tables(found, asked)


def _of_tables(read: Tables, asked: Asked) -> Source:
    """Tables with their columns and class numbers found out."""
    name, tables, splits = read.name, read.tables, asked.splits
    roles = _split_roles(tables, splits)
    features = next(iter(tables.values())).features
    streams = read.streams
    images = next(iter(streams.values())).column if streams else _columns.image_column(features, asked.image_column)
    labels, class_names, to_class = _columns.labels_of(tables, list(roles.values()), asked)

    found, left_out = {}, []
    for role, split in roles.items():
        table = tables[split]
        if len(table) == 0:
            raise UserError(f"the split '{split}' of {name} is empty", advice=f"choose another with {{{role}_split}}")
        if read.folders is not None and (outside := _columns.files_outside(table, images, read.folders)):
            raise UserError(
                f"{len(outside):,} images of split '{split}' of {name} are files outside of it (the first is "
                f"{printable(outside[0])}), which are not read",
                option="source",
            )
        numbers = to_class(split)
        if numbers.ndim == 2 and not _has_labels(bool(numbers.any()), role, split, name):
            left_out.append(split)
            continue
        missing = int((numbers < 0).sum()) if numbers.ndim == 1 else 0
        if missing:
            if role == "test" and missing == len(numbers):
                continue  # a public test split without labels, as ImageNet's
            raise UserError(
                f"{missing} of {len(numbers)} {labels} of split '{split}' are missing or negative",
                advice="remove those rows or choose another {label_column}",
            )
        if numbers.ndim == 1 and (beyond := int((numbers >= len(class_names)).sum())):
            raise UserError(
                f"{beyond} of {len(numbers)} {labels} of split '{split}' are above the last of its "
                f"{len(class_names)} classes (the highest is {int(numbers.max())})",
                advice="mend them or choose another {label_column}",
            )
        records = streams[split] if streams else _columns.undecoded(table, images)
        found[role] = Split(split, records, images, numbers, np.arange(len(numbers)))
    shown = ", ".join(f"{role} = {split.name} ({len(split):,})" for role, split in found.items())
    how = "streamed images" if streams else "images"
    description = f"{name}: {how} in '{images}', {labels} ({len(class_names)} classes), {shown}{_unlabelled(left_out)}"
    license = None if asked.path is None else _license(asked, read.commit)
    return Source(name, description, class_names, found, read.commit, license)


def _of_files(files: LabelledFiles, asked: Asked) -> Source:
    """Labelled files with class numbers, those of the training split first."""
    label_names, left_out = files.label_names, []
    found = {}
    classes: NDArray[Any]
    for role in sorted(files.splits, key=list(SPLIT_NAMES).index):
        split, pairs = files.splits[role]
        paths, labels = [path for path, _ in pairs], [cast("Any", label) for _, label in pairs]
        several = any(isinstance(label, tuple) for label in labels)
        own = in_order({name for label in labels for name in label} if several else set(labels))
        if several and not _has_labels(bool(own), role, split, files.name):
            left_out.append(split)
            continue
        label_names = label_names or own
        numbers = match_classes(own, label_names, f"the {split} split", "the training split").numbers
        if several:
            classes = indicators(labels, label_names)
        else:
            number = {label: numbers[i] for i, label in enumerate(own)}
            classes = np.fromiter((number[label] for label in labels), np.int64, len(labels))
        records = FileRecords(files.root, paths)
        found[role] = Split(split, records, records.column, classes, np.arange(len(paths)))
    if label_names is None:
        raise UserError(f"no image of {files.name} has a class", option="source")
    shown = ", ".join(f"{role} = {split.name} ({len(split):,})" for role, split in found.items())
    description = f"{files.name}: {files.kind} ({len(label_names)} classes), {shown}{_unlabelled(left_out)}"
    if files.left_out:
        description += f"; left out: {files.left_out}"
    names = [printable(label) for label in label_names]
    return Source(files.name, description, names, found, files.commit, _license(asked, files.commit))


def _has_labels(there: bool, role: str, split: str, source: str) -> bool:
    """Whether to take a split: not a test split whose images have no labels, as those of competitions.

    Args:
        there: Whether an image has a label.
        role: Of the split.
        split: Its name.
        source: Of the data.

    Raises:
        UserError: It has none, and is to be learnt from.
    """
    if there or role == "test":
        return there
    problem = f"no image of split '{split}' of {source} has a label"
    raise UserError(problem, advice=f"choose another {{label_column}} or {{{role}_split}}")


def _unlabelled(splits: Sequence[str]) -> str:
    return "".join(f"; left out: {split}, no image of which has a label" for split in splits)


def _license(asked: Asked, commit: str | None) -> str | None:
    """What the card in the data set's folder or repository says."""
    from huggingface_hub import try_to_load_from_cache

    card: Any = asked.path / "README.md" if asked.path else None
    if commit:
        card = try_to_load_from_cache(str(asked.source), "README.md", revision=commit, repo_type="dataset")
    stated = card_metadata(card if isinstance(card, str | Path) else None).get("license")
    return " ".join(stated) if isinstance(stated, list) else stated


def _split_roles(tables: Any, chosen: Mapping[str, str | None]) -> dict[str, str]:
    """Which split plays which role: the chosen names, else the usual ones."""
    roles = {}
    for role, usual in SPLIT_NAMES.items():
        wanted = chosen.get(role)
        if wanted is not None:
            if wanted not in tables:
                raise UserError(f"there is no split '{wanted}'", option=f"{role}_split", choices=" or ".join(tables))
            roles[role] = wanted
        else:
            match = next((name for name in usual if name in tables and name not in chosen.values()), None)
            if match:
                roles[role] = match
    if not roles:
        problem = f"no split has a usual name among {', '.join(tables)}"
        raise UserError(problem, advice="name one with {train_split}")
    return roles
