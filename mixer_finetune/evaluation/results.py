"""results.json: what a run measured, on what, with what."""

from __future__ import annotations

import platform
import re
import types
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from mixer_finetune import __version__
from mixer_finetune.backbones.backbone import TASK_NAMES
from mixer_finetune.errors import UserError
from mixer_finetune.runs import RunFolder

if TYPE_CHECKING:
    import lightning.pytorch as pl

METRIC_NAMES = {
    "accuracy": "top-1 accuracy",
    "top5_accuracy": "top-5 accuracy",
    "macro_f1": "macro-F1",
    "map": "mean average precision",
    "micro_f1": "micro-F1",
    "exact_match": "exact match",
}
# As the Hub's model index calls them; all others are accuracies.
METRIC_TYPES = {"macro_f1": "f1", "micro_f1": "f1", "map": "mAP", "exact_match": "exact_match"}
_VERSIONS_OF = ("torch", "torchvision", "lightning", "torchmetrics", "datasets", "huggingface_hub", "numpy")


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a run measured, on what, with what: the content of results.json.

    Attributes:
        metrics: On the evaluated split, by name; empty where nothing was evaluated.
        split: Name of the evaluated split; None where there is none.
        role: Of the evaluated split, "test" or "val"; None where there is none.
        samples: Images that were evaluated.
        split_samples: Images of the whole split.
        train_samples: Images of the training split.
        bad_images: What went wrong with images that could not be decoded.
        classes: Names of the classes, in order.
        task: "single_label" or "multi_label".
        monitor: The metric that tells better weights from worse ones.
        dev: Metrics and loss on the dev split at the end of training; None where there is no dev split.
        backbone: Where the weights came from: `source`, `weights`, `revision`, ...
        preprocessing: As in timm's `pretrained_cfg`.
        data: `source`, `revision` and `license` of the data set.
        parameters: Of the whole model.
        trained_parameters: Those that training changed.
        device: What computed.
        devices: How many of them.
        precision: As Lightning calls it.
        versions: Of Python and packages.
        seconds: Of training, with evaluation in between, over all parts of a resumed run.
        steps: Optimizer steps.
        ended_by: What ended training: "schedule", "max_time", the name of a callback; None where it is not known.
        time: Seconds that parts of the run took, and training images a second.
        intervals: 95% intervals of the metrics.
        calibration_error: Expected calibration error; None where nothing was evaluated.
        weights: Which were evaluated and are exported: "last", "best", "average", "wise 0.6", "lines 0.3", ...
        lr: Highest learning rate, and where it is from; None where it is not known.
        judgement: What the run's numbers say about it, sentence by sentence.
        name: Of the run; None in earlier files.
        started: When it began, as ISO 8601 in local time; None in earlier files.
        files: sha256 of what the run wrote, by path in its folder.
        calibration: The temperature, what it was fitted on, and log-loss and calibration error `before` and `after` it
            on the evaluated split; None where there was no dev split.
        sizes: Of a model that was trained for several sizes, at each: `image_size`, `macs`, `metrics`, and `own` where
            it is the model's.
    """

    metrics: dict[str, float]
    split: str | None
    role: str | None
    samples: int
    split_samples: int
    train_samples: int
    bad_images: list[str]
    classes: list[str]
    task: str = "single_label"
    monitor: str = "accuracy"
    dev: dict[str, float] | None = None
    backbone: dict[str, Any]
    preprocessing: dict[str, Any]
    data: dict[str, Any]
    parameters: int
    trained_parameters: int
    device: str
    devices: int
    precision: str
    versions: dict[str, str]
    seconds: float
    steps: int
    ended_by: str | None = None
    time: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    calibration_error: float | None = None
    weights: str = "last"
    lr: str | None = None
    judgement: list[str] = field(default_factory=list)
    name: str | None = None
    started: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    sizes: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, run: RunFolder) -> Results:
        """The results of a finished run.

        Raises:
            UserError: There are none, because the run did not finish, or they can't be read.
        """
        content = run.read_json(run.results_file)
        if content is None:
            raise UserError(f"{run} has no results.json: the run did not finish", advice=f"go on with {{resume}} {run}")
        if "samples" in content:  # earlier files do not say how large the split is
            content.setdefault("split_samples", content["samples"])
        kinds = get_type_hints(cls)
        known = {item.name: content[item.name] for item in fields(cls) if item.name in content}
        for name, value in known.items():
            if not _fits(value, kinds[name]) or not _holds(value, _INSIDE.get(name, {})):
                raise UserError(f"{run.results_file} can't be read: {name} is not what belongs there")
        if known.get("task", TASK_NAMES[0]) not in TASK_NAMES:
            raise UserError(f"{run.results_file} can't be read: its task is none of {', '.join(TASK_NAMES)}")
        try:
            found = cls(**known)
        except TypeError as error:
            raise UserError(f"{run.results_file} can't be read: {error}") from error
        return replace(found, intervals={name: (low, high) for name, (low, high) in found.intervals.items()})

    def write(self, run: RunFolder) -> None:
        """Write results.json."""
        run.write_json(run.results_file, asdict(self))

    def with_intervals(self, intervals: dict[str, tuple[float, float]], calibration_error: float) -> Results:
        """The same with intervals of the metrics, and the calibration error."""
        rounded = {name: (round(low, 5), round(high, 5)) for name, (low, high) in intervals.items()}
        return replace(self, intervals=rounded, calibration_error=round(calibration_error, 5))

    @property
    def partial(self) -> bool:
        """Whether only a part of the split was evaluated."""
        return self.samples < self.split_samples

    @property
    def measured_on(self) -> str:
        """How many images the metrics are of: "359", or "200 of 10,000"."""
        return f"{self.samples:,} of {self.split_samples:,}" if self.partial else f"{self.samples:,}"


# What must lie in the fields that hold more than values of one kind.
_RESIZED = {"from": tuple[int, int], "to": tuple[int, int], "method": str}
_ORIGIN = {"source": str, "weights": str, "revision": str | None, "license": str | None, "resized": _RESIZED}
_INSIDE: dict[str, dict[str, Any]] = {
    "backbone": _ORIGIN,
    "data": {"source": str, "revision": str | None},
    "versions": {"mixer_finetune": str, "torch": str},
}


def _holds(value: Any, inside: dict[str, Any]) -> bool:
    """Whether the parts of a dict are of their kinds; a part that is a dict itself may be left out."""
    return all(
        value.get(key) is None or isinstance(value[key], dict) and _holds(value[key], kind)
        if isinstance(kind, dict)
        else _fits(value.get(key), kind)
        for key, kind in inside.items()
    )


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value that was read from JSON is of a kind, as the annotations of `Results` say it."""
    parts = get_args(kind)
    match get_origin(kind):
        case types.UnionType:
            return any(_fits(value, part) for part in parts)
        case kind_of if kind_of is dict:
            return isinstance(value, dict) and all(_fits(each, parts[1]) for each in value.values())
        case kind_of if kind_of is list:
            return isinstance(value, list) and all(_fits(each, parts[0]) for each in value)
        case kind_of if kind_of is tuple:
            return isinstance(value, list) and len(value) == len(parts) and all(map(_fits, value, parts))
    if kind is float:
        return isinstance(value, float) or isinstance(value, int) and _fits(abs(value), int) and value is not True
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return kind is Any or isinstance(value, kind)


def metric_name(name: str) -> str:
    """A metric as people write it."""
    return METRIC_NAMES.get(name, name.replace("_", " "))


def metric_text(name: str, value: float) -> str:
    """A metric's value as people write it: shares in percent, anything else as a number."""
    return f"{value:.2%}" if name in METRIC_NAMES else f"{value:.4g}"


def options_of(config: dict[str, Any], group: str) -> dict[str, Any]:
    """The options of a group of a configuration, which may name a class of the user's own beside them.

    Args:
        config: Content of config.yaml.
        group: "model" or "data".
    """
    options: dict[str, Any] = config.get(group) or {}
    if "class_path" in options:
        return dict(options.get("init_args") or {})
    return dict(options)


def versions() -> dict[str, str]:
    """The versions of this package, of Python and of the packages that results depend on."""
    return {
        "mixer_finetune": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _VERSIONS_OF},
    }


def device_name(trainer: pl.Trainer) -> str:
    """What computed: a GPU's name, or the processor's and how many threads each process had."""
    import torch  # the list of runs, which reads results, does without

    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.machine()
    with suppress(OSError):  # only Linux says it there
        if found := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
            model = found[1]
    if device.type != "cpu":
        return f"{device.type} ({model})"
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}"
