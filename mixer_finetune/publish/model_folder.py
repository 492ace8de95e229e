"""The model folder: timm's `config.json` and `model.safetensors`, as `load_backbone` reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mixer_finetune.backbones.mixer import Mixer
from mixer_finetune.runs import write_atomically


def model_config(backbone: Mixer, label_names: list[str] | None) -> dict[str, Any]:
    """The content of `config.json`: timm's terms, and where the weights came from under `mixer_finetune`."""
    preprocessing = backbone.preprocessing.to_pretrained_cfg()
    config: dict[str, Any] = {
        "architecture": backbone.architecture,
        "num_classes": backbone.num_classes,
        "num_features": backbone.num_features,
        "global_pool": "avg",
        "model_args": {"img_size": backbone.image_size},
        "pretrained_cfg": {
            **preprocessing,
            "num_classes": backbone.num_classes,
            "pool_size": None,
            "first_conv": "stem.proj",
            "classifier": "head",
        },
        "mixer_finetune": {"backbone": backbone.origin},
    }
    if label_names:
        config["label_names"] = list(label_names)
    return config


def save_model_folder(folder: str | Path, backbone: Mixer, label_names: list[str] | None) -> None:
    """Write `config.json` and `model.safetensors`, each whole or not at all.

    Args:
        folder: Created if need be.
        backbone: With its head.
        label_names: Of the head's classes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    write_atomically(folder / "model.safetensors", lambda path: save_file(weights, path, metadata={"format": "pt"}))
    text = json.dumps(model_config(backbone, label_names), indent=2) + "\n"
    write_atomically(folder / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
