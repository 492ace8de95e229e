"""report.html: a run as one self-contained page, which needs no network and no other file."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from PIL import Image

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.data.augment import evaluation_crop, normalize
from mixer_finetune.data.module import ImageDataModule
from mixer_finetune.data.sources import Split
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation import figures, page
from mixer_finetune.evaluation.explain import METHODS, evidence, opposite_pairs, overlay, patch_embeddings, token_units
from mixer_finetune.evaluation.predictions import ClassFigures, Evaluation, wilson
from mixer_finetune.evaluation.results import METRIC_NAMES, read_results
from mixer_finetune.files import write_text
from mixer_finetune.images import BadImage, decode, to_tensor
from mixer_finetune.runs import read_run_config

MISTAKES = 12
PAIRS, IMAGES_OF_A_PAIR = 5, 6
UNITS, UNIT_BLOCKS = 48, 3
WORST_CLASSES = 15


def write_report(
    run: Path, output: Path | None = None, data: ImageDataModule | None = None, method: str = "integrated_gradients"
) -> Path:
    """Write a run's report.

    Args:
        run: Run folder of a finished fit.
        output: Where to write; RUN/report.html when None.
        data: Of the run, where it is open already; else it is opened as the run's configuration says.
        method: Of explanation: "integrated_gradients" or "occlusion".

    Returns:
        The page. Where the data or the backbone that was started from can no longer be had, it says so in their place.

    Raises:
        UserError: Not a run folder, or the run did not finish.
    """
    if method not in METHODS:
        raise UserError(f"--explain must be {' or '.join(METHODS)}, got '{method}'")
    config, results = read_run_config(run), read_results(run)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    backbone = load_backbone(run / "model").eval().to(device)
    sections = [_summary(results, backbone)]
    sections.append(page.section("Learning curves", page.row(figures.learning_curves_svg(run / "metrics.csv"), "figure")))
    if results["metrics"]:
        evaluation = Evaluation.read(run / "predictions.csv", results["classes"])
        sections += _evaluation_sections(evaluation)
        sections.append(_images_section(evaluation, backbone, *_opened(config, data), method))
    sections.append(_weights_section(config, backbone))
    sections.append(_time_section(results))
    sections.append(_configuration_section(run, results))
    template = Template((files("mixer_finetune.evaluation") / "report_template.html").read_text(encoding="utf-8"))
    target = output or run / "report.html"
    title = f"{results['data']['source']}: {results['backbone']['source']}"
    write_text(target, template.substitute(title=html.escape(title), body="\n".join(sections)))
    return target


# The parts of the page


def _summary(results: dict[str, Any], backbone: Backbone) -> str:
    cells = []
    for name, value in results["metrics"].items():
        low, high = results["intervals"][name]
        label = METRIC_NAMES[name]
        cells.append((f"{value:.2%}", f"{label}<br><small>95% interval {low:.1%} to {high:.1%}</small>"))
    if results["metrics"]:
        cells.append((f"{results['samples']:,}", f"images of split <i>{html.escape(str(results['split']))}</i>"))
    cells.append((f"{len(results['classes']):,}", "classes"))
    cells.append((page.duration(results["seconds"]), f"of training, {results['steps']:,} steps"))
    tiles = "".join(f'<div class="tile"><b>{value}</b>{label}</div>' for value, label in cells)
    (height, width), start = backbone.image_size, results["backbone"]
    weights = (
        "from scratch" if start["weights"] == "fresh" else f"fine-tuned from {page.code(start['source'])}{page.revision(start)}"
    )
    about = (
        f"<p>{page.code(backbone.architecture)} at {height} x {width} px, {results['parameters']:,} parameters, {weights}, on "
        f"{results['train_samples']:,} images of {page.code(results['data']['source'])}{page.revision(results['data'])}; "
        f"{html.escape(results['device'])}.</p>"
    )
    return f'{about}<div class="tiles">{tiles}</div>'


def _evaluation_sections(evaluation: Evaluation) -> list[str]:
    points, error = evaluation.calibration()
    calibration = (
        f"<p>Of the answers given with a confidence, how many were right. Expected calibration error: "
        f"<b>{error:.1%}</b> (10 bins).</p>" + page.row([figures.reliability_svg(points)], "figure narrow")
    )
    return [
        page.section("Confusion matrix", _confusion(evaluation)),
        page.section("Classes", _class_bars(evaluation.classes())),
        page.section("Calibration", calibration),
    ]


def _confusion(evaluation: Evaluation) -> str:
    names, counts = evaluation.names, evaluation.confusion
    if len(names) <= figures.MOST_NUMBERED_CLASSES:
        return _confusion_table(counts, names)
    # Too many classes for numbers: a picture of all, which names what the pointer or finger is on, and the worst in numbers.
    wrong = counts * (1 - np.eye(len(names), dtype=np.int64))
    worst = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[: figures.MOST_NUMBERED_CLASSES])
    cells = json.dumps([[int(i), int(j), int(counts[i, j])] for i, j in np.argwhere(counts)], separators=(",", ":"))
    inside = json.dumps({"names": names})[1:-1].replace("<", "\\u003c")
    return (
        "<p>All classes, one pixel an entry (rows: true, columns: predicted; brighter: a larger share of the true class). "
        "Point at an entry to read it.</p>"
        f'<div id="matrix"><img src="{figures.data_uri(figures.confusion_pixels(counts))}" alt="confusion matrix">'
        '<output id="entry">&nbsp;</output></div>'
        f'<script type="application/json" id="confusion">{{{inside},"cells":{cells}}}</script>'
        f"<p>The {len(worst)} classes with most confusions:</p>"
        + _confusion_table(counts[np.ix_(worst, worst)], [names[i] for i in worst])
    )


def _confusion_table(counts: np.ndarray, names: list[str]) -> str:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    head = "".join(f'<th scope="col"><span>{html.escape(name)}</span></th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = "".join(
            f'<td class="{"hit" if i == j else "miss"}" style="--share:{shares[i, j]:.2f}">{counts[i, j] or ""}</td>'
            for j in range(len(names))
        )
        rows.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="confusion"><caption>rows: true, columns: predicted</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _class_bars(classes: list[ClassFigures]) -> str:
    ordered = sorted((c for c in classes if c.images), key=lambda c: c.recall)
    rows = []
    for figure in ordered:
        low, high = wilson(round(figure.recall * figure.images), figure.images)
        rows.append(
            f'<div class="bar"><span>{html.escape(figure.name)}</span>'
            f'<div title="95% interval {low:.0%} to {high:.0%}"><i style="width:{figure.recall:.1%}"></i>'
            f'<u style="left:{low:.1%};width:{high - low:.1%}"></u></div>'
            f"<span>{figure.recall:.1%} <small>of {figure.images:,}; precision {figure.precision:.0%}</small></span></div>"
        )
    text = "<p>Recall of each class, the worst first; the thin line is its 95% interval.</p>" + "".join(rows[:WORST_CLASSES])
    if rows[WORST_CLASSES:]:
        text += f"<details><summary>{len(rows) - WORST_CLASSES} more</summary>{''.join(rows[WORST_CLASSES:])}</details>"
    return text


def _images_section(evaluation: Evaluation, backbone: Backbone, split: Split | None, problem: str, method: str) -> str:
    wrong = evaluation.mistakes()
    if not len(wrong):
        return page.section("Mistakes", "<p>None: every image of the split was classified rightly.</p>")
    if split is None:
        return page.section("Mistakes", f"<p>The images can't be shown: {html.escape(problem)}.</p>")
    names, cards = evaluation.names, []
    shown = wrong[:MISTAKES]
    for row, picture, heat in _seen(evaluation, backbone, split, shown, method):
        cards.append(
            page.card(
                [picture, heat],
                f"<b>{html.escape(names[evaluation.labels[row]])}</b>, called {html.escape(names[evaluation.top[row, 0]])} "
                f"({evaluation.probabilities[row, 0]:.0%})<br><small>{html.escape(Path(evaluation.files[row]).name)}</small>",
            )
        )
    text = page.section(
        f"The {len(cards)} most confident mistakes",
        f"<p>Beside each image, where the evidence for the answer lies ({method.replace('_', ' ')}).</p>"
        + page.row(cards, "card"),
    )
    pairs = []
    for pair in evaluation.confusions(PAIRS):
        (rows,) = np.nonzero((evaluation.labels == pair.true) & (evaluation.top[:, 0] == pair.predicted))
        order = rows[np.argsort(-evaluation.probabilities[rows, 0], kind="stable")][:IMAGES_OF_A_PAIR]
        pictures = [page.img(image) for row in order if (image := _picture(split, evaluation, row)) is not None]
        label = f"{html.escape(names[pair.true])}, called {html.escape(names[pair.predicted])}: {pair.images:,}"
        pairs.append(f'<figure class="pair"><figcaption>{label}</figcaption>{"".join(pictures)}</figure>')
    return text + page.section("Most confused pairs", "".join(pairs))


def _weights_section(config: dict[str, Any], backbone: Backbone) -> str:
    """Token mixing and patch embedding, before and after."""
    before, problem = _start(config, backbone)
    after_units = list(token_units(backbone))[:UNIT_BLOCKS]
    before_units = list(token_units(before))[:UNIT_BLOCKS] if before is not None else []
    rows = []
    for i, after in enumerate(after_units):
        strongest = np.argsort(-np.linalg.norm(after, axis=(1, 2)), kind="stable")[:UNITS]
        order = strongest[opposite_pairs(after[strongest])]
        sheets = [("before", before_units[i][order])] if before_units else []
        sheets.append(("after", after[order]))
        rows.append(
            page.sheets(f"Token mixing, block {i + 1}", [(name, figures.signed_units(units)) for name, units in sheets])
        )
    strength = np.square(patch_embeddings(backbone)).sum((1, 2, 3))
    order = np.argsort(-strength, kind="stable")[:UNITS]
    both = [("before", before), ("after", backbone)] if before is not None else [("after", backbone)]
    filters = [(name, figures.colour_units(patch_embeddings(model)[order])) for name, model in both]
    rows.append(page.sheets("Patch embedding", filters))
    note = (
        f"<p>The {UNITS} strongest units of the first map across tokens in the first blocks, as maps over the image, in pairs "
        "of opposite phase from low to high frequency (figure 5 of the Mixer paper; red above zero, blue below), and the "
        "strongest filters of the patch embedding (its figure 7).</p>"
    )
    if before is None:
        note += f"<p>What they were before can't be shown: {html.escape(problem)}.</p>"
    return page.section("What the weights look like", note + "".join(rows))


def _time_section(results: dict[str, Any]) -> str:
    time = results["time"]
    parts = {name: time[name] for name in ("waiting_for_data", "validation", "checkpoints")}
    parts = {"training steps": max(time["fit"] - sum(parts.values()), 0.0), **parts}
    if "test" in time:
        parts["test"] = time["test"]
    total = sum(parts.values()) or 1.0
    bar = "".join(f'<i class="part{i}" style="width:{value / total:.2%}"></i>' for i, value in enumerate(parts.values()))
    key = "".join(
        f'<li><i class="part{i}"></i>{name.replace("_", " ")}: {page.duration(value)} ({value / total:.0%})</li>'
        for i, (name, value) in enumerate(parts.items())
    )
    text = f"<p>{time['images_per_second']:,.0f} training images/s on {html.escape(results['device'])}, validation aside.</p>"
    return page.section("Where the time went", f'{text}<div class="parts">{bar}</div><ul class="key">{key}</ul>')


def _configuration_section(run: Path, results: dict[str, Any]) -> str:
    config = html.escape((run / "config.yaml").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return page.section(
        "Configuration",
        f"<p>{html.escape(versions)}</p><details><summary>config.yaml</summary><pre>{config}</pre></details>",
    )


# What the parts need


def _opened(config: dict[str, Any], data: ImageDataModule | None) -> tuple[Split | None, str]:
    """The split that was evaluated, or why it can't be had."""
    try:
        data = data or ImageDataModule(**config["data"], seed=config["seed_everything"])
        if data.evaluation_role is None:
            return None, "the data has neither a test nor a dev split any more"
        return data.splits[data.evaluation_role], ""
    except UserError as error:
        return None, str(error)


