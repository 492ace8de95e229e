"""Commands with options of their own beside those of `fit`'s data: the line taken apart, and what has no effect."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import fields

from mixer_finetune.errors import UserError


def apart(arguments: Sequence[str], own: Collection[str], repeated: Collection[str]) -> tuple[list[str], list[str]]:
    """The command's own options, as its parser takes them, and the rest of the line.

    Args:
        arguments: As they are typed.
        own: Names of the command's options.
        repeated: Those that may be given several times, and are lists.

    Raises:
        UserError: A value is missing, or a size is none.
    """
    values: dict[str, list[str]] = {}
    rest, items = [], list(arguments)
    while items:
        item = items.pop(0)
        name, equals, text = item.partition("=")
        if name.removeprefix("--") not in own or not name.startswith("--"):
            rest.append(item)
            continue
        value = text if equals else items.pop(0) if items else ""
        if not value or (value.startswith("--") and not equals):
            raise UserError(f"{name} needs a value")
        values.setdefault(name.removeprefix("--"), []).append(value)
    taken = []
    for size in values.get("image_size", ()):
        if not re.fullmatch(r"\d+|\[ *\d+ *, *\d+ *\]", size):
            raise UserError(f"a size is a number of pixels or [height,width], got {size}", option="image_size")
    for name, given in values.items():
        if name not in repeated:
            taken.append(f"--{name}={given[-1]}")
            continue
        parts = given if name == "image_size" else [part.removeprefix("[").removesuffix("]") for part in given]
        taken.append(f"--{name}=[{','.join(parts)}]")
    return taken, rest


def check_rest(command: str, rest: Sequence[str], own: Collection[str], unused: Collection[str] = ()) -> None:
    """Refuse what would have no effect.

    Args:
        command: Its name.
        rest: Of the line.
        own: Names of the command's options.
        unused: Options of the data that it takes no notice of, beside those of training.

    Raises:
        UserError: Something has no effect.
    """
    from mixer_finetune.augment import Augmentation
    from mixer_finetune.cli.lightning import OF_TRAINING
    from mixer_finetune.engine.arguments import GROUPS
    from mixer_finetune.engine.parser import RunOptions

    idle = {f"data.{each.name}" for each in fields(Augmentation)}
    idle |= {f"data.{name}" for name in (*OF_TRAINING, *unused)}
    idle |= {each.name for each in fields(RunOptions)} - {"seed_everything"}
    for item in rest:
        option = item.partition("=")[0].removeprefix("--").rstrip("+")
        group = option.partition(".")[0]
        if not item.startswith("--") or (group not in GROUPS and option not in idle):
            continue
        if group == "model" and option.removeprefix("model.") in own:
            raise UserError(f"{command} takes --{option.removeprefix('model.')} in place of --{option}")
        if option in idle or group != "data":
            raise UserError(f"{command} trains no network, so --{option} has no effect; leave it out")
