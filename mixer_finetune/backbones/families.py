"""The table of architectures, under timm's names, and of the published weights for them."""

from __future__ import annotations

import difflib
from dataclasses import replace
from importlib import import_module

from mixer_finetune.backbones.family import Family, Variant, Weights
from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.errors import UserError

# Modules of this folder that end with a `FAMILY`, in the order of the listing.
_MODULES = (
    "mixer",
    "gmixer",
    "resmlp",
    "gmlp",
)

FAMILIES: tuple[Family, ...] = tuple(import_module(f"{__package__}.{name}").FAMILY for name in _MODULES)
VARIANTS: dict[str, Variant] = {name: variant for family in FAMILIES for name, variant in family.variants.items()}
# The architecture of each of the weights that come with this package.
BUNDLED: dict[str, str] = {variant.bundled: name for name, variant in VARIANTS.items() if variant.bundled}


def get_variant(architecture: str) -> Variant:
    """The sizes of an architecture.

    Raises:
        UserError: No such architecture.
    """
    if architecture not in VARIANTS:
        near = difflib.get_close_matches(architecture, VARIANTS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"unknown architecture '{architecture}'{hint}; known are {', '.join(VARIANTS)}")
    return VARIANTS[architecture]


def get_family(architecture: str) -> Family:
    """The family of an architecture.

    Raises:
        UserError: No such architecture.
    """
    get_variant(architecture)
    return next(family for family in FAMILIES if architecture in family.variants)


def tagged(name: str) -> tuple[Variant, Weights] | None:
    """The variant and weights that `architecture.tag` means, with or without `timm/` before it."""
    architecture, _, tag = name.removeprefix("timm/").partition(".")
    variant = VARIANTS.get(architecture)
    found = [weights for weights in variant.weights if weights.tag == tag] if variant else []
    return (variant, found[0]) if variant and found else None


def preprocessing_of(variant: Variant, weights: Weights) -> Preprocessing:
    """How images are prepared for published weights."""
    return replace(variant.preprocessing(variant.geometry()), **weights.preprocessing)
