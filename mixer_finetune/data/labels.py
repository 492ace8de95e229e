"""Several labels an image: from lists, from texts with a separator, and from columns of 0 and 1.

Shapes: n images, C classes. Their labels are (n, C) uint8, 1 where an image has a label; one may have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.errors import UserError

_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


def separated(cells: Sequence[Any], separator: str) -> list[tuple[str, ...]]:
    """The labels in cells of text; an empty cell has none."""
    return [tuple(label for part in str(cell or "").split(separator) if (label := part.strip())) for cell in cells]


def joined(columns: Mapping[str, Sequence[Any]], table: str) -> list[tuple[str, ...]]:
    """The names of the columns that hold 1, of each row.

    Raises:
        UserError: A cell holds neither 0 nor 1.
    """
    truth: list[list[bool]] = []
    for name, cells in columns.items():
        texts = ["0" if cell is None else str(cell).casefold() for cell in cells]
        if odd := next((i for i, text in enumerate(texts) if text not in _YES + _NO), None):
            problem = f"column '{name}' of {table} holds '{cells[odd]}' in row {odd + 1}; expected 0 or 1"
            raise UserError(problem, option="label_columns")
        truth.append([text in _YES for text in texts])
    names = list(columns)
    return [tuple(name for name, there in zip(names, row, strict=True) if there) for row in zip(*truth, strict=True)]


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
