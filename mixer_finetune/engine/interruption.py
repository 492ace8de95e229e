"""Signals: whatever a command is doing, it stops at once, leaves nothing half-written and says how to go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mixer_finetune.errors import Interrupted

# A terminal's Ctrl-C; kill, and batch systems at the end of a job's time; a closed terminal; SLURM before preemption.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
_received: list[int] = []


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise Interrupted; asked again while that is on its way out, end the process at once."""
    if number in _received:
        os._exit(1)
    _received.append(number)
    raise Interrupted(signal.Signals(number).name)


@contextmanager
def interruptible() -> Iterator[None]:
    """Have signals raise Interrupted in this block.

    Raises:
        Interrupted: A signal came; also where something in the block swallowed the exception.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can take signals
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _received.clear()
    hold_signals()
    try:
        yield
        if _received:
            raise Interrupted(signal.Signals(_received[0]).name)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hold_signals() -> None:
    """Take the signals; again where Lightning has put handlers of its own in between."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _stop)


def without_lightnings_handlers(trainer: Any) -> None:
    """Keep a trainer from taking SIGTERM and SLURM's signal itself.

    Its handlers broadcast between the processes wherever they are, which can wait for ever, and save a checkpoint of
    their own that a later `test` would load in place of what was trained.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
