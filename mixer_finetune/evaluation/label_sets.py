"""A split, classified, where images have several labels: the probability of each class, in memory and in a file.

Shapes: n images, C classes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.predictions import DECIMALS, csv_line
from mixer_finetune.files import write_atomically
from mixer_finetune.texts import csv_cell, from_csv_cell

ANSWERED = 0.5  # from which probability on a class is an answer
_HEAD = ["index", "file", "labels", "answers"]


@dataclass(frozen=True)
class LabelSets:
    """A split, classified.

    Attributes:
        names: Of the C classes.
        files: Name of each image, n of them.
        indices: (n,) position of each image in its split.
        labels: (n, C) which labels it has.
        probabilities: (n, C) of each class, rounded as in the file.
    """

    names: list[str]
    files: list[str]
    indices: NDArray[np.int64]
    labels: NDArray[np.bool_]
    probabilities: NDArray[np.float64]

    @classmethod
    def from_table(cls, table: NDArray[Any], image_name: Callable[[int], str], names: list[str]) -> LabelSets:
        """Take what a test leaves, and bring it into the order of the split.

        Args:
            table: (n, 1 + 2C): index, labels, probabilities.
            image_name: Gives the name of the image at an index.
            names: Of the classes.
        """
        rows = table[np.argsort(table[:, 0], kind="stable")]
        indices = rows[:, 0].astype(np.int64)
        labels, probabilities = np.split(rows[:, 1:], 2, axis=1)
        rounded = np.asarray(probabilities, np.float64).round(DECIMALS)
        return cls(names, [image_name(int(index)) for index in indices], indices, labels > 0.5, rounded)

    @classmethod
    def read(cls, path: Path, names: list[str]) -> LabelSets:
        """Read a run's predictions.csv.

        Args:
            path: Of the file.
            names: Of the classes, in order.

        Raises:
            UserError: The file can't be read, or is not one that a run of these classes writes.
        """
        number = {name: i for i, name in enumerate(names)}
        try:
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                lines = csv.reader(file)
                header, rows = next(lines, []), list(lines)
            if header != _header(names):
                raise ValueError("its columns are not those of the run's classes")
            labels = np.zeros((len(rows), len(names)), bool)
            for row, cells in enumerate(rows):
                labels[row, [number[name] for name in json.loads(cells[2])]] = True
            return cls(
                names,
                [from_csv_cell(cells[1]) for cells in rows],
                np.array([int(cells[0]) for cells in rows], np.int64),
                labels,
                np.array([[float(p) for p in cells[4:]] for cells in rows], np.float64).reshape(-1, len(names)),
            )
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
            raise UserError(f"{path} is not the predictions.csv of this run: {error}") from error

    def write(self, path: Path) -> None:
        """Write predictions.csv, whole or not at all: labels and answers as JSON lists, and a column for each class."""
        lines = [csv_line(_header(self.names))]
        columns = (self.indices, self.files, self.labels, self.answers, self.probabilities)
        for index, file, labels, answers, probabilities in zip(*columns, strict=True):
            cells = [index, csv_cell(file), self._listed(labels), self._listed(answers)]
            lines.append(csv_line([*cells, *(f"{p:.{DECIMALS}f}" for p in probabilities)]))
        content = "".join(lines).encode("utf-8", "surrogateescape")
        write_atomically(path, lambda temporary: temporary.write_bytes(content))

    def _listed(self, chosen: NDArray[np.bool_]) -> str:
        return json.dumps([self.names[i] for i in np.flatnonzero(chosen)], ensure_ascii=False)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def answers(self) -> NDArray[np.bool_]:
        """(n, C) which classes are answers."""
        answers: NDArray[np.bool_] = self.probabilities >= ANSWERED
        return answers

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(n,) whether all labels of an image are answered, and no other."""
        right: NDArray[np.bool_] = (self.answers == self.labels).all(1)
        return right

    def mistakes(self) -> NDArray[np.int64]:
        """Rows of the images that were answered wrongly, those with the surest wrong answer first."""
        (wrong,) = np.nonzero(~self.right)
        off = np.abs(self.probabilities - self.labels).max(1)
        return wrong[np.argsort(-off[wrong], kind="stable")]


def _header(names: list[str]) -> list[str]:
    return [*_HEAD, *(f"probability of {name}" for name in names)]
