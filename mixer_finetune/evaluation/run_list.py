"""What is in a folder of runs: of each its data, backbone, method and result, read from its small files without torch.

Runs that differ by nothing but the seed are taken together: their mean and spread say how much of a difference between
two runs is chance.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.results import Results, options_of
from mixer_finetune.runs import RunFolder, runs_below

log = logging.getLogger(__name__)
# What two runs of one method may differ in, beside the seed: where they are kept and shared.
_NOT_THE_METHOD = ("seed_everything", "output_dir", "name", "push", "save_every_n_steps")


@dataclass(frozen=True)
class ListedRun:
    """A run in a list.

    Attributes:
        run: Its folder.
        started: When, as ISO 8601 in local time.
        state: "finished", "trained" (not evaluated yet), "unfinished", or "damaged" (a file of it can't be read).
        config: Content of config.yaml.
        results: None where it is not finished.
        problem: What can't be read of it; empty where all can.
    """

    run: RunFolder
    started: str
    state: str
    config: dict[str, Any] = field(default_factory=dict)
    results: Results | None = None
    problem: str = ""

    @classmethod
    def of(cls, run: RunFolder) -> ListedRun:
        """Read a run's small files."""
        started = run.started.isoformat()
        try:
            config = run.read_config()
            if run.results_file.is_file():
                return cls(run, started, "finished", config, Results.read(run))
            return cls(run, started, "trained" if run.training_file.is_file() else "unfinished", config)
        except UserError as error:
            return cls(run, started, "damaged", problem=str(error))

    @property
    def source(self) -> str:
        """The data, as the user calls it."""
        if self.results is not None:
            return str(self.results.data["source"])
        return str(options_of(self.config, "data").get("source") or "")

    @property
    def backbone(self) -> str:
        """What was trained, as the user calls it."""
        if self.results is not None:
            return str(self.results.backbone["source"])
        return str(options_of(self.config, "model").get("backbone") or "")

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.config.get("seed_everything") or 0)

    @property
    def metric(self) -> str | None:
        """Name of the metric that stands for the run; None where nothing was measured."""
        if self.results is None or not self.results.metrics:
            return None
        monitor = self.results.monitor
        return monitor if monitor in self.results.metrics else next(iter(self.results.metrics))

    @property
    def value(self) -> float | None:
        """Of that metric."""
        return None if self.results is None or self.metric is None else self.results.metrics[self.metric]

    def as_json(self) -> dict[str, Any]:
        """The run as the list gives it to programs."""
        results = self.results
        found = {
            "run": str(self.run),
            "name": self.config.get("name"),
            "started": self.started,
            "state": self.state,
            "problem": self.problem or None,
            "source": self.source,
            "backbone": self.backbone,
            "method": method(self.config, results),
            "seed": self.seed,
        }
        if results is None:
            return found
        return {
            **found,
            "revision": results.data.get("revision"),
            "split": results.split,
            "samples": results.samples,
            "classes": len(results.classes),
            "metric": self.metric,
            "value": self.value,
            "interval": results.intervals.get(self.metric or ""),
            "metrics": results.metrics,
            "intervals": results.intervals,
            "seconds": results.seconds,
        }


def run_title(run: RunFolder, config: Mapping[str, Any], results: Results | None = None) -> str:
    """Name and time of a run, without its place: "digits, 2026-11-25 18:02:10".

    Args:
        run: Its folder.
        config: Content of its config.yaml.
        results: Of it, which say when a run began that was put elsewhere since.
    """
    name = (results.name if results else None) or config.get("name") or run.path.resolve().parent.name
    started = datetime.fromisoformat(results.started) if results and results.started else run.started
    return f"{name}, {started:%Y-%m-%d %H:%M:%S}"


