"""The adapter folder: what an adapter adds to its base, without the base's weights.

    adapter_config.json  adapter_model.safetensors     peft's layout: it loads them onto timm's model of the base
    config.json                                        as in a model folder, and the base's hash

Reading one gives the merged model, like any model folder. The base is told by the hash of its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mixer_finetune.backbones.adapters import Adapter, adapted_layers, is_adapter, merged_state
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.folder import OWN_KEY, ModelConfig, model_config, read_config
from mixer_finetune.backbones.foreign import read_weights
from mixer_finetune.backbones.geometry import Geometry
from mixer_finetune.backbones.resize import resize_weights
from mixer_finetune.errors import UserError
from mixer_finetune.files import write_atomically

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of peft's names
# Makes a backbone of a source and a revision.
Load = Callable[[str, str | None], Backbone]


def save_adapter_folder(folder: Path, backbone: Backbone, label_names: list[str] | None, load: Load) -> None:
    """Write an adapter folder, each file whole or not at all.

    Args:
        folder: Created if need be.
        backbone: With its adapter and its head.
        label_names: Of the head's classes.
        load: For the base, which is compared with the backbone's frozen weights.

    Raises:
        UserError: They are not those of the base, as after going on from a checkpoint: the folder would be of no use.
    """
    origin, layers = backbone.origin, adapted_layers(backbone)
    source, revision, method = origin["source"], origin.get("revision"), origin.get("resized", {}).get("method", "none")
    state = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    base = load(source, revision)
    expected = _brought_to(base, backbone.geometry, method)
    for name, value in expected.items():
        if not name.startswith("head.") and not torch.equal(state[name], value.to(state[name].dtype)):
            raise UserError(f"the frozen weights are not those of {source} ({name} differs)")
    adapter = next(iter(layers.values())).adapter
    path = Path(source).expanduser()
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(path.absolute()) if path.exists() else source,
        "revision": revision,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "use_dora": adapter.kind == "dora",
        "target_modules": list(layers),
        "modules_to_save": ["head"],
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    config = model_config(backbone, label_names)
    config[OWN_KEY]["adapter"] = {"base_sha256": weights_hash(base), "resize": method}
    kept = {_PREFIX + name: value for name, value in state.items() if is_adapter(name) or name.startswith("head.")}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, lambda path: save_file(kept, path, metadata={"format": "pt"}))
    for name, content in ((CONFIG, settings), ("config.json", config)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))  # type: ignore[misc]


def read_adapter_folder(folder: Path, load: Load) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config and the merged weights of an adapter folder.

    Args:
        folder: That `save_adapter_folder` wrote.
        load: For the base.

    Raises:
        UserError: A file is missing or damaged, or the base is not there or has other weights.
    """
    for name in (WEIGHTS, "config.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a whole adapter folder: it has no {name}", option="backbone")
    config = read_config(folder / "config.json")
    adapter, source, revision = _settings(_json(folder / CONFIG), folder)
    own = _json(folder / "config.json").get(OWN_KEY, {}).get("adapter", {})
    if not isinstance(own, dict) or not {"base_sha256", "resize"} <= own.keys():
        raise UserError(f"{folder / 'config.json'} says nothing of the adapter's base")
    try:
        base = load(source, revision)
    except UserError as error:
        where = f"if it is elsewhere now, write that to base_model_name_or_path in {folder / CONFIG}"
        raise UserError(f"the base {source} of {folder} can't be loaded: {error.problem}", advice=where) from error
    if weights_hash(base) != own["base_sha256"]:
        problem = f"the base {source} has other weights than those that {folder} was trained on"
        raise UserError(problem, advice="the hash of the right ones is base_sha256 in its config.json")
    weights = _brought_to(base, config.geometry, own["resize"])
    weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
    _, found = read_weights(folder / WEIGHTS)
    try:
        merged = merged_state(
            weights | {name.removeprefix(_PREFIX): value.float() for name, value in found.items()}, adapter.factor
        )
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{folder / WEIGHTS} does not fit its base: {' '.join(str(error).split())}") from error
    return config, merged


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "model.safetensors").is_file()


def weights_hash(backbone: Backbone) -> str:
    """The sha256 of a backbone's weights in float32 and of their names, without the head's."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        if not name.startswith("head."):
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _brought_to(base: Backbone, geometry: Geometry, method: str) -> dict[str, Tensor]:
    """The weights of the base at the geometry that the adapter is for."""
    weights = {name: value.detach().cpu() for name, value in base.state_dict().items()}
    if geometry == base.geometry:
        return weights
    return resize_weights(weights, base.geometry, geometry, method, base.family.sides)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} can't be read: expected an object, found a {type(content).__name__}")
    return content


def _settings(settings: dict[str, Any], folder: Path) -> tuple[Adapter, str, str | None]:
    """The adapter, its base and the base's revision."""
    rank, alpha, source = (settings.get(name) for name in ("r", "lora_alpha", "base_model_name_or_path"))
    revision = settings.get("revision")
    if (
        settings.get("peft_type") != "LORA"
        or not isinstance(rank, int)
        or rank < 1
        or not isinstance(alpha, int | float)
        or not isinstance(source, str)
        or not isinstance(revision, str | None)
    ):
        raise UserError(f"{folder / CONFIG} is not one of ours: expected peft_type LORA, r, lora_alpha and a base")
    return Adapter("dora" if settings.get("use_dora") else "lora", rank, float(alpha)), source, revision
