"""The model folder, timm's `config.json` and `model.safetensors`: what is written, and how a config.json is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import VARIANTS, get_variant
from mixer_finetune.backbones.geometry import Geometry
from mixer_finetune.backbones.mixer import GELU_FORMS
from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.errors import UserError
from mixer_finetune.files import write_atomically
from mixer_finetune.task_names import TASK_NAMES

OWN_KEY = "mixer_finetune"  # of config.json: what timm has no terms for

# Larger numbers in a config.json are mistakes; sizes made of them could not even be computed.
_MOST_PIXELS, _MOST_CLASSES, _MOST_HIDDEN = 2**14, 2**23, 2**20


@dataclass(frozen=True)
class ModelConfig:
    """What a config.json says of the weights beside it.

    Attributes:
        architecture: A name of the table in `families`.
        num_classes: Outputs of the head; 0 where there is none.
        geometry: Sizes of the input and of the token grid.
        activation: One of `GELU_FORMS`.
        preprocessing: How images must be prepared.
        label_names: Of the classes, where they are known.
        license: Of the weights, where it is stated.
        task: What the head answers: "single_label" or "multi_label".
    """

    architecture: str
    num_classes: int
    geometry: Geometry
    activation: str
    preprocessing: Preprocessing
    label_names: list[str] | None = None
    license: str | None = None
    task: str = TASK_NAMES[0]


# Writing


def model_config(backbone: Backbone, label_names: list[str] | None) -> dict[str, Any]:
    """The content of `config.json`: timm's terms, and where the weights came from under `mixer_finetune`."""
    geometry, variant = backbone.geometry, get_variant(backbone.architecture)
    height, width = geometry.image_size
    arguments: dict[str, Any] = {"img_size": height if height == width else [height, width]}
    if geometry.in_chans != 3:
        arguments["in_chans"] = geometry.in_chans
    own: dict[str, Any] = {"backbone": backbone.origin}
    if variant.timm_name:
        own["architecture"] = backbone.architecture
    if (geometry.token_hidden or variant.timm_name) and backbone.family.mlp_ratio_in_timm:
        token_hidden = geometry.token_hidden or variant.token_hidden or 0
        arguments["mlp_ratio"] = [token_hidden / variant.embed_dim, variant.mlp_ratio[1]]
    elif geometry.token_hidden:
        own["token_hidden"] = geometry.token_hidden
    if geometry.patch_size != variant.patch_size:
        own["patch_size"] = geometry.patch_size
    if geometry.trained_grid:
        own["trained_grid"] = list(geometry.trained_grid)
    if geometry.image_sizes:
        own["image_sizes"] = [list(size) for size in geometry.image_sizes]
    if backbone.activation != "gelu":
        own["activation"] = backbone.activation
    config: dict[str, Any] = {
        "architecture": variant.timm_name or backbone.architecture,
        "num_classes": backbone.num_classes,
        "num_features": backbone.num_features,
        "global_pool": "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            **backbone.preprocessing.to_pretrained_cfg(),
            "num_classes": backbone.num_classes,
            "pool_size": None,
            "first_conv": "stem.proj",
            "classifier": "head",
            "license": backbone.origin.get("license"),
        },
        OWN_KEY: own,
    }
    if backbone.task != TASK_NAMES[0]:
        own["task"] = backbone.task
        config["problem_type"] = "multi_label_classification"  # by which transformers takes sigmoids
    if label_names:
        config["label_names"] = list(label_names)
    return config


def beyond_timm(backbone: Backbone) -> list[str]:
    """What timm can't express of a backbone, in words: its folder loads with us, but not, or not equally, in timm."""
    variant, geometry = get_variant(backbone.architecture), backbone.geometry
    reasons = []
    if not variant.in_timm:
        reasons.append(f"the architecture {backbone.architecture}")
    if geometry.patch_size != variant.patch_size:
        reasons.append(f"patch size {geometry.patch_size} (timm fixes {variant.patch_size} by the architecture's name)")
    if geometry.token_hidden and not backbone.family.mlp_ratio_in_timm:
        reasons.append("the hidden width of the token MLP (timm fixes it by the architecture's name)")
    if geometry.trained_grid:
        reasons.append("tokens resampled to the trained grid (resized by features)")
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


# Reading


