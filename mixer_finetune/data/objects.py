"""Data sets that are Python objects: of the `datasets` package, or lists of paths and labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixer_finetune.data.reading import Asked, Tables
from mixer_finetune.errors import UserError


def read_objects(asked: Asked) -> Tables | None:
    """All splits of a Python object as tables; None for what is named by a text.

    Raises:
        UserError: It is no such object, or paths and labels are not equally many.
    """
    if asked.path is not None:
        return None
    return Tables(_kind(asked.source), _tables(asked.source))


def _kind(source: Any) -> str:
    import datasets

    if isinstance(source, datasets.Dataset | datasets.DatasetDict):
        return f"datasets.{type(source).__name__}"
    if isinstance(source, Mapping) or _is_pair(source):
        return "lists of paths"
    raise UserError(
        f"a {type(source).__name__} is no source of data",
        option="source",
        choices="a path, a Hub id, a datasets.Dataset or DatasetDict, or (paths, labels)",
    )


def _is_pair(source: Any) -> bool:
    return isinstance(source, tuple) and len(source) == 2 and not isinstance(source[0], str)


def _tables(source: Any) -> Mapping[str, Any]:
    """All splits of a Python object as tables."""
    import datasets

    if isinstance(source, datasets.Dataset):
        return {"train": source}
    if isinstance(source, datasets.DatasetDict):
        return dict(source)
    pairs = source if isinstance(source, Mapping) else {"train": source}
    return {split: _table_of_files(*pair) for split, pair in pairs.items()}


def _table_of_files(paths: Any, labels: Any) -> Any:
    import datasets

    paths, labels = [str(path) for path in paths], list(labels)
    if len(paths) != len(labels):
        raise UserError(f"{len(paths)} paths but {len(labels)} labels: expected one label a path")
    table = datasets.Dataset.from_dict({"image": paths, "label": labels})
    return table.cast_column("image", datasets.Image(decode=False))
