"""Run folders: what a run leaves, each file whole or not at all.

    runs/<recipe>/<date-time>/
        config.yaml  metrics.csv  results.json  predictions.csv  report.html  learning_curves.png  confusion_matrix.png
        checkpoints/{last,best}.ckpt  model/{config.json,model.safetensors,README.md}  tensorboard/
        export/  push.json                                        (of the commands export and push)

Nothing here imports torch, so that commands which only look at runs start at once.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from mixer_finetune.errors import UserError


def new_run_folder(output_dir: str, name: str, create: bool = True) -> Path:
    """`output_dir/name/<date-time>`, created; only the first process of a run creates and writes it.

    Raises:
        UserError: The folder can't be written.
    """
    parent = Path(output_dir).expanduser() / name
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if not create:
        return parent / stamp
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1000):
            folder = parent / (stamp if attempt == 0 else f"{stamp}_{attempt}")
            try:
                folder.mkdir()
                break
            except FileExistsError:
                continue
    except OSError as error:
        raise UserError(f"the output folder {parent} can't be written ({error.strerror}); change --output_dir") from error
    return folder


def remove_empty_run_folder(folder: Path) -> None:
    """Remove a run folder that never got a checkpoint, and the folders above it that are then empty."""
    import shutil

    if not any((folder / "checkpoints").glob("*.ckpt")):
        shutil.rmtree(folder, ignore_errors=True)
        for parent in list(folder.parents)[:2]:
            try:
                parent.rmdir()
            except OSError:
                return


def read_run_config(run: Path) -> dict[str, Any]:
    """The `config.yaml` of a run folder.

    Raises:
        UserError: The folder is not a run folder, or its configuration can't be read.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml; expected runs/<recipe>/<date-time>")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a configuration: expected keys such as model and data")
    return config


def run_of(path: Path) -> tuple[Path, Path | None]:
    """The run folder that a path means, and the checkpoint where it names one.

    Raises:
        UserError: The path is neither a run folder nor a checkpoint inside one.
    """
    if path.is_dir():
        return path, None
    if path.is_file():
        run = path.resolve().parent.parent
        if not (run / "config.yaml").is_file():
            raise UserError(f"{path} lies in no run folder; say what to use it on with --recipe or --data.source")
        return run, path
    raise UserError(f"there is no run folder or checkpoint '{path}'")
