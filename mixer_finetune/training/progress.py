"""What a run says and shows while it trains."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.profilers import PassThroughProfiler
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mixer_finetune.console import console
from mixer_finetune.texts import terminal
from mixer_finetune.training.header import header

# The command line prints what is logged at this package's loggers; in a library it is silent unless asked for.
log = logging.getLogger(__name__)
QUIET_SECONDS = 60.0


class Unprofiled(PassThroughProfiler):
    """No profile, for less: Lightning's own makes a generator at each of the fifty hooks of a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """Nothing to enter or leave."""
        return self._nothing


class Narrator(pl.Callback):
    """Says what is trained on what, a line an epoch, and where no bar can be shown a line a minute.

    Args:
        precision_note: About the precision, for the header.

    Attributes:
        seconds: Spent on training, with what a resumed run spent before.
        images_per_second: Training images, without the time of validation.
        validation_seconds: Spent on validation since the run was started or resumed.
    """

    def __init__(self, precision_note: str | None = None) -> None:
        self.precision_note = precision_note
        self._images, self._began, self._before, self._said = 0, time.monotonic(), 0.0, time.monotonic()
        self._said_step = 0
        self._validation_began = self.validation_seconds = self.images_per_second = 0.0

    @property
    def seconds(self) -> float:
        """Spent on training, with what a resumed run spent before."""
        return self._before + time.monotonic() - self._began

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the checkpoint's seconds."""
        self._before = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say what is trained on what."""
        self._began = self._said = time.monotonic()
        for line in header(trainer, pl_module, self.precision_note):
            log.info(line)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count images, and say how far it is where nothing was said for a minute.

        Only a step that logged is asked, since it has waited for the device anyway.
        """
        self._images += len(batch[0]) * trainer.world_size
        if pl_module.logged and not console.is_terminal and time.monotonic() - self._said >= QUIET_SECONDS:
            self._say(f"{_place(trainer, pl_module)}  {_means(trainer, '')}  {self._rate():,.0f} images/s")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock of validation."""
        self._validation_began = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A line a validation."""
        self.validation_seconds += time.monotonic() - self._validation_began
        if not trainer.sanity_checking:
            self._say_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A line an epoch, where no validation gave it."""
        if self._said_step != trainer.global_step:
            self._say_epoch(trainer, pl_module)

    def _say_epoch(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._said_step = trainer.global_step
        self.images_per_second = self._rate()
        line = f"epoch {trainer.current_epoch + 1:>3}  {_place(trainer, pl_module)}  {_means(trainer, '_epoch')}"
        if "val/loss" in trainer.callback_metrics:
            monitored = f"val/{pl_module.task.monitor}"
            line += f"  dev: loss {_metric(trainer, 'val/loss')} {_metric(trainer, monitored, pl_module.task.monitor)}"
        self._say(f"{line}  {self.images_per_second:,.0f} images/s")

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        log.info(line)

    def _rate(self) -> float:
        return self._images / max(time.monotonic() - self._began - self.validation_seconds, 1e-9)


class Bar(ProgressBar):
    """A bar in the terminal: steps, time left, loss and accuracy. It shows new figures when a step logged some."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None

    def disable(self) -> None:
        """Called by Lightning on all processes but the first, and by its finders."""
        self._stop()

    def enable(self) -> None:
        """Called by Lightning when its finders are done."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the bar."""
        if not trainer.is_global_zero or not console.is_terminal:
            return
        columns = TextColumn("step {task.completed}/{task.total}"), BarColumn(20), TimeRemainingColumn(compact=True)
        note = TextColumn("{task.fields[note]}")
        self._bar = Progress(*columns, note, console=console, transient=True, redirect_stdout=False)
        self._task = self._bar.add_task("", total=pl_module.run_steps, completed=trainer.global_step, note="")
        self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            if pl_module.logged:
                self._bar.update(self._task, note=_means(trainer, ""))
            self._bar.update(self._task, completed=trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Remove the bar before an error is printed."""
        self._stop()

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar."""
        console.print(terminal(sep.join(map(str, args))), markup=False, emoji=False)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _place(trainer: pl.Trainer, module: Any) -> str:
    steps = module.run_steps
    return f"step {trainer.global_step:>{len(str(steps))}}/{steps}"


def _means(trainer: pl.Trainer, suffix: str) -> str:
    loss, accuracy = _metric(trainer, f"train/loss{suffix}"), _metric(trainer, f"train/accuracy{suffix}")
    return f"loss {loss} accuracy {accuracy}"


def _metric(trainer: pl.Trainer, name: str, label: str = "") -> str:
    value = trainer.callback_metrics.get(name)
    shown = "-" if value is None else f"{float(value):.3f}" if "loss" in name else f"{float(value):.1%}"
    return f"{label} {shown}" if label else shown
