"""`mixer-finetune probe`: its own options beside those of the data, which are `fit`'s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mixer_finetune.cli.command import Command
from mixer_finetune.cli.mixed import apart, check_rest
from mixer_finetune.cli.tables import print_table
from mixer_finetune.errors import UserError

USAGE = "probe [--backbone NAME] ... [--image_size S] ... [--recipe NAME] ... [--data.source DATA] [options]"
# May be given several times.
_REPEATED = ("backbone", "image_size", "resize", "shots")
_NAMES = {"ridge": "ridge", "logistic": "logistic", "knn": "kNN"}


def options(
    *,
    backbone: list[str] | None = None,
    image_size: list[int | tuple[int, int]] | None = None,
    resize: list[str] | None = None,
    layers: Literal["pre-logits", "all"] = "pre-logits",
    shots: list[int] | None = None,
    seeds: int = 3,
    output: str | None = None,
    device: str | None = None,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
) -> dict[str, Any]:
    """Which backbone, block and resolution transfer best to your images: from frozen features, in seconds each.

    Nothing is trained but linear probes: ridge regression in closed form, logistic regression and nearest neighbours,
    with few-shot accuracy beside them. All is chosen on the dev split; the best is then measured on the test split.
    Features are computed once, and kept for the next probe and for fit.

    Args:
        backbone: Hub id, model or run folder, checkpoint or name; may be given several times; the recipe's when not
            given.
        image_size: Side, or [height, width], in pixels; may be given several times; the backbone's own when not given.
        resize: How weights are brought to another size, as --model.resize of fit; may be given several times.
        layers: all probes each block's output, averaged over the tokens, beside the pre-logits.
        shots: Images a class of the few-shot tasks; may be given several times; 0 for none; 1, 5, 10 and 25 when not
            given.
        seeds: How often their images are chosen.
        output: Folder for probe.json and probe.png; probes/<date-time> when not given.
        device: cpu, cuda, cuda:1, mps; the best one present when not given.
        precision: Of the backbones; bf16-mixed is faster where the hardware has bf16.
    """
    return dict(locals())


_COMMAND = Command(options)


def main(arguments: Sequence[str]) -> int:
    """Compare; returns the exit status.

    Raises:
        UserError: An option is wrong, or something can't be used.
    """
    if "--help" in arguments or "-h" in arguments:
        _print_help()
        return 0
    own, rest = apart(arguments, _COMMAND.options, _REPEATED)
    given = _COMMAND.parsed(own)
    if rest and not rest[0].startswith("-"):
        raise UserError(f"expected: {USAGE}, got {rest[0]}")
    check_rest("probe", rest, _COMMAND.options)

    from mixer_finetune.engine.parser import configure
    from mixer_finetune.engine.probe import ProbeOptions, probe
    from mixer_finetune.evaluation.predict import usable_device
    from mixer_finetune.training.few_shot import SHOTS

    cli = configure(rest)
    model = cli.config["model"]
    wanted = ProbeOptions(
        backbones=given["backbone"] or [model["backbone"]],
        image_sizes=given["image_size"] or [model["image_size"]],
        resizes=given["resize"] or [model["resize"]],
        all_blocks=given["layers"] == "all",
        shots=SHOTS if given["shots"] is None else [count for count in given["shots"] if count],
        seeds=given["seeds"],
        device=usable_device(given["device"]),
        precision=given["precision"],
        revision=None if given["backbone"] else model["revision"],
        patch_size=model["patch_size"],
        in_chans=model["in_chans"],
    )
    found = probe(cli, wanted, Path(given["output"]).expanduser() if given["output"] else None)
    _show(found)
    return 0


def spell(option: str) -> str:
    """A parameter as it is typed behind probe."""
    name = option.rpartition(".")[2]
    if name in _COMMAND.options and not option.startswith("data."):
        return f"--{name}"
    from mixer_finetune.cli.lightning import spell

    return spell(option)


def _print_help() -> None:
    from mixer_finetune.cli.lightning import print_data_options

    _COMMAND.print_help(USAGE)
    print_data_options("probe")


def _show(found: dict[str, Any]) -> None:
    """The table, and what it says."""
    rows, best = found["rows"], found["best"]
    _print_table(rows, best, found["options"]["shots"])
    row = rows[best["row"]]
    others = f"; {best['as_good']} other(s) are within one standard error" if best["as_good"] else ""
    print(
        f"* best on dev: {row['layer']} of {row['backbone']} at {_pixels(row)} px by {_NAMES[best['method']]}, "
        f"{best['dev_accuracy']:.2%}{others}"
    )
    if test := found["test"]:
        low, high = test["interval"]
        print(f"  on test: {test['accuracy']:.2%} of {test['images']:,} images (95% interval {low:.1%} to {high:.1%})")
    print(f"wrote probe.json and probe.png into {found['folder']}")


def _print_table(rows: list[dict[str, Any]], best: dict[str, Any], shots: Sequence[int]) -> None:
    from statistics import mean, stdev

    lines = []
    for i, row in enumerate(rows):
        cells = [row["backbone"], _pixels(row), row["resize"] or "", row["layer"]]
        for method in _NAMES:
            mark = " *" if (i, method) == (best["row"], best["method"]) else "  "
            cells.append(f"{row['dev'][method]:.2%}{mark}" if method in row["dev"] else "")
        for count in shots:
            values = [100 * value for value in row["few_shot"].get(count, ())]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.1f}%{spread}" if values else "")
        lines.append([*cells, f"{sum(row['seconds'].values()):.1f}"])
    header = ["backbone", "pixels", "resized by", "layer", *_NAMES.values(), *(f"{count}-shot" for count in shots)]
    print_table([*header, "seconds"], lines, numbers=4, whole=(*header[4:], "seconds"))


def _pixels(row: dict[str, Any]) -> str:
    return "x".join(map(str, dict.fromkeys(row["image_size"])))
