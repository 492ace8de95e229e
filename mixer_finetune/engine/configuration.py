"""config.yaml: a run's whole configuration in plain values, that can be read anywhere and repeats the run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

# Options that may hold a path of this machine.
_PATHS = {"backbone", "teacher", "source", "output_dir", "save_dir", "dirpath", "log_dir", "filename_root"}


def as_yaml(config: dict[str, Any]) -> str:
    """A configuration as YAML, in the order of the options."""
    text: str = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
    return text


def repeatable(config: dict[str, Any], model_revision: str | None, data_revision: str | None) -> dict[str, Any]:
    """The configuration that gives this very run again, from any folder.

    Paths are absolute, and revisions are the commits that were used. Where it is pushed to is left out: a repetition is
    not pushed over the run.
    """
    config = _absolute(copy.deepcopy(config))
    for group, commit in (("model", model_revision), ("data", data_revision)):
        options = config[group].get("init_args", config[group])
        if commit and "revision" in options:
            options["revision"] = commit
    return {**config, "push": None}


def _absolute(value: Any, key: str = "") -> Any:
    """The value with paths that exist, and folders to write to, from the root of the file system."""
    if isinstance(value, dict):
        return {name: _absolute(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_absolute(inner, key) for inner in value]
    if isinstance(value, str) and key in _PATHS:
        path = Path(value).expanduser()
        if path.exists() or key not in ("backbone", "teacher", "source"):
            return str(path.absolute())
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
