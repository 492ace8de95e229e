"""Several labels an image: from lists, from texts with a separator, and from columns of 0 and 1.

Shapes: n images, C classes. Their labels are (n, C) uint8, 1 where an image has a label; one may have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.data.classes import in_order
from mixer_finetune.errors import UserError

_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


class LabelLists(NamedTuple):
    """The labels of some images, and what is known of all classes.

    Attributes:
        rows: Of each image.
        names: Of all classes in their order, whether or not an image has them; None where only the rows tell.
        how: Where they stand, in words.
    """

    rows: list[tuple[str, ...]]
    names: list[str] | None
    how: str


def separated(cells: Sequence[Any], separator: str, column: str) -> LabelLists:
    """The labels in cells of text; an empty cell has none.

    Args:
        cells: Of the column.
        separator: What stands between two labels; as `check_separator` allows.
        column: Its name.
    """
    texts = ["" if cell is None else str(cell) for cell in cells]
    rows = [tuple(label for part in text.split(separator) if (label := part.strip())) for text in texts]
    none = "" if any(len(row) > 1 for row in rows) else ", which no image has two of"
    return LabelLists(rows, None, f"labels in '{column}' between '{separator}'{none}")


def check_separator(separator: str | None) -> None:
    """Refuse an empty separator.

    Raises:
        UserError: It is empty.
    """
    if separator == "":
        raise UserError("an empty text can't stand between two labels", option="label_separator", choices="',' or ';'")


def joined(columns: Mapping[str, Sequence[Any]], table: str) -> LabelLists:
    """The names of the columns that hold 1, of each row.

    Raises:
        UserError: A cell holds neither 0 nor 1.
    """
    names, truth = list(columns), []
    for name, cells in columns.items():
        texts = ["" if cell is None else str(cell).casefold() for cell in cells]
        if odd := [i for i, text in enumerate(texts) if text not in _YES + _NO]:
            first = repr(cells[odd[0]]) if texts[odd[0]] else "nothing"
            problem = (
                f"{len(odd):,} of {len(texts):,} rows of {table} have neither 0 nor 1 in '{name}' (the first, row "
                f"{odd[0] + 1}, has {first})"
            )
            raise UserError(problem, advice="mend them, or choose other {label_columns}")
        truth.append([text in _YES for text in texts])
    rows = [tuple(name for name, there in zip(names, row, strict=True) if there) for row in zip(*truth, strict=True)]
    return LabelLists(rows, names, f"labels in {len(names)} columns of 0 and 1")


def check_columns(wanted: Sequence[str], there: Sequence[str], table: str) -> list[str]:
    """The columns that hold 0 and 1.

    Raises:
        UserError: One is not there, or is named twice.
    """
    if unknown := [name for name in wanted if name not in there]:
        raise UserError(f"{table} has no column '{unknown[0]}'", option="label_columns", choices=" or ".join(there))
    if twice := [name for i, name in enumerate(wanted) if name in wanted[:i]]:
        raise UserError(f"the column '{twice[0]}' is named twice", option="label_columns")
    return list(wanted)


def listed(
    cells: Sequence[Any],
    column: str,
    table: str,
    names: Sequence[str] | None = None,
    indicators: bool | None = None,
) -> LabelLists:
    """The labels in cells that are lists: of names, of class numbers, or each of as many 0 and 1 as there are classes.

    Args:
        cells: Lists; a text or number stands for a list of one.
        column: Their name.
        table: What to call the table.
        names: Of the classes, where numbers stand for them.
        indicators: Whether the lists are of 0 and 1; as these cells look when None.

    Raises:
        UserError: A cell is missing, or an item is no label.
    """
    rows = [_as_list(cell) for cell in cells]
    if missing := [i for i, row in enumerate(rows) if row is None]:
        raise UserError(
            f"{len(missing):,} of {len(rows):,} rows of {table} have no '{column}' (the first is row "
            f"{missing[0] + 1}); the list of an image without labels is []",
            advice="mend or remove those rows, or choose another {label_column}",
        )
    lists: list[list[Any]] = [row or [] for row in rows]
    if are_indicators(lists) if indicators is None else indicators:
        numbers = [str(i) for i in range(len(lists[0]))] if names is None else list(names)
        if len(numbers) != len(lists[0]):
            problem = f"the lists of 0 and 1 in '{column}' have {len(lists[0])} items for {len(numbers)} classes"
            raise UserError(problem, option="label_column")
        chosen = [tuple(name for name, there in zip(numbers, row, strict=True) if there) for row in lists]
        return LabelLists(chosen, numbers, f"lists of {len(numbers)} times 0 or 1 in '{column}'")
    for i, row in enumerate(lists):
        if odd := [item for item in row if not _is_label(item, names)]:
            what = f"names of its {len(names)} classes, or their numbers from 0" if names else "names or class numbers"
            raise UserError(
                f"row {i + 1} of {table} has {odd[0]!r} in '{column}'; expected a list of {what}",
                advice="mend or remove it, or choose another {label_column}",
            )
    texts = [
        tuple(str(item) if names is None or isinstance(item, str) else names[item] for item in row) for row in lists
    ]
    return LabelLists(texts, None if names is None else list(names), f"lists of labels in '{column}'")


def _as_list(cell: Any) -> list[Any] | None:
    return list(cell) if isinstance(cell, list | tuple | set | np.ndarray) else cell if cell is None else [cell]


def are_indicators(cells: Iterable[Any]) -> bool:
    """Whether each list has as many 0 and 1 as there are classes: no list of classes names one twice."""
    lists = [_as_list(cell) or [] for cell in cells]
    length = len(lists[0]) if lists else 0
    if length < 2 or any(len(row) != length for row in lists):
        return False
    if any(isinstance(item, str) or item not in (0, 1) for row in lists for item in row):
        return False
    return any(len(set(row)) < length for row in lists)


def _is_label(item: Any, names: Sequence[str] | None) -> bool:
    if isinstance(item, int | np.integer) and not isinstance(item, bool):
        return bool(0 <= item and (names is None or item < len(names)))
    return isinstance(item, str) and (names is None or item in names)


def classes_of(lists: LabelLists) -> list[str]:
    """Names of the classes in their order."""
    return lists.names or in_order({label for row in lists.rows for label in row})


def indicators(labels: Sequence[Sequence[str]], names: Sequence[str]) -> NDArray[np.uint8]:
    """Labels as (n, C).

    Args:
        labels: Of each image, all of them among the names.
        names: Of the classes.
    """
    number = {name: i for i, name in enumerate(names)}
    found = np.zeros((len(labels), len(names)), np.uint8)
    for row, those in enumerate(labels):
        found[row, [number[label] for label in those]] = 1
    return found


def rarest(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The rarest class of each image, (n,); C where it has none. By it, images are spread over splits evenly.

    Args:
        labels: (n, C).
    """
    order = np.argsort(labels.sum(0, dtype=np.int64), kind="stable")  # the rarest first
    ranked = labels[:, order] > 0
    found: NDArray[np.int64] = np.where(ranked.any(1), order[ranked.argmax(1)], labels.shape[1])
    return found
