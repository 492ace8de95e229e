"""The model folder: timm's `config.json` and `model.safetensors`, as `load_backbone` reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import NOT_IN_TIMM, get_variant
from mixer_finetune.backbones.foreign import OWN_KEY
from mixer_finetune.files import write_atomically


def model_config(backbone: Backbone, label_names: list[str] | None) -> dict[str, Any]:
    """The content of `config.json`: timm's terms, and where the weights came from under `mixer_finetune`."""
    preprocessing = backbone.preprocessing.to_pretrained_cfg()
    geometry, variant = backbone.geometry, get_variant(backbone.architecture)
    height, width = geometry.image_size
    arguments: dict[str, Any] = {"img_size": height if height == width else [height, width]}
    if geometry.in_chans != 3:
        arguments["in_chans"] = geometry.in_chans
    own: dict[str, Any] = {"backbone": backbone.origin}
    if geometry.token_hidden and variant.family == "mixer":
        arguments["mlp_ratio"] = [geometry.token_hidden / variant.embed_dim, variant.mlp_ratio[1]]
    elif geometry.token_hidden:
        own["token_hidden"] = geometry.token_hidden
    if geometry.patch_size != variant.patch_size:
        own["patch_size"] = geometry.patch_size
    if geometry.trained_grid:
        own["trained_grid"] = list(geometry.trained_grid)
    if backbone.activation != "gelu":
        own["activation"] = backbone.activation
    config: dict[str, Any] = {
        "architecture": backbone.architecture,
        "num_classes": backbone.num_classes,
        "num_features": backbone.num_features,
        "global_pool": "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            **preprocessing,
            "num_classes": backbone.num_classes,
            "pool_size": None,
            "first_conv": "stem.proj",
            "classifier": "head",
            "license": backbone.origin.get("license"),
        },
        OWN_KEY: own,
    }
    if label_names:
        config["label_names"] = list(label_names)
    return config


def beyond_timm(backbone: Backbone) -> list[str]:
    """What timm can't express of a backbone, in words: its folder loads with us, but not, or not equally, in timm."""
    variant, reasons = get_variant(backbone.architecture), []
    if backbone.architecture in NOT_IN_TIMM:
        reasons.append(f"the architecture {backbone.architecture}")
    if backbone.geometry.patch_size != variant.patch_size:
        reasons.append(
            f"patch size {backbone.geometry.patch_size} (timm fixes {variant.patch_size} by the architecture's name)"
        )
    if backbone.geometry.token_hidden and variant.family == "gmixer":
        reasons.append("the hidden width of the token MLP (timm fixes gMixer's by the architecture's name)")
    if backbone.geometry.trained_grid:
        reasons.append("tokens resampled to the trained grid (--model.resize features)")
    if backbone.activation != "gelu":
        reasons.append("the tanh form of GELU (timm would compute the exact one: outputs differ by about 1e-3)")
    return reasons


def save_model_folder(folder: str | Path, backbone: Backbone, label_names: list[str] | None) -> None:
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
