"""Image data sets from the Hub, parquet files or folders of images: which columns and splits to use, and what the labels mean.

Everything goes through `datasets.load_dataset`; images stay undecoded in Arrow until a worker needs them.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mixer_finetune.data.hub_tables import load_hub_tables
from mixer_finetune.errors import UserError
from mixer_finetune.hub.read import is_repo_id

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED = ("digits",)
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True)
class Split:
    """Images and labels of one part of a data set.

    Attributes:
        name: As in the data set ("train", "valid", ...).
        records: A `datasets.Dataset`; its image column gives `bytes` and `path`.
        image_column: That column's name.
        labels: Class of each image, shape (n,); -1 where it is not known.
        rows: Which rows of `records` belong to the split, shape (n,).
    """

    name: str
    records: Any
    image_column: str
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: NDArray[np.int64], name: str) -> Split:
        """The part of the split at those positions."""
        return replace(self, name=name, labels=self.labels[rows], rows=self.rows[rows])

    def image_records(self, indices: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The undecoded images at those positions."""
        return self.records[self.rows[indices].tolist()][self.image_column]

    def image_name(self, index: int) -> str:
        """What to call the image at that position: its file's name where there is one."""
        path = self.image_records(np.array([index]))[0].get("path")
        return path or f"{self.name}[{int(self.rows[index])}]"


@dataclass(frozen=True)
class Source:
    """A data set with its roles found out.

    Attributes:
        description: What was chosen, in one line for the user.
        label_names: Name of each class.
        splits: "train", "val" and "test" where they exist.
        revision: Commit of a Hub data set.
        license: As the data set's card states it.
    """

    description: str
    label_names: list[str]
    splits: dict[str, Split]
    revision: str | None
    license: str | None


def open_source(
    source: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    splits: dict[str, str | None] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """Open a data set and find its image column, label column and splits.

    Args:
        source: A Hub id, a folder (parquet files, or images in one folder a class), a parquet file, or the bundled `digits`.
        config: Configuration of a Hub data set with several.
        revision: Branch, tag or commit of a Hub data set.
        splits: Names of the splits to use as "train", "val" and "test", where the usual names do not serve.
        image_column: Name of the image column, where there are several.
        label_column: Name of the label column, where there are several.

    Raises:
        UserError: There is no such data set, column or split, or labels are missing.
    """
    tables, commit = _load(source, config, revision)
    roles = _split_roles(tables, splits or {})
    features = next(iter(tables.values())).features
    image_column = _image_column(features, image_column)
    label_column = _label_column(features, label_column, next(iter(tables.values())))
    names, to_class = _label_names(tables, roles, label_column)

    found = {}
    for role, name in roles.items():
        table = tables[name]
        if len(table) == 0:
            raise UserError(f"the split '{name}' of {source} is empty; choose another with --data.{role}_split")
        labels = to_class(table)
        if (labels < 0).any():
            if role == "test" and (labels < 0).all():
                continue  # a public test split without labels, as ImageNet's
            raise UserError(
                f"{int((labels < 0).sum())} of {len(labels)} labels in column '{label_column}' of split '{name}' are missing "
                "or negative; remove those rows or choose another --data.label_column"
            )
        found[role] = Split(name, _undecoded(table, image_column), image_column, labels, np.arange(len(labels)))
    shown = ", ".join(f"{role} = {split.name} ({len(split):,})" for role, split in found.items())
    description = f"{source}: images in '{image_column}', labels in '{label_column}' ({len(names)} classes), {shown}"
    return Source(description, names, found, commit, _license(source, commit))


def _load(source: str, config: str | None, revision: str | None) -> tuple[Any, str | None]:
    """All splits as a dict of tables, and the commit of a Hub data set."""
    import datasets

    datasets.config.USE_PARQUET_EXPORT = False  # or other hosts are asked
    datasets.disable_progress_bars()
    path = ASSETS / source if source in BUNDLED else Path(source).expanduser()
    commit = None
    try:
        if path.is_dir():
            tables = datasets.load_dataset(str(path), name=config)
        elif path.is_file():
            if path.suffix != ".parquet":
                raise UserError(f"{path} is not a parquet file; give --data.source a folder, a .parquet file or a Hub id")
            tables = datasets.load_dataset("parquet", data_files={"train": str(path)})
        elif is_repo_id(source) and not source.startswith((".", "/", "~")):
            tables, commit = load_hub_tables(source, config, revision)
        else:
            near = difflib.get_close_matches(source, BUNDLED, n=1)
            raise UserError(
                f"--data.source '{source}' does not exist{f' (did you mean {near[0]}?)' if near else ''}: "
                f"expected a folder, a .parquet file, a Hub id (user/name) or the bundled {BUNDLED[0]}"
            )
    except (
        datasets.exceptions.DatasetNotFoundError,
        datasets.exceptions.DataFilesNotFoundError,
        datasets.exceptions.DatasetGenerationError,
        datasets.exceptions.DatasetBuildError,
        FileNotFoundError,
        ValueError,
    ) as error:
        if empty := re.search(r'Instruction "(.+)" corresponds to no data', str(error)):
            raise UserError(f"the split '{empty[1]}' of {source} is empty; remove its files or add images") from error
        raise UserError(f"--data.source '{source}' can't be read as an image data set: {_cause(error)}") from error
    if not len(tables):
        raise UserError(f"--data.source '{source}' holds no data")
    return tables, commit


def _license(source: str, commit: str | None) -> str | None:
    """What the card in the data set's folder or repository says."""
    from huggingface_hub import metadata_load, try_to_load_from_cache

    card: Any = (ASSETS / source if source in BUNDLED else Path(source).expanduser()) / "README.md"
    if commit:
        card = try_to_load_from_cache(source, "README.md", revision=commit, repo_type="dataset")
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    try:
        stated = (metadata_load(card) or {}).get("license")
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
        return None  # a README that is no card
    return " ".join(stated) if isinstance(stated, list) else stated


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:300]


