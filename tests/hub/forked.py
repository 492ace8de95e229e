"""Real commands without the seconds that importing torch takes: each runs in a fork of a process that has imported it.

The Hub's clients read the environment when they are imported, so that process leaves them out and each fork imports its own.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest import mock

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["hub.preloaded"])


def run(
    target: Callable[..., int], arguments: tuple[Any, ...], environment: dict[str, str], folder: Path, timeout: float
) -> CompletedProcess[str]:
    """Run `target(*arguments)`, a function of this module, in an environment and a folder; what it returns is the status."""
    stem = str(time.monotonic_ns())
    logs = [folder.parent / f"{folder.name}-{stem}.{name}" for name in ("out", "err")]
    process = _context.Process(target=_enter, args=(target, arguments, environment, folder, logs))
    with mock.patch.dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[1])):  # it takes no other note of sys.path
        process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"{arguments} still ran after {timeout} s: {[log.read_text() for log in logs]}")
    assert process.exitcode is not None
    return CompletedProcess(arguments, process.exitcode, *(log.read_text() for log in logs))


def _enter(
    target: Callable[..., int], arguments: tuple[Any, ...], environment: dict[str, str], folder: Path, logs: list[Path]
) -> None:
    assert "huggingface_hub" not in sys.modules
    for stream, log in zip((sys.stdout, sys.stderr), logs, strict=True):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.exit(target(*arguments))


def command(*arguments: str) -> int:
    """As `python -m mixer_finetune ARGUMENTS`."""
    from mixer_finetune.cli import main

    return main(list(arguments))


def weights_hash(weights: dict[str, Any]) -> str:
    """Equal for bitwise equal weights only."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    return digest.hexdigest()


def load(model: tuple[str, str | None] | None, data: tuple[str, str | None, str | None] | None) -> int:
    """Load a backbone (id, revision) and a data set (id, revision, configuration) as a run does; print what came as JSON."""
    from mixer_finetune import UserError, hub_retry, load_backbone
    from mixer_finetune.data.sources import open_source

    hub_retry.FIRST_WAIT = 0.05  # the real commands are there to wait as long as users do

    found: dict[str, Any] = {}
    try:
        if data:
            source = open_source(data[0], revision=data[1], config=data[2])
            found["data"] = {"commit": source.revision, "images": {role: len(split) for role, split in source.splits.items()}}
        if model:
            backbone = load_backbone(model[0], revision=model[1])
            weights = weights_hash(backbone.state_dict())
            found["model"] = {"commit": backbone.origin["revision"], "weights": weights, "labels": backbone.label_names}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found))
    return 0