def method(config: Mapping[str, Any], results: Results | None = None) -> str:
    """How a run trained, in a few words; what is as usual is left out.

    Args:
        config: Content of config.yaml.
        results: Of the run, which know the learning rate that was taken; None where there are none.
    """
    if not config:
        return ""
    model, data = options_of(dict(config), "model"), options_of(dict(config), "data")
    trainer = config.get("trainer") or {}
    trained = "head" if model.get("freeze_backbone") else model.get("train", "all")
    fresh = results is not None and results.backbone.get("weights") == "fresh"
    words = ["from scratch" if fresh else {"all": "fine-tuned", "head": "head alone"}.get(trained, str(trained))]
    optimizer = model.get("optimizer", "sgd")
    if isinstance(optimizer, Mapping):
        optimizer = str(optimizer.get("class_path", "")).rpartition(".")[2]
    rate = results.lr if results is not None and results.lr else model.get("lr")
    words.append(f"{optimizer} {rate}" if rate is not None else str(optimizer))
    if (trainer.get("max_steps") or -1) > 0:
        words.append(f"{trainer['max_steps']} steps")
    elif (epochs := trainer.get("max_epochs")) is not None:
        words.append(f"{epochs} epoch{'' if epochs == 1 else 's'}")
    if size := model.get("image_size"):
        words.append("x".join(map(str, size if isinstance(size, list) else [size])) + " px")
    if (adapter := model.get("adapter", "none")) != "none":
        words[0] = f"{adapter} of rank {model.get('adapter_rank', 8)}"
    usual: dict[str, Any] = {"layer_decay": 1.0, "drop_path": 0.0, "label_smoothing": 0.0, "sam_rho": 0.0}
    usual |= {"ema_decay": 0.0, "loss": "cross_entropy", "class_weights": "none", "head": "auto", "teacher": None}
    usual |= {"train_sizes": None}
    words += [f"{name} {model[name]}" for name, value in usual.items() if model.get(name, value) != value]
    mixing = {"mixup": 0.0, "cutmix": 0.0, "sampling": "shuffled", "train_fraction": 1.0, "images_per_class": None}
    words += [f"{name} {data[name]}" for name, value in mixing.items() if data.get(name, value) != value]
    if results is not None and results.weights != "last":
        words.append(f"{results.weights} weights")
    return ", ".join(words)


def list_runs(folder: str | Path, source: str | None = None, backbone: str | None = None) -> list[ListedRun]:
    """The runs in a folder, the newest first.

    Args:
        folder: As `--output_dir` of fit.
        source: A part of the name of the data that is wanted, in any case.
        backbone: A part of the name of the backbone that is wanted.

    Raises:
        UserError: There is no such folder.
    """
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"there is no folder {folder}", option="output_dir")
    found = [ListedRun.of(run) for run in runs_below(folder)]
    for wanted, name in ((source, "source"), (backbone, "backbone")):
        if wanted is not None:
            found = [each for each in found if wanted.casefold() in getattr(each, name).casefold()]
    return found


@dataclass(frozen=True)
class Seeds:
    """Runs that differ by nothing but the seed.

    Attributes:
        runs: One of each seed, by seed; of several with one seed the newest, since they are repetitions.
        metric: Name of the metric.
    """

    runs: Sequence[ListedRun]
    metric: str

    @property
    def values(self) -> list[float]:
        """Of the metric, by run."""
        return [float(each.value) for each in self.runs if each.value is not None]

    @property
    def mean(self) -> float:
        """Of the values."""
        return mean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation of the values, with n - 1."""
        return stdev(self.values)

    def as_json(self) -> dict[str, Any]:
        """The group as the list gives it to programs."""
        return {
            "runs": [str(each.run) for each in self.runs],
            "seeds": [each.seed for each in self.runs],
            "metric": self.metric,
            "values": self.values,
            "mean": self.mean,
            "standard_deviation": self.spread,
            "lowest": min(self.values),
            "highest": max(self.values),
        }


def seed_groups(runs: Sequence[ListedRun]) -> list[Seeds]:
    """Runs that differ by nothing but the seed, in groups of two or more, in the order of the runs."""
    groups: dict[str, dict[int, ListedRun]] = {}
    for each in sorted(runs, key=lambda listed: listed.run.in_time, reverse=True):
        if each.results is not None and each.value is not None and not each.results.partial:
            groups.setdefault(_method_key(each), {}).setdefault(each.seed, each)
    found = [[group[seed] for seed in sorted(group)] for group in groups.values() if len(group) > 1]
    return [Seeds(group, str(group[0].metric)) for group in found]


def _method_key(each: ListedRun) -> str:
    """What makes two runs the same but for the seed: configuration, commits of data and backbone, weights measured."""
    assert each.results is not None
    config = {name: value for name, value in each.config.items() if name not in _NOT_THE_METHOD}
    commits = [origin.get("revision") for origin in (each.results.data, each.results.backbone)]
    return json.dumps([config, commits, each.results.weights, each.results.split], sort_keys=True, default=str)