def _start(config: dict[str, Any], backbone: Backbone) -> tuple[Backbone | None, str]:
    """The backbone as it was before fine-tuning, at the same size, or why it can't be had."""
    names = ("image_size", "patch_size", "in_chans", "resize", "revision")
    options = {name: config["model"][name] for name in names}
    try:
        before = load_backbone(config["model"]["backbone"], **options, seed=config["seed_everything"])
    except UserError as error:
        return None, str(error)
    if before.geometry != backbone.geometry:
        return None, "the backbone that the configuration names is now another one"
    return before, ""


def _seen(
    evaluation: Evaluation, backbone: Backbone, split: Split, rows: np.ndarray, method: str
) -> list[tuple[int, str, str]]:
    """For each row that can be decoded: the row, what the model saw, and that with the evidence over it."""
    kept, crops = [], []
    for row in rows:
        if (image := _decoded(split, evaluation, int(row), backbone.preprocessing.mode)) is not None:
            kept.append(int(row))
            crops.append(evaluation_crop(image, backbone.preprocessing))
    if not kept:
        return []
    images = normalize(torch.stack([to_tensor(crop) for crop in crops]), backbone.preprocessing)
    device = backbone.stem.proj.weight.device
    heats = evidence(backbone, images.to(device), torch.from_numpy(evaluation.top[kept, 0]).to(device), method).cpu().numpy()
    return [
        (row, page.img(_thumbnail(crop)), page.img(_thumbnail(overlay(crop, heat))))
        for row, crop, heat in zip(kept, crops, heats, strict=True)
    ]


def _decoded(split: Split, evaluation: Evaluation, row: int, mode: str = "RGB") -> Image.Image | None:
    index = evaluation.indices[row : row + 1]
    if index[0] >= len(split):
        return None  # the data is no longer what it was
    try:
        return decode(split.image_records(index)[0], evaluation.files[row], 2 * page.THUMBNAIL, mode)
    except BadImage:
        return None


def _picture(split: Split, evaluation: Evaluation, row: int) -> Image.Image | None:
    image = _decoded(split, evaluation, int(row))
    return None if image is None else _thumbnail(image)


def _thumbnail(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.thumbnail((page.THUMBNAIL, page.THUMBNAIL))
    return image
