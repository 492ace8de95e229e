"""Real commands without the seconds that importing torch takes: each runs in a fork of a process that has imported it.

The Hub's clients read the environment when they are imported, so that process leaves them out and each fork imports its
own. What torch reads when it is imported (OMP_NUM_THREADS) can't be changed for a fork, and all have one seed of string
hashes: where that matters, `conftest.program` starts a process anew.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest import mock

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["preloaded"])


@dataclass(frozen=True)
class Running:
    """A process that leads a group of its own, and the files that take what it prints."""

    process: BaseProcess
    logs: list[Path]

    def finished(self, timeout: float) -> CompletedProcess[str]:
        """Wait for it.

        Raises:
            TimeoutError: After so many seconds; it is killed then.
        """
        self.process.join(timeout)
        printed = [log.read_text() for log in self.logs]
        if self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)  # with its workers
            self.process.join()
            raise TimeoutError(f"it still ran after {timeout} s: {printed}")
        assert self.process.exitcode is not None
        return CompletedProcess((), self.process.exitcode, *printed)


def start(target: Callable[..., int], arguments: tuple[Any, ...], environment: dict[str, str], folder: Path) -> Running:
    """Begin `target(*arguments)`, a function of a module, in an environment and a folder; it returns the status."""
    stem = str(time.monotonic_ns())
    logs = [folder.parent / f"{folder.name}-{stem}.{name}" for name in ("out", "err")]
    for log in logs:
        log.touch()
    process = _context.Process(target=_enter, args=(target, arguments, environment, folder, logs))
    here = Path(__file__).resolve().parent
    # Of sys.path it takes no other note: without the checkout it would run what is installed.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (here.parent, here)))):
        process.start()
    return Running(process, logs)


def _enter(
    target: Callable[..., int], arguments: tuple[Any, ...], environment: dict[str, str], folder: Path, logs: list[Path]
) -> None:
    assert "mixer_finetune.engine.fit" in sys.modules and "huggingface_hub" not in sys.modules
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job's children do without
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]  # workers start as they do for users
    for stream, log in zip((sys.stdout, sys.stderr), logs, strict=True):
        os.dup2(os.open(log, os.O_WRONLY), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.exit(target(*arguments))


def command(*arguments: str) -> int:
    """As `python -m mixer_finetune ARGUMENTS`."""
    from mixer_finetune.cli.main import main

    return main(list(arguments))
