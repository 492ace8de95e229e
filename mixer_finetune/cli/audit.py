"""`mixer-finetune audit`: its own options beside those of the data, which are `fit`'s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mixer_finetune.cli.command import Command
from mixer_finetune.cli.mixed import apart, check_rest
from mixer_finetune.errors import UserError

USAGE = "audit SOURCE [options]     or: audit --recipe NAME [options]"
_REPEATED = ("exclude",)


def options(
    *,
    backbone: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    near: float = 0.15,
    exclude: list[str] | None = None,
    show: int = 60,
    output: str | None = None,
    device: str | None = None,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
) -> dict[str, Any]:
    """What is wrong with a data set: copies within and across splits, likely label errors, outliers, odd images.

    Writes a page with the pictures, and audit.csv, whose lines with "yes" in the column exclude are left out by
    fit --data.exclude audit.csv.

    Args:
        backbone: Whose features tell outliers and label errors: Hub id, model or run folder, checkpoint or name; the
            recipe's when not given.
        image_size: Its side, or [height, width], in pixels; its own when not given.
        near: Largest distance of near-identical images, from 0 (none are looked for) to 1.41 (unrelated).
        exclude: Findings whose images audit.csv marks with yes; may be given several times; identical, near, blank and
            broken when not given. Images of dev and test splits stay, but for broken ones.
        show: Most findings of a kind with their pictures on the page.
        output: Folder for audit.html, audit.csv and audit.json; audits/<date-time> when not given.
        device: cpu, cuda, cuda:1, mps; the best one present when not given.
        precision: Of the backbone; bf16-mixed is faster where the hardware has bf16.
    """
    return dict(locals())


_COMMAND = Command(options)


def main(arguments: Sequence[str]) -> int:
    """Look; returns the exit status.

    Raises:
        UserError: An option is wrong, or something can't be used.
    """
    if "--help" in arguments or "-h" in arguments:
        _print_help()
        return 0
    own, rest = apart(arguments, _COMMAND.options, _REPEATED)
    given = _COMMAND.parsed(own)
    rest = _with_source(rest)

    from mixer_finetune.engine.audit import OF_SUBSETS, AuditOptions, audit
    from mixer_finetune.engine.parser import configure
    from mixer_finetune.evaluation.findings import EXCLUDED
    from mixer_finetune.evaluation.predict import usable_device

    check_rest("audit", rest, _COMMAND.options, (*OF_SUBSETS, "on_bad_image"))
    cli = configure(rest)
    model = cli.config["model"]
    wanted = AuditOptions(
        backbone=given["backbone"] or model["backbone"],
        image_size=given["image_size"] or model["image_size"],
        near=given["near"],
        exclude=EXCLUDED if given["exclude"] is None else given["exclude"],
        show=given["show"],
        device=usable_device(given["device"]),
        precision=given["precision"],
        revision=None if given["backbone"] else model["revision"],
    )
    _show(audit(cli, wanted, Path(given["output"]).expanduser() if given["output"] else None))
    return 0


def spell(option: str) -> str:
    """A parameter as it is typed behind audit."""
    name = option.rpartition(".")[2]
    if name in _COMMAND.options and not option.startswith("data."):
        return f"--{name}"
    from mixer_finetune.cli.lightning import spell

    return spell(option)


def _with_source(rest: list[str]) -> list[str]:
    """The line with the word that belongs to no option as the data's source."""
    words = [
        i
        for i, item in enumerate(rest)
        if not item.startswith("-") and (i == 0 or not rest[i - 1].startswith("-") or "=" in rest[i - 1])
    ]
    if len(words) > 1:
        raise UserError(f"expected: {USAGE}, got {rest[words[1]]} beside {rest[words[0]]}")
    return [f"--data.source={item}" if i in words else item for i, item in enumerate(rest)]


def _print_help() -> None:
    from mixer_finetune.cli.lightning import print_data_options

    _COMMAND.print_help(USAGE)
    print_data_options("audit")


def _show(found: dict[str, Any]) -> None:
    """What was found, a line a kind."""
    from mixer_finetune.evaluation.audit_page import verdict
    from mixer_finetune.evaluation.findings import KINDS

    for kind, count in found["findings"].items():
        print(f"{kind:<10} {count:>7,}  {KINDS[kind][0].lower()}{KINDS[kind][1:]}")
    for line in verdict(found):
        print(f"* {line}")
    for note in found["notes"]:
        print(f"note       {note}")
    marked = ", ".join(f"{n:,} of {role}" for role, n in found["marked"].items() if n) or "none"
    print(f"wrote audit.html, audit.csv (marks images to leave out: {marked}) and audit.json into {found['folder']}")
