"""The command `backbones`: which architectures and published weights there are. It imports no torch."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from mixer_finetune.backbones.listing import LISTING_FILE, read_listing
from mixer_finetune.errors import UserError

USAGE = """usage: mixer-finetune backbones [show NAME]

  backbones            list architectures: parameters, multiply-accumulates, resolution, published weights
  backbones show NAME  tell more of one: sizes, pre-processing, how to use each of its weights

Any of them can be used at another resolution: --model.image_size 448."""
SOURCE = "ImageNet-1k top-1 at 224 px by timm's result files; parameters and GMACs (matrix products) without head"


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: The words are not the command's, or there is no such architecture.
    """
    if arguments in (["--help"], ["-h"]):
        print(USAGE)
    elif not arguments:
        print(table())
    elif len(arguments) == 2 and arguments[0] == "show":
        print(description(arguments[1]))
    else:
        raise UserError("expected: backbones [show NAME]; see backbones --help")
    return 0


def _architectures(path: Path = LISTING_FILE) -> dict[str, Any]:
    """What is listed of each: from the file, or counted anew, which imports torch and takes seconds."""
    listed = read_listing(path)
    if listed is None:
        from mixer_finetune.backbones.size import listing

        listed = listing()
    return listed


def table() -> str:
    """A line for each architecture."""
    lines = [f"{'architecture':<19} {'M params':>8} {'GMACs':>7} {'px':>4}  published weights on the Hub (top-1 %)"]
    for name, listed in _architectures().items():
        tags = ", ".join(
            weights["tag"]
            + (f" ({weights['top1']:.2f})" if weights["top1"] else "")
            + (" (!)" if weights["warning"] else "")
            for weights in listed["weights"]
        )
        google = f"{len(listed['google_files'])} Flax file(s) of Google's" if listed["google_files"] else ""
        bundled = f"bundled as {listed['bundled']}" if listed["bundled"] else ""
        published = "; ".join(filter(None, (tags, google, bundled))) or "-"
        sizes = f"{listed['parameters'] / 1e6:>8.2f} {listed['macs'] / 1e9:>7.2f} {listed['image_size']:>4}"
        lines.append(f"{name:<19} {sizes}  {published}")
    return "\n".join([*lines, "", f"{SOURCE}. (!): see backbones show NAME."])


def description(name: str) -> str:
    """All that is known of an architecture, in lines.

    Args:
        name: Of the architecture, with or without `timm/` before it and the tag of weights behind it.

    Raises:
        UserError: There is no such architecture.
    """
    listing = _architectures()
    architecture = name.removeprefix("timm/").partition(".")[0]
    if architecture not in listing:
        near = difflib.get_close_matches(architecture, listing, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown backbone '{name}'; {hint}known are {', '.join(listing)}")
    listed = listing[architecture]
    rows, columns = listed["grid"]
    size = f"{listed['parameters']:,} parameters, {listed['macs'] / 1e9:.2f} GMACs, both without head"
    patches = f"{rows} x {columns} patches of {listed['patch_size']}"
    token_mlp = f"token MLP {listed['token_hidden']}, " if listed["token_hidden"] else ""
    lines = [
        f"{architecture} ({listed['family']}): {size}",
        f"  {listed['image_size']} px in {patches}, {listed['num_blocks']} blocks",
        f"  {listed['embed_dim']} channels, hidden widths: {token_mlp}channel MLP {listed['channel_hidden']}",
        f"  fresh weights: --model.backbone {architecture}",
    ]
    if listed["bundled"]:
        lines.append(f"  --model.backbone {listed['bundled']}\n    bundled with this package")
    for weights in listed["weights"]:
        lines += _described(architecture, weights)
    for file in listed["google_files"]:
        lines.append(f"  --model.backbone gs://mixer_models/{file}")
        lines.append("    Google's Flax file (tanh GELU); no licence stated for it")
    return "\n".join(lines)


def _described(architecture: str, weights: dict[str, Any]) -> list[str]:
    top1 = f", ImageNet-1k top-1 {weights['top1']:.3f}%" if weights["top1"] else ""
    mean, std = tuple(weights["mean"]), tuple(weights["std"])
    lines = [
        f"  --model.backbone timm/{architecture}.{weights['tag']}",
        f"    {weights['num_classes']:,} classes{top1}",
        f"    mean {mean}, std {std}, {weights['interpolation']}, crop {weights['crop_pct']}",
    ]
    return [*lines, f"    warning: {weights['warning']}"] if weights["warning"] else lines
