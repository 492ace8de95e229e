"""Ending a run whose dev split gets no better."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


class EarlyStop(pl.Callback):
    """Stops when neither the dev loss nor the monitored metric has reached a new best for some validations.

    Both count, since accuracy on a small dev split stands still for epochs in which the loss still falls.

    Args:
        patience: Validations without a new best, one an epoch unless Lightning is told otherwise.
        monitor: Of the dev split, more is better: "val/accuracy".

    Attributes:
        stopped: Whether it ended the run.
    """

    def __init__(self, patience: int, monitor: str) -> None:
        self.patience, self.metric, self.stopped = patience, monitor, False
        self._best = {"loss": float("inf"), "metric": float("-inf")}
        self._waited = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """End a run at once that was killed behind its last epoch."""
        self._stop_if_due(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Look at the dev metrics, which are those of all processes."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        loss, metric = (float(trainer.callback_metrics[name]) for name in ("val/loss", self.metric))
        self._waited = 0 if loss < self._best["loss"] or metric > self._best["metric"] else self._waited + 1
        self._best = {"loss": min(loss, self._best["loss"]), "metric": max(metric, self._best["metric"])}
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer: pl.Trainer) -> None:
        if self._waited >= self.patience:
            trainer.should_stop = self.stopped = True

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and for how long it has been so."""
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a checkpoint's."""
        self._best, self._waited = state_dict["best"], state_dict["waited"]
