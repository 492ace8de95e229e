"""Classes are matched by name, by this one function: numbers of one data set or model mean nothing in another."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.errors import UserError

_NAMED = 5  # classes that a message names of many


@dataclass(frozen=True)
class Match:
    """How the classes of some data are found among those of a model, or of the training split.

    Attributes:
        numbers: Of each of the data's classes, its number there, shape (classes of the data,).
        absent: Names that the data has not.
        note: What was mapped, in a line for the user; empty where both are the same in the same order.
    """

    numbers: NDArray[np.int64]
    absent: list[str]
    note: str


def match_classes(found: Sequence[str], wanted: Sequence[str], what: str, whose: str) -> Match:
    """Match classes by name.

    Args:
        found: Names of the data's classes, by number.
        wanted: Names of the classes that they must be among, by number.
        what: Whose classes `found` are, for messages ("the test split").
        whose: Whose classes `wanted` are ("the training split").

    Raises:
        UserError: The data has a class that is not among the wanted ones; the message names the difference.
    """
    number = {name: i for i, name in enumerate(wanted)}
    if unknown := [name for name in found if name not in number]:
        raise UserError(f"{what} has {_several(unknown)} that {whose} has not{_hint(unknown, number)}", option="source")
    there = set(found)
    absent = [name for name in wanted if name not in there]
    numbers = np.array([number[name] for name in found], np.int64)
    notes = []
    if (np.diff(numbers) < 0).any():
        notes.append("classes are in another order and matched by name")
    if absent:
        notes.append(f"{len(absent):,} of {len(wanted):,} classes absent: {listed(absent)}")
    return Match(numbers, absent, f"{what}: {'; '.join(notes)}" if notes else "")


def listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:_NAMED]) + (", ..." if names[_NAMED:] else "")


def _several(names: Sequence[str]) -> str:
    return f"{len(names):,} class{'es' if len(names) > 1 else ''} ({listed(names)})"


def _hint(unknown: Sequence[str], known: dict[str, int]) -> str:
    folded = {name.casefold().strip(): name for name in known}
    for name in unknown:
        near = folded.get(name.casefold().strip()) or next(iter(difflib.get_close_matches(name, known, n=1)), None)
        if near:
            return f" (is '{name}' its '{near}'?)"
    return ""


def in_order(values: set[str]) -> list[str]:
    """Label values as class names in their order: numbers by size where all of them are plain numbers, else text."""
    if all(value.isascii() and value.isdigit() and str(int(value)) == value for value in values):
        return sorted(values, key=int)
    return sorted(values)
