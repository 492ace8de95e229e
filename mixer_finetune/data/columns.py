"""Which columns of a table hold the images and the labels, and what the labels mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.data.classes import in_order, match_classes
from mixer_finetune.data.labels import (
    LabelLists,
    are_indicators,
    check_columns,
    classes_of,
    indicators,
    joined,
    listed,
    separated,
)
from mixer_finetune.data.reading import Asked
from mixer_finetune.errors import UserError

# What label columns are usually called; the first two come before all others.
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
Labels = NDArray[np.int64]


def image_column(features: Mapping[str, Any], wanted: str | None) -> str:
    """The image column's name.

    Args:
        features: Of the table, by `datasets`.
        wanted: What the user calls it; found by its type when None.

    Raises:
        UserError: There is none, or there are several.
    """
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if wanted is not None:
        if wanted not in images:
            problem = f"'{wanted}' is not an image column; image columns: {', '.join(images) or 'none'}"
            raise UserError(problem, option="image_column")
        return wanted
    if not images:
        problem = f"no image column among {', '.join(features)}; expected one of type Image, or a folder of images"
        raise UserError(problem, option="data.source")
    if len(images) > 1 and "image" not in images:
        raise UserError(f"several image columns: {', '.join(images)}", advice="choose one with {image_column}")
    return "image" if "image" in images else images[0]


def label_column(features: Mapping[str, Any], wanted: str | None) -> str:
    """The label column's name.

    Args:
        features: Of the table, by `datasets`.
        wanted: What the user calls it; found by type and usual names when None.

    Raises:
        UserError: There is none, or there are several.
    """
    import datasets

    kinds = datasets.ClassLabel | datasets.Value
    scalars = [name for name, feature in features.items() if isinstance(feature, kinds) or is_list(feature)]
    if wanted is not None:
        if wanted not in scalars:
            problem = f"'{wanted}' is not a label column; candidates: {', '.join(scalars) or 'none'}"
            raise UserError(problem, option="label_column")
        return wanted
    classes = [
        name for name in scalars if isinstance(getattr(features[name], "feature", features[name]), datasets.ClassLabel)
    ]
    candidates = classes or [name for name in LABEL_COLUMNS if name in scalars]
    for name in LABEL_COLUMNS[:2]:
        if name in candidates:
            return name
    if len(candidates) > 1:
        raise UserError(f"several label columns: {', '.join(candidates)}", advice="choose one with {label_column}")
    if not candidates:
        raise UserError(
            f"no label column among {', '.join(features)}; expected at least two folders of images, one a class, or a "
            "column of class labels",
            advice="name it with {label_column}",
        )
    return candidates[0]


def class_labels(
    tables: Mapping[str, Any], splits: list[str], column: str
) -> tuple[list[str], Callable[[Any], Labels]]:
    """Class names, and the function that gives a table's labels as class numbers, (n,); -1 where one is missing.

    Args:
        tables: By split.
        splits: Which of them count for the names.
        column: Of the labels.

    Raises:
        UserError: The column holds no classes.
    """
    import datasets

    feature = next(iter(tables.values())).features[column]
    if isinstance(feature, datasets.ClassLabel):

        def class_numbers(table: Any) -> Labels:
            numbers = table.data.column(column).fill_null(-1).to_numpy()
            ordered: Labels = np.array(numbers, np.int64)[_row_order(table)]
            return ordered

        return list(feature.names), class_numbers
    values = {
        value
        for name in splits
        for value in tables[name].unique(column)
        if value not in (None, "") and not (isinstance(value, int) and value < 0)
    }
    if any(isinstance(value, float) for value in values):
        raise UserError(f"column '{column}' holds fractions, not classes", option="label_column")
    ordered = sorted(values)
    number = {value: i for i, value in enumerate(ordered)}
    return [str(value) for value in ordered], lambda table: np.array(
        [number.get(v, -1) for v in table[column]], np.int64
    )


def labels_of(
    tables: Mapping[str, Any], splits: list[str], asked: Asked
) -> tuple[str, list[str], Callable[[str], NDArray[Any]]]:
    """Where the labels are, in words; class names; and the function that gives a split's labels.

    Args:
        tables: By split.
        splits: Which of them count for the names.
        asked: Which columns.

    Returns:
        The function gives class numbers, (n,), -1 where one is missing; or for several labels an image (n, C) of 0 and
        1.

    Raises:
        UserError: A column is missing, or holds no classes.
    """
    import datasets

    features = next(iter(tables.values())).features
    if asked.unlabelled:
        return "no labels read", [""], lambda split: np.zeros(len(tables[split]), np.int64)
    if asked.label_columns:
        wanted = check_columns(asked.label_columns, list(features), "the data")
    else:
        name = label_column(features, asked.label_column)
        if asked.label_separator is None and not is_list(features[name]):
            names, numbers_of = class_labels(tables, splits, name)
            return f"labels in '{name}'", names, lambda split: numbers_of(tables[split])
        if asked.label_separator is not None and isinstance(features[name], datasets.ClassLabel):
            problem = f"'{name}' holds a class of each image, and no texts of several labels"
            raise UserError(problem, advice="leave out {label_separator}, or choose another {label_column}")
        # Of all splits, since a few lists of a small one may look like either.
        whole = is_list(features[name]) and are_indicators(row for split in splits for row in tables[split][name])

    def lists(split: str) -> LabelLists:
        table, shown = tables[split], f"split '{split}'"
        if asked.label_columns:
            return joined({each: table[each] for each in wanted}, shown)
        if asked.label_separator is not None and not is_list(features[name]):
            return separated(table[name], asked.label_separator, name)
        return listed(table[name], name, shown, getattr(features[name].feature, "names", None), whole)

    found = {split: lists(split) for split in splits}
    first = next(iter(found.values()))
    names = first.names or in_order({label for each in found.values() for label in classes_of(each)})
    numbers = {}
    for split, each in found.items():
        match_classes(classes_of(each), names, f"the {split} split", f"the {splits[0]} split")
        numbers[split] = indicators(each.rows, names)
    return first.how, names, lambda split: numbers[split]


def is_list(feature: Any) -> bool:
    """Whether a column holds lists of classes or of values."""
    import datasets

    return isinstance(getattr(feature, "feature", None), datasets.ClassLabel | datasets.Value)


def files_outside(table: Any, column: str, roots: Sequence[str]) -> list[str]:
    """Paths in an image column, of images that are not in the table itself, that lie outside of some folders.

    A table from elsewhere must not have private files of this machine read, trained on and shown in a report.

    Args:
        table: A `datasets.Dataset`.
        column: Of the images.
        roots: The folders, as real paths.
    """
    import pyarrow.compute as pc

    images = table.data.column(column)
    absent = pc.is_null(pc.struct_field(images, "bytes"))
    paths = pc.struct_field(images, "path").filter(absent).to_pylist()
    return [path for path in paths if path and not any(is_below(path, root) for root in roots)]


def is_below(path: str, root: str) -> bool:
    """Whether a path leads into a folder, which is given as a real path."""
    return os.path.isabs(path) and os.path.commonpath([os.path.realpath(path), root]) == root


def _row_order(table: Any) -> Any:
    return slice(None) if table._indices is None else table._indices.column(0).to_numpy()


def undecoded(table: Any, column: str) -> Any:
    """The image column alone, each image as its bytes and path."""
    import datasets

    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
