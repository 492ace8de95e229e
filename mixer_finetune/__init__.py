"""Fine-tune MLP-Mixer image classifiers (arXiv 2105.01601) on Hub data sets or your own photos."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixer_finetune.backbones.folder import save_model_folder
    from mixer_finetune.backbones.load import load_backbone
    from mixer_finetune.data.module import ImageDataModule
    from mixer_finetune.engine.fit import fit
    from mixer_finetune.errors import UserError
    from mixer_finetune.runs import RunFolder
    from mixer_finetune.training.classifier import MixerClassifier

__version__ = "0.1.0"
__all__ = ["ImageDataModule", "MixerClassifier", "RunFolder", "UserError", "fit", "load_backbone", "save_model_folder"]

# Importing torch and Lightning takes seconds; `--help`, lists and mistakes must not wait for them.
_HOMES = {
    "ImageDataModule": "mixer_finetune.data.module",
    "RunFolder": "mixer_finetune.runs",
    "fit": "mixer_finetune.engine.fit",
    "MixerClassifier": "mixer_finetune.training.classifier",
    "UserError": "mixer_finetune.errors",
    "load_backbone": "mixer_finetune.backbones.load",
    "save_model_folder": "mixer_finetune.backbones.folder",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
