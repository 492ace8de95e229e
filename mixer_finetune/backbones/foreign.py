"""Files of weights that others publish, brought to timm's names: Google's Flax `.npz`, Facebook's and OpenMMLab's `.pth`.

Such files say nothing of their architecture: it is told from the names and shapes of what they hold.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mixer_finetune.backbones.families import VARIANTS, Geometry, Variant
from mixer_finetune.errors import UserError

OWN_KEY = "mixer_finetune"  # of config.json: what timm has no terms for

# Names of the Mixer's Flax code (google-research/vision_transformer), and timm's.
_FLAX = (
    (r"stem/", "stem.proj."),
    (r"MixerBlock_(\d+)/LayerNorm_0/", r"blocks.\1.norm1."),
    (r"MixerBlock_(\d+)/LayerNorm_1/", r"blocks.\1.norm2."),
    (r"MixerBlock_(\d+)/(token|channel)_mixing/Dense_0/", r"blocks.\1.mlp_\2s.fc1."),
    (r"MixerBlock_(\d+)/(token|channel)_mixing/Dense_1/", r"blocks.\1.mlp_\2s.fc2."),
    (r"pre_head_layer_norm/", "norm."),
    (r"head/", "head."),
)
# Its older layout, brought to the newer one.
_OLD_FLAX = (
    (r"embedding/", "stem/"),
    (r"Mixer/encoder_norm/", "pre_head_layer_norm/"),
    (r"Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_0/(kernel|bias)1", r"MixerBlock_\1/\2_mixing/Dense_0/\3"),
    (r"Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_0/(kernel|bias)2", r"MixerBlock_\1/\2_mixing/Dense_1/\3"),
    (r"Mixer/encoderblock_(\d+)/", r"MixerBlock_\1/"),
)
_FLAX_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_FACEBOOK = (
    (r"patch_embed\.", "stem."),
    (r"(blocks\.\d+)\.attn\.", r"\1.linear_tokens."),
    (r"(blocks\.\d+)\.mlp\.", r"\1.mlp_channels."),
    (r"(blocks\.\d+)\.gamma_", r"\1.ls"),
)
_OPENMMLAB = (
    (r"backbone\.patch_embed\.projection\.", "stem.proj."),
    (r"backbone\.layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"backbone\.layers\.(\d+)\.(token|channel)_mix\.layers\.0\.0\.", r"blocks.\1.mlp_\2s.fc1."),
    (r"backbone\.layers\.(\d+)\.(token|channel)_mix\.layers\.1\.", r"blocks.\1.mlp_\2s.fc2."),
    (r"backbone\.ln1\.", "norm."),
    (r"head\.fc\.", "head."),
)


def read_weights(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """The config that a file of weights implies, and its weights by timm's names.

    Args:
        path: A .safetensors file (which says nothing: the config is None and stands beside it), .npz, .pth, .pt, .bin, or
            a Lightning checkpoint of ours (.ckpt).

    Raises:
        UserError: The file is damaged, holds code, or is of no known layout.
    """
    if path.suffix == ".safetensors":
        try:
            return None, load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} can't be read ({error}): the file is damaged or cut off") from error
    if path.suffix == ".npz":
        weights = _from_flax(_read_npz(path), path)
        return implied_config(weights, path, activation="gelu_tanh"), weights
    content = load_checkpoint(path)
    if "model_config" in content:  # a Lightning checkpoint of ours
        prefix = "backbone."
        state = content["state_dict"]
        return content["model_config"], {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    weights = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError(f"{path} holds no weights; expected tensors by name, or a checkpoint of mixer_finetune")
    if "patch_embed.proj.weight" in weights:
        weights = {key: _affine(key, value) for key, value in _renamed(weights, _FACEBOOK).items()}
    elif "backbone.patch_embed.projection.weight" in weights:
        weights = _renamed(weights, _OPENMMLAB)
    return None if path.suffix == ".bin" else implied_config(weights, path), weights


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of PyTorch's without running any code that it may hold.

    Raises:
        UserError: The file is damaged, or holds more than tensors and plain values.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise UserError(
                f"{path} is refused: it holds pickled code or objects, not only weights; use a safetensors model folder"
            ) from error
        raise UserError(f"{path} can't be read: the file is damaged or cut off") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} can't be read: the file is damaged or cut off") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no weights by name, but a {type(content).__name__}")
    return content


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name.removeprefix("params/"): file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        if "allow_pickle" in str(error):
            raise UserError(f"{path} is refused: it holds pickled objects, not only arrays") from error
        raise UserError(f"{path} can't be read: the file is damaged or cut off") from error


def _from_flax(arrays: dict[str, np.ndarray], path: Path) -> dict[str, Tensor]:
    """Kernels are stored input first: (in, out), and (height, width, in, out) for the patch embedding."""
    old_layout = any(name.startswith("Mixer/") for name in arrays)
    weights = {}
    for name, array in arrays.items():
        if old_layout:
            name = _rename(name, _OLD_FLAX)
            array = array.squeeze() if "mixing" in name else array
        module, _, leaf = _rename(name, _FLAX).rpartition(".")
        if leaf not in _FLAX_LEAVES or not module:
            raise UserError(f"{path} holds '{name}', which no Mixer has: expected Google's Flax weights of a Mixer")
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if leaf == "kernel":
            tensor = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
        weights[f"{module}.{_FLAX_LEAVES[leaf]}"] = tensor.contiguous()
    return weights


def _renamed(weights: dict[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    return {_rename(name, rules): value for name, value in weights.items()}


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    return name


def _affine(name: str, value: Tensor) -> Tensor:
    """Facebook keeps the affine maps' parameters as (C,), timm as (1, 1, C)."""
    return value.view(1, 1, -1) if name.endswith((".alpha", ".beta")) else value


