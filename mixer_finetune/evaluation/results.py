"""results.json, predictions.csv and the pictures of a run."""

from __future__ import annotations

import csv
import io
import json
import platform
import re
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixer_finetune import __version__
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.figures import confusion_matrix_figure, learning_curves_figure
from mixer_finetune.evaluation.predictions import Evaluation
from mixer_finetune.evaluation.rows import prediction_columns
from mixer_finetune.files import write_text

# As people write them.
METRIC_NAMES = {"accuracy": "top-1 accuracy", "top5_accuracy": "top-5 accuracy", "macro_f1": "macro-F1"}
_VERSIONS_OF = ("torch", "torchvision", "lightning", "torchmetrics", "datasets", "huggingface_hub", "numpy")


def collect_results(model: Any, data: Any, role: str | None) -> dict[str, Any]:
    """What was measured, on what, with which versions.

    Args:
        model: The MixerClassifier, after `trainer.test`.
        data: The ImageDataModule.
        role: Of the split that was tested; None where there is none.
    """
    metrics, samples = {}, 0
    if role is not None:
        logged = model.trainer.callback_metrics
        metrics = {key.removeprefix("test/"): float(value) for key, value in logged.items() if key.startswith("test/")}
        samples = len(model.test_table)
    return {
        "metrics": metrics,
        "split": data.splits[role].name if role else None,
        "role": role,
        "samples": samples,
        "train_samples": len(data.splits["train"]) if "train" in data.splits else 0,
        "bad_images": sorted(data.bad_images),
        "classes": data.label_names,
        "backbone": model.backbone.origin,
        "preprocessing": model.backbone.preprocessing.to_pretrained_cfg(),
        "data": {"source": data.source, "revision": data.revision, "license": data.license},
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "device": _device_name(model.trainer),
        "devices": model.trainer.world_size,
        "precision": str(model.trainer.precision),
        "versions": {
            "mixer_finetune": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _VERSIONS_OF},
        },
    }


def _device_name(trainer: Any) -> str:
    """What computed: a GPU's name, or the processor's and how many threads each process had."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.machine()
    with suppress(OSError):  # only Linux says it there
        if found := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
            model = found[1]
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else f"{device.type} ({model})"


def write_results(run: Path, results: dict[str, Any], model: Any, data: Any) -> None:
    """Write results.json, predictions.csv and the pictures into the run folder; intervals are added to the results."""
    learning_curves_figure(run / "metrics.csv", run / "learning_curves.png")
    if model.test_table is not None:
        title = f"{results['split']}: {results['metrics']['accuracy']:.2%} of {results['samples']:,} right"
        split = data.splits[data.evaluation_role]
        write_text(run / "predictions.csv", _predictions_csv(model.test_table.numpy(), split, data.label_names))
        evaluation = Evaluation.read(run / "predictions.csv", data.label_names)
        confusion_matrix_figure(evaluation.confusion, data.label_names, title, run / "confusion_matrix.png")
        results["intervals"] = {name: [round(end, 5) for end in ends] for name, ends in evaluation.intervals().items()}
        results["calibration_error"] = round(evaluation.calibration()[1], 5)
    write_text(run / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def read_results(run: Path) -> dict[str, Any]:
    """The results.json of a run folder.

    Raises:
        UserError: There is none, because the run did not finish, or it can't be read.
    """
    path = run / "results.json"
    if not path.is_file():
        raise UserError(f"{run} has no results.json: the run did not finish; go on with fit --resume {run}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} can't be read: {error}") from error


def _predictions_csv(rows: np.ndarray, split: Any, names: list[str]) -> str:
    """A line an image of the split, in its order: position, name, label, then the top labels with their probabilities."""
    k = (rows.shape[1] - 2) // 2
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "file", "label", *prediction_columns(k)])
    for row in rows[np.argsort(rows[:, 0])]:
        index, label, top, probabilities = int(row[0]), int(row[1]), row[2 : 2 + k].astype(int), row[2 + k :]
        cells = _prediction_cells(top, probabilities, names)
        writer.writerow([index, split.image_name(index), names[label], *cells])
    return text.getvalue()


def _prediction_cells(top: Any, probabilities: Any, names: list[str]) -> list[str]:
    """Cells of the k most probable labels: name and probability in turn."""
    return [cell for i, p in zip(top, probabilities, strict=True) for cell in (names[int(i)], f"{float(p):.6f}")]
