"""The command `backbones`: which architectures and published weights there are. It imports no torch."""

from __future__ import annotations

import difflib

from mixer_finetune.backbones.families import GOOGLE_FILES, VARIANTS, Variant, Weights, model_size, preprocessing_of
from mixer_finetune.errors import UserError

USAGE = """usage: mixer-finetune backbones [show NAME]

  backbones            list architectures: parameters, multiply-accumulates, resolution, published weights
  backbones show NAME  tell more of one: sizes, pre-processing, how to use each of its weights

Any of them can be used at another resolution: --model.image_size 448."""
SOURCE = (
    "ImageNet-1k top-1 at 224 px by timm's result files; parameters and GMACs (matrix products) without head, by arithmetic"
)


def main(arguments: list[str]) -> int:
    """Run the command."""
    if arguments in (["--help"], ["-h"]):
        print(USAGE)
    elif not arguments:
        _list()
    elif len(arguments) == 2 and arguments[0] == "show":
        _show(arguments[1])
    else:
        raise UserError("expected: backbones [show NAME]; see backbones --help")
    return 0


def _list() -> None:
    print(f"{'architecture':<19} {'M params':>8} {'GMACs':>7} {'px':>4}  published weights on the Hub (top-1 %)")
    for name, variant in VARIANTS.items():
        parameters, macs = model_size(name)
        tags = ", ".join(
            w.tag + (f" ({w.top1:.2f})" if w.top1 else "") + (" (!)" if w.warning else "") for w in variant.weights
        )
        google = sum(architecture == name for architecture in GOOGLE_FILES.values())
        if google:
            tags += f"{'; ' if tags else ''}{google} Flax file(s) of Google's"
        bundled = "bundled as mixer_nano" if name == "mixer_nano_32" else "-"
        print(f"{name:<19} {parameters / 1e6:>8.2f} {macs / 1e9:>7.2f} {variant.image_size:>4}  {tags or bundled}")
    print(f"\n{SOURCE}. (!): see backbones show NAME.")


def _show(name: str) -> None:
    architecture = name.removeprefix("timm/").partition(".")[0]
    if architecture not in VARIANTS:
        near = difflib.get_close_matches(architecture, VARIANTS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown backbone '{name}'; {hint}known are {', '.join(VARIANTS)}")
    variant = VARIANTS[architecture]
    parameters, macs = model_size(architecture)
    rows, columns = variant.geometry().grid
    print(f"{architecture} ({variant.family}): {parameters:,} parameters, {macs / 1e9:.2f} GMACs, both without head")
    print(f"  {variant.image_size} px in {rows} x {columns} patches of {variant.patch_size}, {variant.num_blocks} blocks")
    hidden = f"token MLP {variant.token_hidden}, " if variant.token_hidden else ""
    print(f"  {variant.embed_dim} channels, hidden widths: {hidden}channel MLP {variant.channel_hidden}")
    print(f"  fresh weights: --model.backbone {architecture}")
    for weights in variant.weights:
        _show_weights(architecture, variant, weights)
    for file, of in GOOGLE_FILES.items():
        if of == architecture:
            print(f"  --model.backbone gs://mixer_models/{file}\n    Google's Flax file (tanh GELU); no licence stated for it")


def _show_weights(architecture: str, variant: Variant, weights: Weights) -> None:
    top1 = f", ImageNet-1k top-1 {weights.top1:.3f}%" if weights.top1 else ""
    print(f"  --model.backbone timm/{architecture}.{weights.tag}\n    {weights.num_classes:,} classes{top1}")
    stated = preprocessing_of(variant, weights)
    print(f"    mean {stated.mean}, std {stated.std}, {stated.interpolation}, crop {stated.crop_pct}")
    if weights.warning:
        print(f"    warning: {weights.warning}")
