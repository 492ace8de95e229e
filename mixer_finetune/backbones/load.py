"""Backbones from the Hub, a model folder, a checkpoint or an architecture's name: timm's on-disk form throughout.

A model folder holds `config.json` (timm's architecture name, `pretrained_cfg`, label names) and `model.safetensors`.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mixer_finetune.backbones.adapter_folder import is_adapter_folder, read_adapter_folder
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import BUNDLED, VARIANTS
from mixer_finetune.backbones.folder import ModelConfig, read_config
from mixer_finetune.backbones.foreign import implied_config, read_weights
from mixer_finetune.backbones.geometry import Geometry
from mixer_finetune.backbones.preprocessing import as_pair
from mixer_finetune.backbones.resize import auto_reason, plan_resize, resize_weights
from mixer_finetune.errors import UserError
from mixer_finetune.hub.metadata import card_metadata
from mixer_finetune.hub.read import download, download_url, is_repo_id
from mixer_finetune.integrity import check_unchanged
from mixer_finetune.runs import RunFolder

ASSETS = Path(__file__).resolve().parent.parent / "assets"
# The weights of a model folder: the first of these that is there.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


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
        source: A Hub id (`timm/mixer_b16_224.goog_in21k`, or `user/repo:path/Mixer-B_16.npz` for one file of a
            repository), a local model folder, run folder, adapter folder or Lightning checkpoint of ours, a file or an
            https or gs address of weights (timm's safetensors, Google's Flax .npz, Facebook's or OpenMMLab's .pth), the
            bundled `mixer_nano`, or an architecture's name (`mixer_s16_224`), which gives fresh weights.
        num_classes: Outputs of the head. None keeps the checkpoint's; the same number keeps its trained head; another
            one gets a new, zero-initialised head; 0 gets none.
        image_size: Side, or (height, width), of the input in pixels; None keeps the checkpoint's.
        patch_size: Side of the patches in pixels; None keeps the checkpoint's, or what `resize="patch"` derives.
        in_chans: Channels of the input: 1, 3 or 4; None keeps the checkpoint's.
        resize: How trained weights are brought to another number of tokens: "interpolate", "block_diagonal",
            "features", "patch" (keep the tokens, resize the patches) or "auto"; see `backbones.resize`.
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
        raise UserError(f"a head has 0 classes (none) or more, got {num_classes}", option="num_classes")
    if source in VARIANTS and not Path(source).exists():
        method = "interpolate" if resize == "auto" else resize
        geometry, _ = plan_resize(source, VARIANTS[source].geometry(), size, patch_size, in_chans, method)
        model = _build_on_meta(source, 1000 if num_classes is None else num_classes, geometry, "gelu")
        model.to_empty(device="cpu")
        model.replace_head(model.num_classes)
        model.reset_parameters(seed)
        return model

    config, weights, commit, folder = _read(source, revision)
    trained = _build_on_meta(config.architecture, config.num_classes, config.geometry, config.activation)
    _check_keys(source, config.architecture, {k: tuple(v.shape) for k, v in trained.state_dict().items()}, weights)
    geometry, method = plan_resize(config.architecture, config.geometry, size, patch_size, in_chans, resize)
    weights = {key: value.float() for key, value in weights.items()}  # no copy where they are float32 already
    if geometry != config.geometry:
        weights = resize_weights(weights, config.geometry, geometry, method, trained.family.sides)
    model = _build_on_meta(config.architecture, config.num_classes, geometry, config.activation)
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(True)
    model.preprocessing = replace(config.preprocessing, image_size=geometry.image_size).with_channels(geometry.in_chans)
    model.origin = {"source": source, "weights": "pretrained", "revision": commit}
    if config.license:
        model.origin["license"] = config.license
    if trained_on := _trained_on(folder):
        model.origin["trained_on"] = trained_on
    if geometry != config.geometry:
        sizes = {"from": list(config.geometry.image_size), "to": list(geometry.image_size)}
        why = {"why": auto_reason(method, config.geometry, geometry)} if resize == "auto" else {}
        model.origin["resized"] = {**sizes, "method": method, **why}
    if num_classes is None or num_classes == config.num_classes:
        model.label_names, model.task = config.label_names, config.task
    else:
        model.replace_head(num_classes)
    return model


def read_model(source: str, revision: str | None = None) -> tuple[ModelConfig, dict[str, Tensor], str | None]:
    """The config, the weights and the Hub commit (None for other files) that `source` names.

    Raises:
        UserError: The source does not exist or can't be read.
    """
    return _read(source, revision)[:3]


def _read(source: str, revision: str | None) -> tuple[ModelConfig, dict[str, Tensor], str | None, Path | None]:
    """As `read_model`; and the model folder, where it is one."""
    if source in BUNDLED and not Path(source).exists():
        return (*_read_folder(ASSETS / source), None, ASSETS / source)
    path = Path(source).expanduser()
    if path.is_file():
        return (*_read_file(path), None, None)
    if path.is_dir() and is_adapter_folder(path):
        return (*read_adapter_folder(path, lambda base, commit: load_backbone(base, revision=commit)), None, None)
    if path.is_dir():
        folder = path
        if not (path / "config.json").is_file():
            RunFolder(path).check_links()  # a run folder keeps its model folder inside
            folder = RunFolder(path).model
        return (*_read_folder(folder), None, folder)
    if source.startswith(("https://", "http://", "gs://")):
        return (*_read_file(download_url(source, "backbone")), None, None)
    repo_id, _, file = source.partition(":")
    if is_repo_id(repo_id) and file:
        folder, commit = download(repo_id, "model", [(file,)], revision, "backbone")
        return (*_read_file(folder / file), commit, None)
    if is_repo_id(source):
        wanted = [("config.json",), WEIGHT_FILES, ("README.md", "config.json")]  # a card, where there is one
        try:
            folder, commit = download(source, "model", wanted, revision, "backbone")
        except UserError as error:
            if not path.parent.is_dir() or path.parent == Path("."):
                raise
            problem = f"there is no {source}; and as a repository of the Hub: {error.problem}"
            raise UserError(problem, advice=error.advice) from error
        return (*_read_folder(folder), commit, folder)
    near = difflib.get_close_matches(source, [*BUNDLED, *VARIANTS], n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(
        f"no backbone '{source}'{hint}: expected a Hub id (user/name or user/name:file), "
        f"a run or model folder, a file of weights, or one of {', '.join([*BUNDLED, *VARIANTS])}",
        option="backbone",
    )


def _read_file(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A file of weights, and the config that stands beside it or that the weights imply."""
    check_unchanged(path)
    config, weights = read_weights(path)
    if config is None:
        beside = path.parent / "config.json"
        config = read_config(beside) if beside.is_file() else implied_config(weights, path)
    return config, weights


def _read_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    files = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    config_file = folder / "config.json"
    for is_there, name in ((config_file.is_file(), "config.json"), (bool(files), WEIGHT_FILES[0])):
        if not is_there:
            raise UserError(f"{folder} is not a model folder: it has no {name}", option="backbone")
    check_unchanged(config_file, files[0])
    return read_config(config_file), read_weights(files[0])[1]


def _trained_on(folder: Path | None) -> list[str]:
    """Data sets that the weights were trained on, by their ids on the Hub, as the card in the model folder says."""
    stated = card_metadata(folder / "README.md" if folder else None).get("datasets") or []
    stated = [stated] if isinstance(stated, str) else stated
    return [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []


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
            found_shape = tuple(found[key].shape)
            raise UserError(
                f"the weights of {source} are not a {architecture}'s: {key} is {found_shape}, expected {shape}"
            )


def _some(keys: list[str], limit: int = 4) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