def read_config(file: Path) -> ModelConfig:
    """Read a `config.json`.

    Raises:
        UserError: It is not JSON, or `parse_config` refuses it.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    return parse_config(config, str(file))


def parse_config(config: Any, name: str) -> ModelConfig:
    """Check the content of a `config.json`, of timm's or of ours.

    Args:
        config: The content.
        name: What to call it in an error.

    Raises:
        UserError: It names no known architecture, or a value is out of range or not what belongs there.
    """
    try:
        return _parsed(_object(config, "it"))
    except UserError as error:
        raise UserError(f"{name} can't be used: {error.problem}") from error
    except RecursionError as error:
        raise UserError(f"{name} can't be used: it is nested too deeply") from error


def _parsed(config: dict[str, Any]) -> ModelConfig:
    if "architecture" not in config:
        raise UserError("it names no 'architecture': expected timm's config.json")
    architecture = _text(config["architecture"], "architecture")
    if architecture not in VARIANTS:
        raise UserError(
            f"its architecture is {_shown(architecture)}, which is not supported; expected one of {', '.join(VARIANTS)}"
        )
    pretrained_cfg = _object(config.get("pretrained_cfg"), "pretrained_cfg") or config  # at the root in old files
    arguments, own = _object(config.get("model_args"), "model_args"), _object(config.get(OWN_KEY), OWN_KEY)
    architecture = _own_name(architecture, own.get("architecture"))
    variant = get_variant(architecture)

    activation = _text(own.get("activation", "gelu"), "activation")
    if activation not in GELU_FORMS:
        raise UserError(f"it has the activation {_shown(activation)}; known are {', '.join(GELU_FORMS)}")
    side = variant.image_size
    channels, *sides = _list_of(3, pretrained_cfg.get("input_size") or [3, side, side], "input_size")
    size = arguments.get("img_size") or sides
    height, width = (size, size) if isinstance(size, int | float) else _list_of(2, size, "img_size")
    grid = own.get("trained_grid")
    geometry = Geometry(
        image_size=(_whole(height, "img_size", 1, _MOST_PIXELS), _whole(width, "img_size", 1, _MOST_PIXELS)),
        patch_size=_whole(own.get("patch_size", variant.patch_size), "patch_size", 1, _MOST_PIXELS),
        in_chans=_whole(arguments.get("in_chans", channels), "in_chans", 1, 4),
        token_hidden=_token_hidden(arguments.get("mlp_ratio"), own.get("token_hidden"), variant.embed_dim),
        trained_grid=_grid(grid) if grid else None,
        image_sizes=_sizes(own.get("image_sizes")),
    )
    geometry.check(architecture)
    _check_ratio(arguments.get("mlp_ratio"), architecture)
    num_classes = config.get("num_classes", pretrained_cfg.get("num_classes", 1000))
    num_classes = _whole(num_classes, "num_classes", 0, _MOST_CLASSES)
    preprocessing = Preprocessing.from_pretrained_cfg(pretrained_cfg, geometry.image_size)
    if len(preprocessing.mean) not in (3, geometry.in_chans):
        raise UserError(f"mean and std have {len(preprocessing.mean)} values for {geometry.in_chans} channels")
    names = config.get("label_names") or pretrained_cfg.get("label_names")
    license = pretrained_cfg.get("license")
    return ModelConfig(
        architecture,
        num_classes,
        geometry,
        activation,
        preprocessing.with_channels(geometry.in_chans),
        _label_names(names, num_classes) if names and num_classes else None,
        None if license is None else _text(license, "license"),
        _task(own.get("task"), config.get("problem_type")),
    )


def _own_name(architecture: str, own: Any) -> str:
    """The architecture's name here, where timm's is that of another with other arguments."""
    if own is None:
        return architecture
    if VARIANTS.get(_text(own, "architecture")) is None or VARIANTS[own].timm_name != architecture:
        raise UserError(f"its architecture is {architecture} and {_shown(own)}, which differ")
    return str(own)


def _check_ratio(ratio: Any, architecture: str) -> None:
    """Refuse another width of the channel MLP than the architecture's, which the weights would not fit."""
    expected = get_variant(architecture).mlp_ratio[1]
    if isinstance(ratio, list | tuple) and _list_of(2, ratio, "mlp_ratio")[1] != expected:
        raise UserError(
            f"its channel MLPs are {_shown(ratio[1])} times as wide as C, those of {architecture} {expected:g}"
        )


def _task(own: Any, problem_type: Any) -> str:
    """What the head answers, by our `task` or the `problem_type` of transformers."""
    if own is None:
        return TASK_NAMES[problem_type == "multi_label_classification"]
    if _text(own, "task") not in TASK_NAMES:
        raise UserError(f"it has the task {_shown(own)}; known are {', '.join(TASK_NAMES)}")
    return str(own)


def _token_hidden(ratio: Any, width: Any, embed_dim: int) -> int | None:
    """Hidden width of the token MLP by timm's `mlp_ratio` or our `token_hidden`; None for the architecture's own."""
    if isinstance(ratio, list | tuple):
        ratio = _list_of(2, ratio, "mlp_ratio")[0]
        if not isinstance(ratio, int | float) or not 0 < ratio < _MOST_HIDDEN:
            raise UserError(f"mlp_ratio must hold two numbers above 0, got {_shown(ratio)}")
        width = round(ratio * embed_dim)
    return None if width is None else _whole(width, "the hidden width of the token MLP", 1, _MOST_HIDDEN)


def _grid(value: Any) -> tuple[int, int]:
    rows, columns = _list_of(2, value, "trained_grid")
    return _whole(rows, "trained_grid", 1, _MOST_PIXELS), _whole(columns, "trained_grid", 1, _MOST_PIXELS)


def _sizes(value: Any) -> tuple[tuple[int, int], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise UserError(f"image_sizes must be a list of sizes, got {_shown(value)}")
    pairs = [_list_of(2, size, "each of image_sizes") for size in value]
    return tuple(
        (_whole(h, "image_sizes", 1, _MOST_PIXELS), _whole(w, "image_sizes", 1, _MOST_PIXELS)) for h, w in pairs
    )


def _label_names(value: Any, num_classes: int) -> list[str]:
    if not isinstance(value, list):
        raise UserError(f"label_names must be a list of names, got {_shown(value)}")
    for name in value:
        _text(name, "each of label_names")
    if len(value) != num_classes:
        raise UserError(f"it has {len(value)} label_names for {num_classes} classes")
    return value


def _object(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{name} must be an object, got {_shown(value)}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name} must be text, got {_shown(value)}")
    return value


def _list_of(length: int, value: Any, name: str) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) != length:
        raise UserError(f"{name} must be a list of {length} numbers, got {_shown(value)}")
    return list(value)


def _whole(value: Any, name: str, low: int, high: int) -> int:
    is_whole = isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and value.is_integer()
    if not is_whole or not low <= value <= high:
        raise UserError(f"{name} must be a whole number from {low} to {high}, got {_shown(value)}")
    return int(value)


def _shown(value: Any) -> str:
    """A value in an error: cut short, and None as JSON has it."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
