"""metrics.csv: what a run logs, a row a step."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from mixer_finetune.files import write_text

FLUSH_SECONDS = 5.0


class MetricsFile(pl.Callback):
    """Appends what each step logged to a CSV file, on the first process.

    A checkpoint notes the step of its last row. A resumed run drops the rows behind it, and so goes on with the file
    that a run without interruption would have.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        self._waiting: dict[int, dict[str, str]] = {}  # rows by step, not written yet
        self._last_step = 0
        self._flushed = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take what the step logged."""
        if pl_module.logged:
            self._take(trainer, "train/")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take the dev metrics."""
        if not trainer.sanity_checking:
            self._take(trainer, "val/")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write what is left."""
        self._flush()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Write what there is when the run is interrupted."""
        self._flush()

    def state_dict(self) -> dict[str, Any]:
        """The step of the last row, which is in the file then."""
        self._flush()
        return {"step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Drop the rows behind the checkpoint."""
        self._last_step = state_dict["step"]
        rows = read_rows(self.path)
        kept = [row for row in rows if int(row["step"]) <= self._last_step]
        self._columns = list(rows[0]) if rows else []
        if len(kept) < len(rows):
            self._write_whole(kept)

    def _take(self, trainer: pl.Trainer, prefix: str) -> None:
        if not trainer.is_global_zero:
            return
        ended = prefix == "val/" or trainer.is_last_batch or trainer.global_step == trainer.max_steps
        values = {
            name: f"{float(value):.6g}"
            for name, value in trainer.callback_metrics.items()
            if name.startswith(prefix) and (ended or not name.endswith("_epoch"))
        }
        self._last_step = trainer.global_step
        row = {"step": str(trainer.global_step), "epoch": str(trainer.current_epoch + 1)}
        self._waiting.setdefault(trainer.global_step, row).update(values)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            # The present step's row may get dev metrics yet.
            self._flush(before=trainer.global_step)

    def _flush(self, before: int | None = None) -> None:
        rows = [row for step, row in self._waiting.items() if before is None or step < before]
        if not rows:
            return
        self._waiting = {} if before is None else {s: row for s, row in self._waiting.items() if s >= before}
        self._flushed = time.monotonic()
        if unknown := [name for row in rows for name in row if name not in self._columns]:
            names = sorted({*self._columns, *unknown} - {"step", "epoch"})
            self._columns = ["step", "epoch", *names]
            self._write_whole(read_rows(self.path) + rows)
        else:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self._lines(rows))  # one write: a killed process leaves whole lines

    def _write_whole(self, rows: list[dict[str, str]]) -> None:
        header = ",".join(self._columns) + "\n"
        write_text(self.path, header + self._lines(rows))

    def _lines(self, rows: list[dict[str, str]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv, each with all its columns; none where there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]
