"""The data of a run, opened again as its configuration says."""

from __future__ import annotations

from typing import Any

from mixer_finetune.data.module import ImageDataModule
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.results import options_of


def open_data(config: dict[str, Any]) -> ImageDataModule:
    """The data of a run.

    Args:
        config: Content of config.yaml.

    Raises:
        UserError: The data can't be had any more, or is of a class of the user's own, which only `fit` may load.
    """
    named = (config.get("data") or {}).get("class_path", "ImageDataModule")
    if named != "ImageDataModule" and not named.startswith("mixer_finetune."):
        raise UserError(f"the run's data is a {named}, which is not loaded from a run folder")
    options = options_of(config, "data")
    if not isinstance(options.get("source"), str):
        raise UserError("the configuration names no data")
    return ImageDataModule(**{"seed": int(config.get("seed_everything") or 0), **options})
