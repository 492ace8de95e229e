"""`mixer-finetune plan`: the options of `fit`, and what they would come to."""

from __future__ import annotations

from collections.abc import Sequence

from mixer_finetune.errors import UserError

USAGE = "plan [--recipe NAME] ... [--config FILE] ... [options of fit] [--measured_steps 5]"
ABOUT = """What a fit with these options would do, take and write, before hours are spent: its steps and how a batch is
cut, what is trained, multiply-accumulates, memory and time from a few measured steps, what is written and pushed. What
can't work is refused as by fit. Nothing is trained, written or pushed.

  --measured_steps N
        Steps to measure, behind one that is not counted; 0 for none. (default: 5)

All other options are those of fit: see mixer-finetune fit --help."""
DEFAULT_STEPS = 5


def main(arguments: Sequence[str]) -> int:
    """Say what a run would be; returns the exit status.

    Raises:
        UserError: An option is wrong, or the run could not work.
    """
    from mixer_finetune.cli.lightning import take

    if "--help" in arguments or "-h" in arguments:
        print(f"usage: mixer-finetune {USAGE}\n\n{ABOUT}")
        return 0
    steps, rest = take(arguments, "measured_steps")
    if rest and not rest[0].startswith("-"):
        raise UserError(f"expected: {USAGE}, got {rest[0]}")
    if steps is not None and not steps.isdecimal():
        raise UserError(f"measured_steps is a whole number, got {steps}", option="measured_steps")
    resume, rest = take(rest, "resume")
    if resume is not None:
        raise UserError("plan is for a new run", advice=f"go on with: mixer-finetune fit --resume {resume}")

    from mixer_finetune.engine.plan import plan

    for line in plan(rest, DEFAULT_STEPS if steps is None else int(steps)).lines():
        print(line)
    return 0


def spell(option: str) -> str:
    """A parameter as it is typed behind plan."""
    from mixer_finetune.cli.lightning import spell

    return spell(option)
