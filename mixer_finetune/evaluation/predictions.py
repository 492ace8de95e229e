"""A split, classified: each image with its most probable classes, in memory and as predictions.csv.

Report and model card are computed from the file, so that they can be made again without the model or the data.

Shapes: n images, C classes, k most probable classes of an image.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.errors import UserError
from mixer_finetune.files import write_atomically
from mixer_finetune.texts import csv_cell, from_csv_cell

DECIMALS = 6  # of a probability in the file


def prediction_columns(k: int) -> list[str]:
    """Names of the columns of the k most probable labels and their probabilities."""
    return [name for i in range(1, k + 1) for name in (f"label_{i}", f"probability_{i}")]


@dataclass(frozen=True)
class Predictions:
    """A split, classified.

    Attributes:
        names: Of the C classes.
        files: Name of each image, n of them.
        indices: (n,) position of each image in its split.
        labels: (n,) true class.
        top: (n, k) most probable classes, the most probable first.
        probabilities: (n, k) theirs, rounded as in the file.
    """

    names: list[str]
    files: list[str]
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    top: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @classmethod
    def from_table(cls, table: NDArray[Any], image_name: Callable[[int], str], names: list[str]) -> Predictions:
        """Take what a test leaves, and bring it into the order of the split.

        Args:
            table: (n, 2 + 2k): index, true class, k most probable classes, their probabilities.
            image_name: Gives the name of the image at an index.
            names: Of the classes.
        """
        k = (table.shape[1] - 2) // 2
        rows = table[np.argsort(table[:, 0], kind="stable")]
        indices = rows[:, 0].astype(np.int64)
        return cls(
            names,
            [image_name(int(index)) for index in indices],
            indices,
            rows[:, 1].astype(np.int64),
            rows[:, 2 : 2 + k].astype(np.int64),
            # The same numbers whether they come from the table or from the file.
            np.asarray(rows[:, 2 + k :], np.float64).round(DECIMALS),
        )

    @classmethod
    def read(cls, path: Path, names: list[str]) -> Predictions:
        """Read a run's predictions.csv.

        Args:
            path: Of the file.
            names: Of the classes, in order.

        Raises:
            UserError: The file can't be read, or is not one that a run writes.
        """
        number = {name: i for i, name in enumerate(names)}  # as files of earlier versions have them
        number |= {csv_cell(name): i for i, name in enumerate(names)}
        try:
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                lines = csv.reader(file)
                header, rows = next(lines, []), list(lines)
            k = (len(header) - 3) // 2
            if header != ["index", "file", "label", *prediction_columns(k)]:
                raise ValueError(f"unexpected columns {', '.join(header) or '(none)'}")
            if wrong := next((row for row in rows if len(row) != len(header)), None):
                raise ValueError(f"a row of {len(wrong)} cells")
            return cls(
                names,
                [from_csv_cell(row[1]) for row in rows],
                np.array([int(row[0]) for row in rows], np.int64),
                np.array([number[row[2]] for row in rows], np.int64),
                np.array([[number[name] for name in row[3::2]] for row in rows], np.int64).reshape(-1, k),
                np.array([[float(p) for p in row[4::2]] for row in rows], np.float64).reshape(-1, k),
            )
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror})") from error
        except KeyError as error:
            raise UserError(f"{path} is not of this run: it has the label {error}, which is no class of it") from error
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path} is not the predictions.csv of a run: {error}") from error

    def write(self, path: Path) -> None:
        """Write predictions.csv, whole or not at all."""
        content = self.csv().encode("utf-8", "surrogateescape")
        write_atomically(path, lambda temporary: temporary.write_bytes(content))

    def csv(self) -> str:
        """The content of predictions.csv: a line for each image, in the order of the split."""
        lines = [csv_line(["index", "file", "label", *prediction_columns(self.top.shape[1])])]
        columns = (self.indices, self.files, self.labels, self.top, self.probabilities)
        for index, file, label, top, probabilities in zip(*columns, strict=True):
            pairs = zip(top, probabilities, strict=True)
            answers = [cell for i, p in pairs for cell in (csv_cell(self.names[i]), f"{p:.{DECIMALS}f}")]
            lines.append(csv_line([index, csv_cell(file), csv_cell(self.names[label]), *answers]))
        return "".join(lines)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,) whether the most probable class is the true one."""
        right: NDArray[np.bool_] = self.top[:, 0] == self.labels
        return right

    @property
    def within_top(self) -> NDArray[np.bool_]:
        """(n,) whether the true class is among the k most probable ones."""
        within: NDArray[np.bool_] = (self.top == self.labels[:, None]).any(1)
        return within

    @property
    def confidence(self) -> NDArray[np.float64]:
        """(n,) probability of the most probable class."""
        return self.probabilities[:, 0]

    def mistakes(self) -> NDArray[np.int64]:
        """Rows of the images that were classified wrongly, the most confident first."""
        (wrong,) = np.nonzero(~self.right)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]


def csv_line(cells: Iterable[Any]) -> str:
    """A line of a CSV file, with what a reader needs to have quoted."""
    # The csv module quotes a carriage return only where it is part of the line's end, and can't read it back unquoted.
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"
