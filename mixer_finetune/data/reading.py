"""What a reader of data sets is asked, and the two things that it can answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED = ("digits",)
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class Asked:
    """Which data set a user wants.

    Attributes:
        source: A Hub id, a path, a bundled name, or a Python object.
        config: Configuration of a Hub data set.
        revision: Branch, tag or commit of a Hub data set.
        splits: Names of the splits to use as "train", "val" and "test", where the usual names do not serve.
        image_column: Name of the image column.
        label_column: Name of the label column.
        label_separator: What stands between several labels of an image in one cell.
        label_columns: Names of columns of 0 and 1, one a class, where an image has several labels.
        image_root: Folder that a table's paths are relative to.
    """

    source: Any
    config: str | None = None
    revision: str | None = None
    splits: Mapping[str, str | None] = field(default_factory=dict)
    image_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    label_columns: Sequence[str] | None = None
    image_root: str | Path | None = None

    @property
    def path(self) -> Path | None:
        """Where it would be on this machine; None for a Python object."""
        if not isinstance(self.source, str | Path):
            return None
        return ASSETS / self.source if self.source in BUNDLED else Path(self.source).expanduser()


# The class of an image, or where images have several labels, those.
Label = str | tuple[str, ...]


@dataclass(frozen=True)
class LabelledFiles:
    """Image files, sorted into splits and classes.

    Attributes:
        name: What the user calls them.
        root: Folder that their paths are relative to.
        splits: By role ("train", "val", "test"): the split's name, and its images as (path, label).
        kind: How they were found, for the user: "one class a folder".
        left_out: What is not used, in a line for the user; empty where everything is.
        commit: Of a Hub data set.
    """

    name: str
    root: str
    splits: dict[str, tuple[str, list[tuple[str, Label]]]]
    kind: str
    left_out: str
    commit: str | None = None


@dataclass(frozen=True)
class Tables:
    """Tables of the `datasets` package, by split.

    Attributes:
        name: What the user calls them.
        tables: By split.
        commit: Of a Hub data set.
        folders: Where files that a row names must lie; None where the user gave the rows.
    """

    name: str
    tables: Mapping[str, Any]
    commit: str | None = None
    folders: list[str] | None = None
