"""Backbones from the Hub, a model folder, a checkpoint or an architecture's name: timm's on-disk form throughout.

A model folder holds `config.json` (timm's architecture name, `pretrained_cfg`, label names) and `model.safetensors`.
"""

from __future__ import annotations

import difflib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mixer_finetune.backbones.mixer import Mixer
from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.backbones.variants import VARIANTS, get_variant
from mixer_finetune.errors import UserError
from mixer_finetune.hub import download_model, is_repo_id

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED = ("mixer_nano",)
HEAD_KEYS = ("head.weight", "head.bias")


def load_backbone(
    source: str | Path,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    revision: str | None = None,
    seed: int = 0,
) -> Mixer:
    """A Mixer with the weights that `source` names.

    Args:
        source: A Hub id (`timm/mixer_b16_224.goog_in21k`), a local model folder, run folder or Lightning checkpoint of ours,
            the bundled `mixer_nano`, or an architecture's name (`mixer_s16_224`), which gives fresh weights.
        num_classes: Outputs of the head. None keeps the checkpoint's; the same number keeps its trained head; another
            one gets a new, zero-initialised head; 0 gets none.
        image_size: Side of the input in pixels; for a checkpoint it must be the checkpoint's own.
        revision: Branch, tag or commit of a Hub repository.
        seed: Of fresh weights.

    Returns:
        The backbone, in training mode, carrying `preprocessing`, `label_names` (None if unknown or the head is new)
        and `origin` (the source, and the Hub commit where there is one).

    Raises:
        UserError: The source does not exist or can't be read, or its weights are of another architecture.
    """
    source = str(source)
    if num_classes is not None and num_classes < 0:
        raise UserError(f"num_classes must be 0 or more, got {num_classes}")
    if source in VARIANTS and not Path(source).exists():
        model = _build_on_meta(source, 1000 if num_classes is None else num_classes, image_size)
        model.to_empty(device="cpu")
        model.replace_head(model.num_classes)
        model.reset_parameters(seed)
        return model

    config, weights, commit = read_model(source, revision)
    architecture, trained_classes, trained_size = _sizes(config, source)
    if image_size not in (None, trained_size):
        raise UserError(
            f"{source} was trained at {trained_size} px and another resolution is not supported yet; "
            f"leave out --model.image_size {image_size} (images are resized to {trained_size} px)"
        )
    model = _build_on_meta(architecture, trained_classes, trained_size)
    _check_keys(source, architecture, {k: tuple(v.shape) for k, v in model.state_dict().items()}, weights)
    model.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    model.requires_grad_(True)
    model.preprocessing = Preprocessing.from_pretrained_cfg(config.get("pretrained_cfg", config), (trained_size, trained_size))
    model.origin = {"source": source, "weights": "pretrained", "revision": commit}
    if num_classes in (None, trained_classes):
        model.label_names = _label_names(config, trained_classes)
    else:
        assert num_classes is not None
        model.replace_head(num_classes)
    return model


def read_model(source: str, revision: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor], str | None]:
    """The config, the weights and the Hub commit (None for local files) that `source` names.

    Raises:
        UserError: The source does not exist or can't be read.
    """
    if source in BUNDLED and not Path(source).exists():
        return (*_read_folder(ASSETS / source), None)
    path = Path(source).expanduser()
    if path.is_file():
        return (*_read_checkpoint(path), None)
    if path.is_dir():
        # A run folder keeps its model folder inside.
        return (*_read_folder(path if (path / "config.json").is_file() else path / "model"), None)
    if is_repo_id(source):
        folder, commit = download_model(source, revision)
        return (*_read_folder(folder), commit)
    near = difflib.get_close_matches(source, [*BUNDLED, *VARIANTS], n=1)
    raise UserError(
        f"no backbone '{source}'{f' (did you mean {near[0]}?)' if near else ''}: expected a Hub id (user/name), a model folder, "  # noqa: E501
        f"or one of {', '.join([*BUNDLED, *VARIANTS])}; change --model.backbone"
    )


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise UserError(f"{folder} is not a model folder: it has no {file.name}; change --model.backbone")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{config_file} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise UserError(f"{config_file} names no 'architecture': expected timm's config.json")
    try:
        return config, load_file(weights_file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights_file} can't be read ({error}): the file is damaged or cut off") from error


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A Lightning checkpoint of ours: the config that it carries and the backbone's weights."""
    checkpoint = load_checkpoint(path)
    config = checkpoint.get("model_config")
    if config is None:
        raise UserError(f"{path} is not a checkpoint of mixer_finetune: it has no 'model_config'")
    prefix = "backbone."
    state = checkpoint["state_dict"]
    return config, {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint without running any code that it may hold.

    Raises:
        UserError: The file is damaged, or holds more than tensors and plain values.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise UserError(
                f"{path} is refused: it holds pickled code or objects, not only weights; use a safetensors model folder"
            ) from error
        raise UserError(f"{path} can't be read: the file is damaged or cut off") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} can't be read: the file is damaged or cut off") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of mixer_finetune: it has no 'state_dict'")
    return checkpoint


def _sizes(config: dict[str, Any], source: str) -> tuple[str, int, int]:
    """Architecture, classes and image side that a config.json states."""
    architecture = str(config["architecture"])
    if architecture not in VARIANTS:
        raise UserError(f"{source} is a '{architecture}', which is not supported; expected one of {', '.join(VARIANTS)}")
    pretrained_cfg = config.get("pretrained_cfg", config)
    default = get_variant(architecture).image_size
    image_size = config.get("model_args", {}).get("img_size") or pretrained_cfg.get("input_size", [3, default])[-1]
    return architecture, int(config.get("num_classes", pretrained_cfg.get("num_classes", 1000))), int(image_size)


def _label_names(config: dict[str, Any], num_classes: int) -> list[str] | None:
    names = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names")
    return list(names) if isinstance(names, list) and len(names) == num_classes else None


def _build_on_meta(architecture: str, num_classes: int, image_size: int | None) -> Mixer:
    with torch.device("meta"):
        return Mixer(architecture, num_classes, image_size)


def _check_keys(source: str, architecture: str, expected: dict[str, tuple[int, ...]], found: dict[str, Tensor]) -> None:
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unexpected:
        parts = [f"{what} {_some(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise UserError(f"the weights of {source} are not a {architecture}'s: {'; '.join(parts)}")
    for key, shape in expected.items():
        if tuple(found[key].shape) != shape:
            raise UserError(
                f"the weights of {source} are not a {architecture}'s: {key} is {tuple(found[key].shape)}, expected {shape}"
            )


def _some(keys: list[str], limit: int = 4) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