def implied_config(weights: dict[str, Tensor], path: Path, activation: str = "gelu") -> dict[str, Any]:
    """What config.json would say of weights: the architecture whose names and sizes they have.

    Raises:
        UserError: They are of no architecture of the table.
    """
    stem = weights.get("stem.proj.weight")
    family, tokens, token_hidden = _family(weights)
    if stem is None or stem.ndim != 4 or family is None:
        known = ", ".join(sorted({variant.family for variant in VARIANTS.values()}))
        names = ", ".join(sorted(weights)[:4])
        raise UserError(f"{path} holds no weights of a known family ({known}): it begins with {names}")
    channels, in_chans, patch, _ = stem.shape
    blocks = 1 + max((int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))), default=-1)

    def distance(item: tuple[str, Variant]) -> tuple[bool, bool]:
        _, variant = item
        rows = variant.image_size // variant.patch_size
        return variant.patch_size != patch, rows * rows != tokens

    same = [(n, v) for n, v in VARIANTS.items() if (v.family, v.num_blocks, v.embed_dim) == (family, blocks, channels)]
    side = math.isqrt(tokens)
    if not same or side * side != tokens:
        raise UserError(
            f"{path} is a {family} of {blocks} blocks, {channels} channels and {tokens} tokens, which is no architecture of "
            "the table (see: mixer-finetune backbones); save it as a model folder with a config.json"
        )
    architecture, variant = min(same, key=distance)
    geometry = Geometry((side * patch, side * patch), patch, in_chans)
    own: dict[str, Any] = {} if activation == "gelu" else {"activation": activation}
    if patch != variant.patch_size:
        own["patch_size"] = patch
    if token_hidden not in (None, variant.token_hidden):
        own["token_hidden"] = token_hidden
    return {
        "architecture": architecture,
        "num_classes": len(weights["head.weight"]) if "head.weight" in weights else 0,
        "model_args": {"img_size": side * patch, "in_chans": in_chans},
        "pretrained_cfg": variant.preprocessing(geometry).to_pretrained_cfg(),
        OWN_KEY: own,
    }


def _family(weights: dict[str, Tensor]) -> tuple[str | None, int, int | None]:
    """Family, number of tokens, and hidden width of the token MLP where there is one."""
    if (first := weights.get("blocks.0.mlp_tokens.fc1.weight")) is not None and first.ndim == 2:
        second = weights.get("blocks.0.mlp_tokens.fc2.weight")
        gated = second is not None and second.shape[-1] * 2 == len(first)
        return "gmixer" if gated else "mixer", first.shape[1], len(first)
    for family, name in (("resmlp", "blocks.0.linear_tokens.weight"), ("gmlp", "blocks.0.mlp_channels.gate.proj.weight")):
        if (matrix := weights.get(name)) is not None:
            return family, len(matrix), None
    return None, 0, None
