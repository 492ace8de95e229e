"""What goes wrong, and who can mend it.

    UserError                a mistake in what the user gave: an option, a file, a data set, a Hub that refuses
    └── NoImagesError        no image of a split could be decoded
    Interrupted              a signal asked the program to stop (a BaseException: no `except Exception` swallows it)

A UserError is one line: what was expected, what was found, and what to change. Low layers know no command line, so they
name a parameter (`image_size`), and whoever shows the error spells it: `image_size` in Python, `--model.image_size`
behind `fit`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mixer_finetune.texts import cut

_PLACEHOLDER = re.compile(r"\{([a-z_]+(?:\.[a-z_]+)?)\}")


class UserError(Exception):
    """A mistake that the user can mend.

    The command line prints it without a traceback and exits with status 2 (`--debug` shows the traceback).

    Args:
        problem: What was expected and what was found, in the words of the user.
        option: The parameter to change, as its function calls it; where two groups have one of that name, with the
            group (`data.revision`).
        choices: What would work in its place.
        advice: What to do, where more than one parameter is to be named: "raise {batch_size} or use fewer
            {trainer.devices}".
    """

    def __init__(
        self, problem: str, *, option: str | None = None, choices: str | None = None, advice: str | None = None
    ) -> None:
        problem = cut(problem)
        super().__init__(problem)
        self.problem, self.option, self.choices = problem, option, choices
        if advice is None and option is not None:
            advice = f"use {{{option}}} {choices}" if choices else f"change {{{option}}}"
        self.advice = advice

    def __str__(self) -> str:
        return self.spelled(lambda option: option.rpartition(".")[2])

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The line for the user.

        Args:
            spell: Gives a parameter as the user types it.
        """
        if self.advice is None:
            return self.problem
        return f"{self.problem}; {_PLACEHOLDER.sub(lambda match: spell(match[1]), self.advice)}"


def check_at_least(least: float, **values: float | None) -> None:
    """Refuse values that are too small; None is no value.

    Raises:
        UserError: One is; the message names it.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise UserError(f"{name} must be {least} or more, got {value}", option=name)


class NoImagesError(UserError):
    """No image of a split could be decoded."""


class Interrupted(BaseException):
    """A signal asked the program to stop.

    Args:
        signal_name: Which ("SIGTERM").

    Attributes:
        advice: How to go on, where somebody on the way out knows it.
    """

    def __init__(self, signal_name: str) -> None:
        super().__init__(signal_name)
        self.signal_name = signal_name
        self.advice: str | None = None
