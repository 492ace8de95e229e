"""How large an architecture is, counted on the model itself; and the listing of all of them.

    python -m mixer_finetune.backbones.size     writes assets/backbones.json, which the command `backbones` prints

A developer who changes a file of this folder runs that again; until then the command counts anew, which takes seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import VARIANTS, get_family, preprocessing_of
from mixer_finetune.backbones.family import Variant
from mixer_finetune.backbones.geometry import Geometry
from mixer_finetune.backbones.listing import LISTING_FILE, source_hash
from mixer_finetune.files import write_text


class Size(NamedTuple):
    """Size of a model.

    Attributes:
        parameters: How many.
        macs: Multiply-accumulates of the matrix products for one image.
    """

    parameters: int
    macs: int


def model_size(architecture: str, geometry: Geometry | None = None, num_classes: int = 0) -> Size:
    """The size of a model, which is built and run without memory for its numbers (on the meta device).

    Args:
        architecture: A name of the table.
        geometry: The architecture's own when None.
        num_classes: Of the head; 0 for none.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = Backbone(architecture, num_classes, geometry)
        model(torch.empty(1, model.geometry.in_chans, *model.image_size))
    # The counter takes a multiplication and an addition as two.
    return Size(sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2)


def listing() -> dict[str, Any]:
    """What the command `backbones` prints of each architecture, without heads, by name."""
    return {name: _listed(name, variant) for name, variant in VARIANTS.items()}


def _listed(architecture: str, variant: Variant) -> dict[str, Any]:
    size = model_size(architecture)
    weights = []
    for published in variant.weights:
        prepared = preprocessing_of(variant, published)
        weights.append(
            {
                "tag": published.tag,
                "num_classes": published.num_classes,
                "top1": published.top1,
                "warning": published.warning,
                "mean": list(prepared.mean),
                "std": list(prepared.std),
                "interpolation": prepared.interpolation,
                "crop_pct": prepared.crop_pct,
            }
        )
    return {
        "family": get_family(architecture).name,
        "parameters": size.parameters,
        "macs": size.macs,
        "image_size": variant.image_size,
        "grid": list(variant.geometry().grid),
        "patch_size": variant.patch_size,
        "num_blocks": variant.num_blocks,
        "embed_dim": variant.embed_dim,
        "token_hidden": variant.token_hidden,
        "channel_hidden": variant.channel_hidden,
        "weights": weights,
        "google_files": list(variant.google_files),
        "bundled": variant.bundled,
    }


def write_listing(path: Path = LISTING_FILE) -> None:
    """Write the listing, and the hash of the files that it was made from."""
    content = {"source_hash": source_hash(), "architectures": listing()}
    write_text(path, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    write_listing()
    print(f"wrote {LISTING_FILE}")
