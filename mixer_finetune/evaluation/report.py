"""report.html: a run as one self-contained page, which needs no network and no other file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.data.sources import Split
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation import page
from mixer_finetune.evaluation.explain import check_method
from mixer_finetune.evaluation.figures import learning_curves_svg
from mixer_finetune.evaluation.kinds import KINDS
from mixer_finetune.evaluation.report_trust import trust_section
from mixer_finetune.evaluation.report_verdict import previous_section, verdict_paragraph
from mixer_finetune.evaluation.report_weights import weights_section
from mixer_finetune.evaluation.results import Results, metric_name, metric_text
from mixer_finetune.evaluation.run_list import run_title
from mixer_finetune.evaluation.sizes import sizes_section
from mixer_finetune.evaluation.splits import open_data
from mixer_finetune.files import write_text
from mixer_finetune.integrity import as_written, check_unchanged
from mixer_finetune.runs import RunFolder
from mixer_finetune.training.metrics_file import read_rows
from mixer_finetune.training.precision import use_fast_float32


def _nobody_listens(line: str) -> None:
    pass


def write_report(
    run: RunFolder,
    output: Path | None = None,
    *,
    split: Split | None = None,
    backbone: Backbone | None = None,
    method: str = "integrated_gradients",
    say: Callable[[str], None] = _nobody_listens,
) -> Path:
    """Write a run's report.

    Made again from the same run on the same machine, with the same runs beside it, it is the same byte for byte.

    Args:
        run: A finished run.
        output: Where to write; RUN/report.html when None.
        split: The evaluated split, where it is open already; else the data is opened as config.yaml says.
        backbone: As in the run's model folder, where it is loaded already. It is put into evaluation mode, on the
            best device present.
        method: Of explanation: "integrated_gradients" or "occlusion".
        say: Is told what takes time, a line for each.

    Returns:
        The page. Where the data or the backbone that the run started from can't be had any more, it says so in their
        place.

    Raises:
        UserError: The run did not finish, the method is unknown, or the page can't be written.
    """
    check_method(method)
    target = _target(output or run.report)
    config, results = run.read_config(), Results.read(run)
    check_unchanged(run.config_file, run.metrics_file, run.predictions_file)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    backbone = (backbone or load_backbone(run.model)).to(device).eval()
    if device.type == "cpu":
        use_fast_float32()
    kind = KINDS[results.task]
    predictions = kind.answers.read(run.predictions_file, results.classes) if results.metrics else None
    sections = [
        verdict_paragraph(results, predictions),
        _summary(results, backbone),
        sizes_section(results),
        previous_section(run, results),
        page.section("Learning curves", page.row(learning_curves_svg(read_rows(run.metrics_file)), "figure")),
    ]
    if predictions is not None:
        sections += kind.class_sections(predictions)
        sections.append(trust_section(results, predictions))
        if predictions.right.all():
            sections.append(page.section("Mistakes", "<p>None: every image was classified rightly.</p>"))
        else:
            try:
                opened = split or _evaluated_split(run, config, results)
                sections += kind.image_sections(predictions, backbone, opened, method, say)
            except UserError as error:
                problem = f"<p>The images can't be shown: {page.text(error)}.</p>"
                sections.append(page.section("Mistakes", problem))
    with as_written(run.config_file):
        sections.append(weights_section(config, backbone, say))
    sections.append(_time_section(results))
    sections.append(_configuration_section(run, results))
    write_text(target, page.document(run_title(run, config, results), sections))
    return target


def _target(path: Path) -> Path:
    """The place of the page, in a folder that exists.

    Raises:
        UserError: It can't be written there.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, and a report is one file", option="output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror})", option="output") from error
    return path


def _evaluated_split(run: RunFolder, config: dict[str, Any], results: Results) -> Split:
    with as_written(run.config_file):
        data = open_data(config)
    if results.role not in data.splits:
        raise UserError(f"the data has no {results.role} split any more")
    split: Split = data.splits[results.role]
    return split


def _summary(results: Results, backbone: Backbone) -> str:
    tiles = []
    for name, value in results.metrics.items():
        label = page.text(metric_name(name))
        if name in results.intervals:
            low, high = results.intervals[name]
            label += f"<br><small>95% interval {low:.1%} to {high:.1%}</small>"
        tiles.append((metric_text(name, value), label))
    if results.metrics:
        tiles.append((results.measured_on, f"images of split <i>{page.text(results.split)}</i>"))
    tiles.append((f"{len(results.classes):,}", "classes"))
    trained = f"of training, {results.steps:,} steps"
    if results.ended_by not in (None, "schedule"):
        trained += f"<br><small>ended by {page.text(results.ended_by)}</small>"
    tiles.append((page.duration(results.seconds), trained))
    boxes = "".join(f'<div class="tile"><b>{value}</b>{label}</div>' for value, label in tiles)
    return f'<div class="tiles">{boxes}</div>{_about(results, backbone)}{_dev(results)}{_judgement(results)}'


def _about(results: Results, backbone: Backbone) -> str:
    """What was trained on what, and that only a part of the split was measured where that is so."""
    (height, width), start = backbone.image_size, results.backbone
    if start["weights"] == "fresh":
        weights = "from scratch"
    else:
        weights = f"fine-tuned from {page.code(start['source'])}{page.revision(start)}"
    data = f"{page.code(results.data['source'])}{page.revision(results.data)}"
    about = (
        f"<p>{page.code(backbone.architecture)} at {height} x {width} px, {results.parameters:,} parameters, "
        f"{weights}, on {results.train_samples:,} images of {data}; "
        f"{page.text(results.device)}.</p>"
    )
    if results.partial:
        about += f'<p class="warning">Measured on {results.measured_on} images of the split.</p>'
    return about


def _dev(results: Results) -> str:
    if not results.dev:
        return ""
    values = ", ".join(f"{metric_name(name)} {metric_text(name, value)}" for name, value in results.dev.items())
    which = "at the end of training" if results.weights == "last" else f"with the {results.weights} weights"
    return f"<p>On the dev split {page.text(which)}: {page.text(values)}.</p>"


def _judgement(results: Results) -> str:
    return "".join(f"<p>{page.text(sentence)}</p>" for sentence in results.judgement)


def _time_section(results: Results) -> str:
    time = results.time
    names = ("waiting_for_data", "validation", "checkpoints")
    parts = {name: time[name] for name in names if name in time}
    parts = {"training steps": max(time.get("fit", 0.0) - sum(parts.values()), 0.0), **parts}
    if "test" in time:
        parts["test"] = time["test"]
    total = sum(parts.values()) or 1.0
    bar = "".join(
        f'<i class="part{i}" style="width:{value / total:.2%}"></i>' for i, value in enumerate(parts.values())
    )
    key = "".join(
        f'<li><i class="part{i}"></i>{name.replace("_", " ")}: {page.duration(value)} ({value / total:.0%})</li>'
        for i, (name, value) in enumerate(parts.items())
    )
    rate = f"{time.get('images_per_second', 0.0):,.0f} training images/s"
    text = f"<p>{rate} on {page.text(results.device)}, validation aside.</p>"
    return page.section("Where the time went", f'{text}<div class="parts">{bar}</div><ul class="key">{key}</ul>')


def _configuration_section(run: RunFolder, results: Results) -> str:
    config = page.text(run.config_file.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return page.section(
        "Configuration",
        f"<details><summary>config.yaml</summary><pre>{config}</pre></details><p><small>{page.text(versions)}; "
        f"{results.devices} device(s), precision {page.text(results.precision)}.</small></p>",
    )
