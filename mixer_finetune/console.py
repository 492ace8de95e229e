"""What the command line shows: lines on the output, above a bar where there is one, and warnings on the error stream.

The package says what it does through `logging`, so that it is silent as a library.
"""

from __future__ import annotations

import logging
import os
import sys

from rich.console import Console

from mixer_finetune.texts import terminal_line

console = Console(highlight=False, soft_wrap=True)


class LogHandler(logging.Handler):
    """Prints what the package logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        try:
            line = terminal_line(record.getMessage())
            if record.levelno >= logging.WARNING:
                print(f"warning: {line}", file=sys.stderr)
            else:
                console.print(line, markup=False, emoji=False)
        except (OSError, ValueError):
            return  # nobody reads any more: the terminal is gone


def show_log() -> None:
    """Print from now on what the package logs, on the first process of a run."""
    logger = logging.getLogger("mixer_finetune")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not any(isinstance(handler, LogHandler) for handler in logger.handlers):
        logger.addHandler(LogHandler() if is_first_process() else logging.NullHandler())


def is_first_process() -> bool:
    """Whether this is the process that speaks for the run; launchers tell each process which one it is."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    first = next((rank for rank in ranks if rank is not None), "0")
    return first == "0" and os.environ.get("NODE_RANK", "0") == "0"