def _split_roles(tables: Any, chosen: dict[str, str | None]) -> dict[str, str]:
    """Which split plays which role: the chosen names, else the usual ones."""
    roles = {}
    for role, usual in SPLIT_NAMES.items():
        wanted = chosen.get(role)
        if wanted is not None:
            if wanted not in tables:
                raise UserError(f"there is no split '{wanted}'; --data.{role}_split must be one of {', '.join(tables)}")
            roles[role] = wanted
        else:
            match = next((name for name in usual if name in tables and name not in chosen.values()), None)
            if match:
                roles[role] = match
    if not roles:
        raise UserError(f"no split has a usual name among {', '.join(tables)}; name one with --data.train_split")
    return roles


def _image_column(features: Any, wanted: str | None) -> str:
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if wanted is not None:
        if wanted not in images:
            raise UserError(
                f"--data.image_column '{wanted}' is not an image column; image columns: {', '.join(images) or 'none'}"
            )
        return wanted
    if not images:
        raise UserError(f"no image column among {', '.join(features)}; expected one of type Image, or a folder of images")
    if len(images) > 1 and "image" not in images:
        raise UserError(f"several image columns: {', '.join(images)}; choose one with --data.image_column")
    return "image" if "image" in images else images[0]


def _label_column(features: Any, wanted: str | None, table: Any) -> str:
    import datasets

    scalars = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel | datasets.Value)]
    if wanted is not None:
        if wanted not in scalars:
            raise UserError(f"--data.label_column '{wanted}' is not a label column; candidates: {', '.join(scalars) or 'none'}")
        return wanted
    classes = [name for name in scalars if isinstance(features[name], datasets.ClassLabel)]
    candidates = classes or [name for name in LABEL_NAMES if name in scalars]
    for name in LABEL_NAMES[:2]:
        if name in candidates:
            return name
    if len(candidates) > 1:
        raise UserError(f"several label columns: {', '.join(candidates)}; choose one with --data.label_column")
    if not candidates:
        raise UserError(
            f"no label column among {', '.join(features)}; expected at least two folders of images, one a class, or a column "
            "of class labels named with --data.label_column"
        )
    return candidates[0]


def _label_names(tables: Any, roles: dict[str, str], column: str) -> tuple[list[str], Any]:
    """Class names, and the function that gives a table's labels as class numbers (-1: unknown)."""
    import datasets

    feature = next(iter(tables.values())).features[column]
    if isinstance(feature, datasets.ClassLabel):

        def class_numbers(table: Any) -> NDArray[np.int64]:
            return np.array(table.data.column(column).fill_null(-1).to_numpy(), np.int64)[_row_order(table)]

        return list(feature.names), class_numbers
    values = {
        value
        for name in roles.values()
        for value in tables[name].unique(column)
        if value is not None and not (isinstance(value, int) and value < 0)
    }
    if any(isinstance(value, float) for value in values):
        raise UserError(f"column '{column}' holds fractions, not classes; choose another --data.label_column")
    ordered = sorted(values)
    number = {value: i for i, value in enumerate(ordered)}
    return [str(value) for value in ordered], lambda table: np.array([number.get(v, -1) for v in table[column]], np.int64)


def _row_order(table: Any) -> Any:
    return slice(None) if table._indices is None else table._indices.column(0).to_numpy()


def _undecoded(table: Any, image_column: str) -> Any:
    import datasets

    return table.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
