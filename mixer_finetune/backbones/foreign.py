"""Files of weights that others publish, brought to timm's names: Google's Flax `.npz`, Facebook's and OpenMMLab's
`.pth`.

Such files say nothing of their architecture: it is told from the names and shapes of what they hold. The names that a
family's weights have elsewhere stand in the family's file.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mixer_finetune.backbones.adapters import merged_state
from mixer_finetune.backbones.families import FAMILIES
from mixer_finetune.backbones.family import Rule, Variant
from mixer_finetune.backbones.folder import ModelConfig, parse_config
from mixer_finetune.backbones.geometry import Geometry
from mixer_finetune.errors import UserError

_FLAX_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def read_weights(path: Path) -> tuple[ModelConfig | None, dict[str, Tensor]]:
    """The config that a file of weights holds or implies, and its weights by timm's names.

    Args:
        path: A .safetensors or .bin file (which says nothing of its config: that is None), .npz, .pth or .pt, or a
            Lightning checkpoint of ours (.ckpt).

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
    if "model_config" in content:
        return parse_config(content["model_config"], f"the model_config of {path}"), _from_lightning(content, path)
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    weights = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError(f"{path} holds no weights; expected tensors by name, or a checkpoint of mixer_finetune")
    for layout in (layout for family in FAMILIES for layout in family.layouts):
        if layout.marker in weights:
            weights = {_renamed(name, layout.rules): value for name, value in weights.items()}
            if layout.convert is not None:
                weights = {name: layout.convert(name, value) for name, value in weights.items()}
            break
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
    if not _has_its_checksums(path):
        raise UserError(f"{path} can't be read: the file is damaged (a checksum of its archive differs)")
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no weights by name, but a {type(content).__name__}")
    return content


def _has_its_checksums(path: Path) -> bool:
    """Whether the parts of an archive have the checksums that it states, which torch does not compare.

    A file of torch's older form is no archive, and one written without checksums states 0 for each: both pass.
    """
    if not zipfile.is_zipfile(path):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.CRC:
                    with archive.open(part) as content:
                        while content.read(2**20):
                            pass
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError):
        return False
    return True


def _from_lightning(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint of ours: `backbone.*`, with the head as `head.*`; in older ones `backbone.head.*`."""
    state = content.get("state_dict")
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a whole checkpoint: it has no state_dict")
    body = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    whole = {**body, **{key: value for key, value in state.items() if key.startswith("head.")}}
    return merged_state(whole, content["adapter_factor"]) if "adapter_factor" in content else whole


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name.removeprefix("params/"): file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        if "allow_pickle" in str(error):
            raise UserError(f"{path} is refused: it holds pickled objects, not only arrays") from error
        raise UserError(f"{path} can't be read: the file is damaged or cut off") from error


def _from_flax(arrays: dict[str, NDArray[Any]], path: Path) -> dict[str, Tensor]:
    """Flax's arrays by timm's names.

    Kernels are stored input first: (in, out), and (height, width, in, out) for the patch embedding. Older files have
    further axes of length one.
    """
    rules = [rule for family in FAMILIES for rule in family.flax_rules]
    weights = {}
    for name, array in arrays.items():
        module, _, leaf = _renamed(name, rules).rpartition(".")
        if leaf not in _FLAX_LEAVES or not module:
            known = " or ".join(family.name for family in FAMILIES if family.flax_rules)
            raise UserError(f"{path} holds '{name}', which is in no Flax file of a {known}")
        axes = 1 if leaf != "kernel" else 4 if module == "stem.proj" else 2
        tensor = torch.from_numpy(np.ascontiguousarray(array.squeeze() if array.ndim > axes else array))
        if leaf == "kernel":
            tensor = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
        weights[f"{module}.{_FLAX_LEAVES[leaf]}"] = tensor.contiguous()
    return weights


def _renamed(name: str, rules: Iterable[Rule]) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    return name


def implied_config(weights: dict[str, Tensor], path: Path, activation: str = "gelu") -> ModelConfig:
    """The config of weights that come without one: that of the architecture whose names and sizes they have.

    Args:
        weights: By timm's names.
        path: Of the file, for an error.
        activation: One of `GELU_FORMS`.

    Raises:
        UserError: They are of no architecture of the table.
    """
    stem = weights.get("stem.proj.weight")
    recognised = ((family, shape) for family in FAMILIES if (shape := family.recognise(weights)) is not None)
    family, shape = next(recognised, (None, None))
    if stem is None or stem.ndim != 4 or family is None or shape is None:
        known = ", ".join(sorted(family.name for family in FAMILIES))
        names = ", ".join(sorted(weights)[:4])
        raise UserError(f"{path} holds no weights of a known family ({known}): it begins with {names}")
    tokens, token_hidden = shape
    channels, in_chans, patch, _ = stem.shape
    blocks = 1 + max((int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))), default=-1)

    def distance(item: tuple[str, Variant]) -> tuple[bool, bool]:
        _, variant = item
        rows = variant.image_size // variant.patch_size
        return variant.patch_size != patch, rows * rows != tokens

    same = [(n, v) for n, v in family.variants.items() if (v.num_blocks, v.embed_dim) == (blocks, channels)]
    side = math.isqrt(tokens)
    if not same or side * side != tokens:
        raise UserError(
            f"{path} is a {family.name} of {blocks} blocks, {channels} channels and {tokens} tokens, which is no "
            "architecture of the table (see: mixer-finetune backbones); save it as a model folder with a config.json"
        )
    architecture, variant = min(same, key=distance)
    geometry = Geometry(
        (side * patch, side * patch), patch, in_chans, None if token_hidden == variant.token_hidden else token_hidden
    )
    geometry.check(architecture)
    head = weights.get("head.weight")
    return ModelConfig(
        architecture, 0 if head is None else len(head), geometry, activation, variant.preprocessing(geometry)
    )
