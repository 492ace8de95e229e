"""What a run shows while it works, and its metrics.csv."""

from __future__ import annotations

import csv
import io
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mixer_finetune.backbones.families import tagged
from mixer_finetune.files import write_text

console = Console(highlight=False, soft_wrap=True)


@rank_zero_only
def say(text: str) -> None:
    """Print a line, on the first process only."""
    console.print(text, markup=False)


class Unprofiled(PassThroughProfiler):
    """No profile, for less: Lightning's own makes a generator at each of the fifty hooks of a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:
        """Nothing to enter or leave."""
        return self._nothing


class RunProgress(ProgressBar):
    """A header that says what is trained on what, a bar with loss, accuracy, images/s and time left, a line an epoch.

    Args:
        precision_note: About float32 products, for the header.
        visible: Whether to show the bar; the lines are printed anyway.

    Attributes:
        images_per_second: Training images, without the time of validation.
        validation_seconds: Spent on validation.
    """

    def __init__(self, precision_note: str | None = None, visible: bool = True) -> None:
        super().__init__()
        self.precision_note, self.visible = precision_note, visible
        self._bar: Progress | None = None
        self._images, self._since = 0, 0.0
        self._validation_began = self.validation_seconds = 0.0
        self.images_per_second = 0.0

    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self.visible = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print the header and start the bar."""
        for line in header(trainer, pl_module, self.precision_note):
            say(line)
        self._images, self._since = 0, time.perf_counter()
        if self.visible and trainer.is_global_zero and console.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"), BarColumn(20), TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"), console=console, transient=True,
            )  # fmt: skip
            total = trainer.datamodule.total_steps  # type: ignore[attr-defined]
            self._task = self._bar.add_task("training", total=total, completed=trainer.global_step, note="")
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count images and move the bar; it shows figures when there are new ones, and so waits for no device itself."""
        self._images += len(batch.labels) * trainer.world_size
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step)
            if pl_module.logged:
                loss, accuracy = _metric(trainer, "train/loss"), _metric(trainer, "train/accuracy")
                note = f"loss {loss}  accuracy {accuracy}  {self._rate():,.0f} images/s"
                self._bar.update(self._task, note=note)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock of validation."""
        self._validation_began = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A line an epoch."""
        self.validation_seconds += time.perf_counter() - self._validation_began
        if trainer.training or trainer.validating and trainer.fit_loop.epoch_loop.batch_progress.current.ready:
            self._epoch_line(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A line an epoch, where there is no dev split."""
        if not trainer.enable_validation:
            self._epoch_line(trainer)

    def _epoch_line(self, trainer: pl.Trainer) -> None:
        self.images_per_second = self._rate()
        say(
            f"epoch {trainer.current_epoch + 1:>3}  step {trainer.global_step:>6}  loss {_metric(trainer, 'train/loss')}  "
            f"train accuracy {_metric(trainer, 'train/accuracy')}  dev accuracy {_metric(trainer, 'val/accuracy')}  "
            f"{self.images_per_second:,.0f} images/s"
        )

    def _rate(self) -> float:
        return self._images / max(time.perf_counter() - self._since - self.validation_seconds, 1e-9)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Remove the bar before an error is printed."""
        self._stop()


def header(trainer: pl.Trainer, model: Any, precision_note: str | None) -> list[str]:
    """What is trained, on what, in how many steps: one line each."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    backbone, plan = model.backbone, data.train_batches
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    steps = data.total_steps
    share = -(-plan.n // plan.steps)
    split = f"{share} images a step = {trainer.world_size} device(s) x {plan.accumulate} micro-batch(es)"
    revision = f" @ {backbone.origin['revision'][:12]}" if backbone.origin.get("revision") else ""
    lines = [
        f"backbone   {backbone.origin['source']}{revision}: {backbone.architecture}, {_size(backbone)}; {model.head_note}",
        f"data       {data.description}",
        f"training   {trained:,} of {total:,} parameters, {steps:,} steps ({steps / plan.steps:.3g} epochs), {split}",
        f"device     {trainer.accelerator.__class__.__name__.removesuffix('Accelerator')}, precision {trainer.precision}",
    ]
    found = tagged(backbone.origin["source"])
    if found and (warning := found[1].warning):
        lines.insert(1, f"warning    {backbone.origin['source']}: {warning}")
    if precision_note and trainer.strategy.root_device.type == "cpu":
        lines[-1] += f", {precision_note}"
    if trainer.global_step:
        lines.append(f"resuming   at step {trainer.global_step:,} of {steps:,}")
    return lines


def _size(backbone: Any) -> str:
    (height, width), patch = backbone.image_size, backbone.geometry.patch_size
    rows, columns = backbone.geometry.grid
    text = f"{height} x {width} px in {rows} x {columns} patches of {patch}"
    if resized := backbone.origin.get("resized"):
        text += f", resized from {resized['from'][0]} x {resized['from'][1]} by {resized['method']}"
        text += f" (auto: {resized['why']})" if "why" in resized else ""
    return text


def _metric(trainer: pl.Trainer, name: str) -> str:
    value = trainer.callback_metrics.get(name)
    if value is None:
        return "-"
    return f"{float(value):.3f}" if name.endswith("loss") else f"{float(value):.1%}"


class MetricsFile(pl.Callback):
    """metrics.csv: one row a step that logged, kept in the checkpoints, so that a resumed run goes on with the same rows.

    The file is written whole, atomically, every few seconds, by the first process.

    Args:
        path: Of the CSV file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[int, dict[str, float]] = {}
        self._saved = 0.0
        self._before, self._began = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Spent on training, with what a resumed run spent before."""
        return self._before + time.monotonic() - self._began

    def state_dict(self) -> dict[str, Any]:
        """The rows and seconds so far."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the checkpoint's rows and seconds."""
        self.rows, self._before = dict(state_dict["rows"]), state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take what the step logged."""
        if pl_module.logged:
            self._take(trainer, "train/")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take the dev metrics."""
        if not trainer.sanity_checking:
            self._take(trainer, "val/")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the file at the end of the run."""
        self._write(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Write what there is when the run is interrupted."""
        self._write(trainer)

    def _take(self, trainer: pl.Trainer, prefix: str) -> None:
        if not trainer.is_global_zero:
            return
        values = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith(prefix)}
        self.rows.setdefault(trainer.global_step, {}).update(values)
        if time.monotonic() - self._saved > 5:
            self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if not self.rows or not trainer.is_global_zero:
            return
        self._saved = time.monotonic()
        columns = ["step"] + sorted({key for row in self.rows.values() for key in row})
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for step in sorted(self.rows):
            writer.writerow({"step": step, **{key: f"{value:.6g}" for key, value in self.rows[step].items()}})
        write_text(self.path, text.getvalue())
