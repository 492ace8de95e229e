"""Run folders: what a run leaves, each file whole or not at all.

    runs/<recipe>/<date-time>/
        config.yaml  metrics.csv  training.json  results.json  predictions.csv
        learning_curves.png  confusion_matrix.png  report.html
        checkpoints/{last,best}.ckpt  model/{config.json,model.safetensors,calibration.json,README.md}  tensorboard/
        adapter/{adapter_config.json,adapter_model.safetensors,config.json}  (LoRA and DoRA)
        export/  push.json                                        (of the commands export and push)

Nothing here imports torch, so that commands which only look at runs start at once.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mixer_finetune.errors import UserError
from mixer_finetune.files import link_to_elsewhere, sweep, write_text
from mixer_finetune.plain_yaml import read_plain

log = logging.getLogger(__name__)
RUNS = "runs"  # where runs are, as `fit --output_dir` has it by default
LAST = "last"  # the newest of them, in the place of a path
_STAMP = "%Y-%m-%d_%H-%M-%S"
_STAMPED = re.compile(r"(?P<stamp>\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:_(?P<attempt>\d+))?")


@dataclass(frozen=True)
class RunFolder(os.PathLike[str]):
    """A run folder.

    Attributes:
        path: Of the folder.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    # What lies in it, in the order in which a run writes it

    @property
    def config_file(self) -> Path:
        """The whole configuration: `fit --config` repeats the run."""
        return self.path / "config.yaml"

    @property
    def data_file(self) -> Path:
        """What the run saw of its data: class names, and the number and hash of each split's images."""
        return self.path / "data.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint that a resumed run goes on from."""
        return self.checkpoints / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint that did best on the dev split."""
        return self.checkpoints / "best.ckpt"

    @property
    def metrics_file(self) -> Path:
        """Loss, metrics and learning rate over the steps."""
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def training_file(self) -> Path:
        """How training ended; there once it has."""
        return self.path / "training.json"

    @property
    def starting_weights(self) -> Path:
        """The weights before the first step, where a run needs them at its end."""
        return self.checkpoints / "start.safetensors"

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """The adapter folder, where an adapter was trained."""
        return self.path / "adapter"

    @property
    def calibration_file(self) -> Path:
        """What the dev split says of how far the model can be trusted; not there where there is none."""
        return self.model / "calibration.json"

    @property
    def predictions_file(self) -> Path:
        """Each evaluated image with its most probable labels."""
        return self.path / "predictions.csv"

    @property
    def results_file(self) -> Path:
        """What was measured."""
        return self.path / "results.json"

    @property
    def curves_picture(self) -> Path:
        """Loss, metrics and learning rate over the steps, as a picture."""
        return self.path / "learning_curves.png"

    @property
    def confusion_picture(self) -> Path:
        """The confusion matrix."""
        return self.path / "confusion_matrix.png"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.model / "README.md"

    @property
    def push_file(self) -> Path:
        """Where the model was, or is to be, pushed to."""
        return self.path / "push.json"

    @property
    def exports(self) -> Path:
        """Folder of the exports."""
        return self.path / "export"

    # Making, finding and removing one

    @classmethod
    def planned(cls, output_dir: str, name: str) -> RunFolder:
        """`output_dir/name/<date-time>`, which is not made yet."""
        return cls(Path(output_dir).expanduser() / name / datetime.now().strftime(_STAMP))

    def create(self) -> RunFolder:
        """Make the folder; where another run has it already, one beside it.

        Raises:
            UserError: The folder can't be written.
        """
        parent, stamp = self.path.parent, self.path.name
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for attempt in range(1000):
                folder = parent / (stamp if attempt == 0 else f"{stamp}_{attempt}")
                try:
                    folder.mkdir()
                except FileExistsError:
                    continue
                return RunFolder(folder)
        except OSError as error:
            raise UserError(
                f"the output folder {parent} can't be written ({error.strerror})", option="output_dir"
            ) from error
        raise UserError(f"{parent} has a thousand runs of this second", option="name")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """A run folder that is there; temporary files of processes that were killed are removed from it.

        Raises:
            UserError: The folder is not a run folder, or holds a link that leads elsewhere.
        """
        run = cls(find_run(path))
        if not run.config_file.is_file():
            raise UserError(f"{path} is not a run folder: it has no config.yaml; expected runs/<recipe>/<date-time>")
        run.check_links()
        sweep(run.path)
        return run

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> tuple[RunFolder, Path | None]:
        """The run folder that a path means, and the checkpoint where it names one.

        Raises:
            UserError: The path is neither a run folder nor a checkpoint inside one.
        """
        target = find_run(path)
        if target.is_dir():
            return cls.open(target), None
        if not target.is_file():
            raise UserError(f"there is no run folder or checkpoint '{path}'")
        folder = target.resolve().parent.parent
        if not (folder / "config.yaml").is_file():
            raise UserError(
                f"{path} lies in no run folder", advice="say what to use it on with {recipe} or {data.source}"
            )
        return cls.open(folder), target

    @property
    def started(self) -> datetime:
        """When the run began, in local time: its folder's name, or where that is another one, when it was configured.

        Raises:
            OSError: The folder is gone.
        """
        if found := _STAMPED.fullmatch(self.path.name):
            try:
                return datetime.strptime(found["stamp"], _STAMP)
            except ValueError:
                pass  # digits that are no date
        return datetime.fromtimestamp(int(self.config_file.stat().st_mtime))

    @property
    def is_placed(self) -> bool:
        """Whether it lies where `fit` makes runs, `<folder>/<recipe>/<date-time>`, or `slurm-<job>` in its place."""
        name = self.path.resolve().name
        return bool(_STAMPED.fullmatch(name)) or name.startswith("slurm-")

    @property
    def in_time(self) -> tuple[datetime, int, str]:
        """What orders runs by when they began."""
        found = _STAMPED.fullmatch(self.path.name)
        return self.started, int(found["attempt"] or 0) if found else 0, str(self.path)

    def check_links(self) -> None:
        """Make sure that what is read, sent and written in the folder lies in it.

        Raises:
            UserError: A link in it leads elsewhere.
        """
        if link := link_to_elsewhere(self.path):
            raise UserError(
                f"{link} is a link that leads out of the run folder, and is not followed; put in its place what "
                "belongs there, or remove it"
            )

    def discard_if_untrained(self) -> None:
        """Remove a run folder that never got a checkpoint, and the folders above it that are then empty."""
        if any(self.checkpoints.glob("*.ckpt")) or self.training_file.is_file():
            return
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in list(self.path.parents)[:2]:
            try:
                parent.rmdir()
            except OSError:
                return

    # Its small files

    def read_config(self) -> dict[str, Any]:
        """The content of `config.yaml`.

        Raises:
            UserError: It can't be read.
        """
        try:
            config = read_plain(self.config_file.read_text(encoding="utf-8"), str(self.config_file))
        except UnicodeDecodeError as error:
            raise UserError(f"{self.config_file} is not valid YAML: {error}") from error
        if not isinstance(config, dict):
            raise UserError(f"{self.config_file} is not a configuration: expected keys such as model and data")
        for group in ("model", "data", "trainer"):
            if not isinstance(config.get(group), dict | str | None):
                kind = type(config[group]).__name__
                raise UserError(f"{self.config_file} is not a configuration: {group} must hold options, found a {kind}")
        return config

    @staticmethod
    def read_json(path: Path) -> dict[str, Any] | None:
        """One of the run's JSON files; None where it is not there.

        Raises:
            UserError: It can't be read.
        """
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} can't be read: {error}") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} can't be read: expected an object, found a {type(content).__name__}")
        return content

    @staticmethod
    def write_json(path: Path, content: dict[str, Any]) -> None:
        """Write one of the run's JSON files."""
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def runs_below(folder: str | os.PathLike[str] = RUNS) -> list[RunFolder]:
    """The runs in a folder, `<folder>/<recipe>/<date-time>` or `<folder>/<date-time>`, the newest first."""
    root = Path(folder).expanduser()
    found = [RunFolder(file.parent) for pattern in ("*/*/config.yaml", "*/config.yaml") for file in root.glob(pattern)]
    return sorted(found, key=lambda run: run.in_time, reverse=True)


def find_run(name: str | os.PathLike[str]) -> Path:
    """The path of a run as it is named; for `last` that of the newest one in `runs/`, for `NAME/last` in `runs/NAME/`.

    Which one that is, is logged. A file or folder that is called so comes first.

    Raises:
        UserError: There is no run that `last` could mean.
    """
    path = Path(name).expanduser()
    if path.name != LAST or path.exists():
        return path
    folder = path.parent if path.is_absolute() or path.parts[0] == RUNS else RUNS / path.parent
    if len(path.parts) > 1 and not folder.is_dir():
        return path  # may be a repository
    runs = runs_below(folder)
    if not runs:
        raise UserError(f"there is no run in {folder}/ that '{path}' could mean; name a run folder")
    log.info(f"{path} is {runs[0]}")
    return runs[0].path
