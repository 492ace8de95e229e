"""The report's part on weights: token mixing and patch embedding, before and after fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import VARIANTS
from mixer_finetune.backbones.load import read_model
from mixer_finetune.backbones.preprocessing import as_pair
from mixer_finetune.backbones.resize import plan_resize, resize_weights
from mixer_finetune.backbones.tokens import TokenLinear
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation import page
from mixer_finetune.evaluation.explain import opposite_pairs
from mixer_finetune.evaluation.mosaics import colour_units, signed_units
from mixer_finetune.evaluation.results import options_of

UNITS, UNIT_BLOCKS = 48, 3
_STEM = "stem.proj.weight"
Arrays = Mapping[str, NDArray[np.float32]]


def weights_section(config: dict[str, Any], backbone: Backbone, say: Callable[[str], None]) -> str:
    """Token mixing of the first blocks and the patch embedding, before and after.

    Of Mixer the units are the hidden units of the token MLP, as in figure 5 of arXiv 2105.01601; of ResMLP and gMLP the
    rows of the one matrix across tokens, each being what an output token gathers. The filters are its figure 7.

    Args:
        config: Of the run, which names the weights that it started from.
        backbone: As it is after the run.
        say: Is told what takes time.
    """
    say("drawing the weights")
    state = backbone.state_dict()
    names = [*token_weight_names(backbone), _STEM]
    sheets: dict[str, Arrays] = {"after": _as_arrays({name: state[name] for name in names})}
    note = (
        f"<p>The {UNITS} strongest units of the first map across tokens in the first blocks, as maps over the image, "
        "in pairs of opposite phase from low to high frequency (figure 5 of the Mixer paper; red above zero, blue "
        "below), and the strongest filters of the patch embedding (its figure 7).</p>"
    )
    try:
        sheets = {"before": _as_arrays(starting_weights(config, backbone, names)), **sheets}
    except UserError as error:
        note += f"<p>What they were before can't be shown: {page.text(error)}.</p>"
    grid = backbone.geometry.mixing_grid
    parts = [_units(f"Token mixing, block {i + 1}", name, sheets, grid) for i, name in enumerate(names[:-1])]
    return page.section("What the weights look like", note + "".join(parts) + _filters(sheets))


def token_weight_names(backbone: Backbone) -> list[str]:
    """Names of the weights of the first map across tokens in each of the first blocks."""
    return [
        next(f"blocks.{i}.{name}.weight" for name, module in block.named_modules() if isinstance(module, TokenLinear))
        for i, block in enumerate(list(backbone.blocks)[:UNIT_BLOCKS])
    ]


def _units(title: str, name: str, sheets: Mapping[str, Arrays], grid: tuple[int, int]) -> str:
    maps = {when: weights[name].reshape(-1, *grid) for when, weights in sheets.items()}
    strongest = np.argsort(-np.linalg.norm(maps["after"], axis=(1, 2)), kind="stable")[:UNITS]
    order = strongest[opposite_pairs(maps["after"][strongest])]
    return page.sheets(title, [(when, signed_units(units[order])) for when, units in maps.items()])


def _filters(sheets: Mapping[str, Arrays]) -> str:
    strength = np.square(sheets["after"][_STEM]).sum((1, 2, 3))
    order = np.argsort(-strength, kind="stable")[:UNITS]
    return page.sheets("Patch embedding", [(when, colour_units(w[_STEM][order])) for when, w in sheets.items()])


def _as_arrays(weights: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    return {name: weight.detach().float().cpu().numpy() for name, weight in weights.items()}


def starting_weights(config: dict[str, Any], backbone: Backbone, names: list[str]) -> dict[str, Tensor]:
    """Some weights as `load_backbone` gave them to the run, without the time that all the others would take.

    Args:
        config: Of the run.
        backbone: That the run made of them.
        names: Of weights of the first blocks, and of the patch embedding.

    Raises:
        UserError: They can't be had any more, or are of another size.
    """
    options = options_of(config, "model")
    source, size = options.get("backbone"), options.get("image_size")
    if not isinstance(source, str):
        raise UserError("the configuration names no backbone")
    asked = (None if size is None else as_pair(size), options.get("patch_size"), options.get("in_chans"))
    resize = options.get("resize", "auto")
    if source in VARIANTS and not Path(source).exists():
        method = "interpolate" if resize == "auto" else resize
        geometry, _ = plan_resize(source, VARIANTS[source].geometry(), *asked, method)
        _check_same(backbone, source, geometry)
        return _fresh_weights(backbone, names, int(config.get("seed_everything") or 0))
    start, weights, _ = read_model(source, options.get("revision"))
    geometry, method = plan_resize(start.architecture, start.geometry, *asked, resize)
    _check_same(backbone, start.architecture, geometry)
    if missing := [name for name in names if name not in weights]:
        raise UserError(f"{source} has no {missing[0]}")
    shown = {name: weights[name].float() for name in names}
    if geometry == start.geometry:
        return shown
    return resize_weights(shown, start.geometry, geometry, method, backbone.family.sides)


def _check_same(backbone: Backbone, architecture: str, geometry: Any) -> None:
    if (architecture, geometry) != (backbone.architecture, backbone.geometry):
        raise UserError("the backbone that the configuration names is now another one")


def _fresh_weights(backbone: Backbone, names: list[str], seed: int) -> dict[str, Tensor]:
    # Weights are drawn in order, so those of the first blocks do not depend on how many blocks come after them.
    with torch.device("meta"):
        first = Backbone(backbone.architecture, 0, backbone.geometry)
        del first.blocks[UNIT_BLOCKS:]
    first.to_empty(device="cpu").reset_parameters(seed)
    state = first.state_dict()
    return {name: state[name] for name in names}
