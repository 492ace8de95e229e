"""Backbones from the Hub, a model folder, a checkpoint or an architecture's name: timm's on-disk form throughout.

A model folder holds `config.json` (timm's architecture name, `pretrained_cfg`, label names) and `model.safetensors`.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import VARIANTS, Geometry, get_variant
from mixer_finetune.backbones.foreign import OWN_KEY, implied_config, read_weights
from mixer_finetune.backbones.mixer import GELU_FORMS
from mixer_finetune.backbones.preprocessing import Preprocessing, as_pair
from mixer_finetune.backbones.resize import auto_reason, plan_resize, resize_weights
from mixer_finetune.errors import UserError
from mixer_finetune.hub.read import WEIGHT_FILES, download_file, download_model, download_url, is_repo_id

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED = ("mixer_nano",)


def load_backbone(
    source: str | Path,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    in_chans: int | None = None,
    resize: str = "auto",
    revision: str | None = None,
    seed: int = 0,
) -> Backbone:
    """A backbone with the weights that `source` names, at any resolution.

    Args:
        source: A Hub id (`timm/mixer_b16_224.goog_in21k`, or `user/repo:path/Mixer-B_16.npz` for one file of a repository), a
            local model folder, run folder or Lightning checkpoint of ours, a file or an https or gs address of weights (timm's
            safetensors, Google's Flax .npz, Facebook's or OpenMMLab's .pth), the bundled `mixer_nano`, or an architecture's
            name (`mixer_s16_224`), which gives fresh weights.
        num_classes: Outputs of the head. None keeps the checkpoint's; the same number keeps its trained head; another
            one gets a new, zero-initialised head; 0 gets none.
        image_size: Side, or (height, width), of the input in pixels; None keeps the checkpoint's.
        patch_size: Side of the patches in pixels; None keeps the checkpoint's, or what `resize="patch"` derives.
        in_chans: Channels of the input: 1, 3 or 4; None keeps the checkpoint's.
        resize: How trained weights are brought to another number of tokens: "interpolate", "block_diagonal", "features",
            "patch" (keep the tokens, resize the patches) or "auto"; see `backbones.resize`.
        revision: Branch, tag or commit of a Hub repository.
        seed: Of fresh weights.

    Returns:
        The backbone, in training mode, carrying `preprocessing`, `label_names` (None if unknown or the head is new)
        and `origin` (the source, the Hub commit where there is one, and how the weights were resized).

    Raises:
        UserError: The source does not exist or can't be read, its weights are of another architecture, or the size is
            impossible.
    """
    source = str(source)
    size = None if image_size is None else as_pair(image_size)
    if num_classes is not None and num_classes < 0:
        raise UserError(f"num_classes must be 0 or more, got {num_classes}")
    if source in VARIANTS and not Path(source).exists():
        own = VARIANTS[source].geometry()
        geometry, _ = plan_resize(source, own, size, patch_size, in_chans, "interpolate" if resize == "auto" else resize)
        model = _build_on_meta(source, 1000 if num_classes is None else num_classes, geometry, "gelu")
        model.to_empty(device="cpu")
        model.replace_head(model.num_classes)
        model.reset_parameters(seed)
        return model

    config, weights, commit = read_model(source, revision)
    stated = _stated(config, source)
    trained = _build_on_meta(stated.architecture, stated.num_classes, stated.geometry, stated.activation)
    _check_keys(source, stated.architecture, {k: tuple(v.shape) for k, v in trained.state_dict().items()}, weights)
    geometry, method = plan_resize(stated.architecture, stated.geometry, size, patch_size, in_chans, resize)
    weights = {key: value.float() for key, value in weights.items()}  # no copy where they are float32 already
    if geometry != stated.geometry:
        weights = resize_weights(weights, stated.geometry, geometry, method, gated=trained.family == "gmixer")
    model = _build_on_meta(stated.architecture, stated.num_classes, geometry, stated.activation)
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(True)
    model.preprocessing = replace(stated.preprocessing, image_size=geometry.image_size).with_channels(geometry.in_chans)
    model.origin = {"source": source, "weights": "pretrained", "revision": commit}
    if license := _parts(config)[0].get("license"):
        model.origin["license"] = license
    if geometry != stated.geometry:
        sizes = {"from": list(stated.geometry.image_size), "to": list(geometry.image_size)}
        why = {"why": auto_reason(method, stated.geometry, geometry)} if resize == "auto" else {}
        model.origin["resized"] = {**sizes, "method": method, **why}
    if num_classes in (None, stated.num_classes):
        model.label_names = _label_names(config, stated.num_classes)
    else:
        assert num_classes is not None
        model.replace_head(num_classes)
    return model


def read_model(source: str, revision: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor], str | None]:
    """The config, the weights and the Hub commit (None for other files) that `source` names.

    Raises:
        UserError: The source does not exist or can't be read.
    """
    if source in BUNDLED and not Path(source).exists():
        return (*_read_folder(ASSETS / source), None)
    path = Path(source).expanduser()
    if path.is_file():
        return (*_read_file(path), None)
    if path.is_dir():
        # A run folder keeps its model folder inside.
        return (*_read_folder(path if (path / "config.json").is_file() else path / "model"), None)
    if source.startswith(("https://", "http://", "gs://")):
        return (*_read_file(download_url(source)), None)
    repo_id, _, file = source.partition(":")
    if is_repo_id(repo_id) and file:
        downloaded, commit = download_file(repo_id, file, revision)
        return (*_read_file(downloaded), commit)
    if is_repo_id(source):
        folder, commit = download_model(source, revision)
        return (*_read_folder(folder), commit)
    near = difflib.get_close_matches(source, [*BUNDLED, *VARIANTS], n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(
        f"no backbone '{source}'{hint}: expected a Hub id (user/name or user/name:file), "
        f"a run or model folder, a file of weights, or one of {', '.join([*BUNDLED, *VARIANTS])}; change --model.backbone"
    )


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A file of weights, and the config that stands beside it or that the weights imply."""
    config, weights = read_weights(path)
    if config is None:
        beside = path.parent / "config.json"
        config = _read_config(beside) if beside.is_file() else implied_config(weights, path)
    return config, weights


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    files = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    config_file = folder / "config.json"
    for file, name in ((config_file.is_file(), "config.json"), (files, WEIGHT_FILES[0])):
        if not file:
            raise UserError(f"{folder} is not a model folder: it has no {name}; change --model.backbone")
    return _read_config(config_file), read_weights(files[0])[1]


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise UserError(f"{file} names no 'architecture': expected timm's config.json")
    return config


@dataclass(frozen=True)
class _Stated:
    """What a config.json says of the weights beside it."""

    architecture: str
    num_classes: int
    geometry: Geometry
    activation: str
    preprocessing: Preprocessing


def _parts(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Its pre-processing (at the root in old files), the arguments of the architecture, and what is ours."""
    return config.get("pretrained_cfg") or config, config.get("model_args") or {}, config.get(OWN_KEY) or {}


def _stated(config: dict[str, Any], source: str) -> _Stated:
    architecture = str(config["architecture"])
    if architecture not in VARIANTS:
        raise UserError(f"{source} is a '{architecture}', which is not supported; expected one of {', '.join(VARIANTS)}")
    variant = get_variant(architecture)
    pretrained_cfg, arguments, own = _parts(config)
    if (activation := str(own.get("activation", "gelu"))) not in GELU_FORMS:
        raise UserError(f"the config.json of {source} has the activation '{activation}'; known are {', '.join(GELU_FORMS)}")
    try:
        channels, *sides = pretrained_cfg.get("input_size", [3, variant.image_size, variant.image_size])
        ratio = arguments.get("mlp_ratio")
        grid = own.get("trained_grid")
        geometry = Geometry(
            as_pair(arguments.get("img_size") or sides),
            int(own.get("patch_size", variant.patch_size)),
            int(arguments.get("in_chans", channels)),
            round(ratio[0] * variant.embed_dim) if isinstance(ratio, list) else own.get("token_hidden"),
            tuple(grid) if grid else None,
        )
        num_classes = int(config.get("num_classes", pretrained_cfg.get("num_classes", 1000)))
        prepared = Preprocessing.from_pretrained_cfg(pretrained_cfg, geometry.image_size)
        return _Stated(architecture, num_classes, geometry, activation, prepared)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"the config.json of {source} can't be understood: {error}") from error


def _label_names(config: dict[str, Any], num_classes: int) -> list[str] | None:
    names = config.get("label_names") or _parts(config)[0].get("label_names")
    return list(names) if isinstance(names, list) and len(names) == num_classes else None


def _build_on_meta(architecture: str, num_classes: int, geometry: Geometry, activation: str) -> Backbone:
    with torch.device("meta"):
        return Backbone(architecture, num_classes, geometry, activation)


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
