"""The model card: what a model is for, how to use it, how good it is and where it fails, written from its run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from mixer_finetune.augment import Augmentation
from mixer_finetune.backbones.adapters import NAMES
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import BUNDLED, VARIANTS
from mixer_finetune.backbones.folder import beyond_timm
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.data.reading import BUNDLED as BUNDLED_DATA
from mixer_finetune.evaluation.kinds import KINDS
from mixer_finetune.evaluation.label_measures import label_figures
from mixer_finetune.evaluation.label_sets import LabelSets
from mixer_finetune.evaluation.measures import ConfusionMatrix, class_figures, most_confused
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.results import METRIC_NAMES, METRIC_TYPES, Results, metric_name, metric_text, options_of
from mixer_finetune.evaluation.sizes import size_header, size_rows
from mixer_finetune.integrity import as_written, check_unchanged
from mixer_finetune.runs import RunFolder
from mixer_finetune.sharing.card_trust import trust_part
from mixer_finetune.texts import markdown, markdown_code
from mixer_finetune.training.schedule import LONGEST_WARMUP

MOST_LISTED_CLASSES = 50
WORST_CLASSES, WORST_PAIRS = 5, 5
_CITATION = """```bibtex
@article{tolstikhin2021mixer,
  title={MLP-Mixer: An all-MLP Architecture for Vision},
  author={Tolstikhin, Ilya and Houlsby, Neil and Kolesnikov, Alexander and Beyer, Lucas and Zhai, Xiaohua and
    Unterthiner, Thomas and Yung, Jessica and Steiner, Andreas and Keysers, Daniel and Uszkoreit, Jakob and
    Lucic, Mario and Dosovitskiy, Alexey},
  journal={arXiv preprint arXiv:2105.01601},
  year={2021}
}
```"""


def public_name(source: str, revision: str | None) -> str:
    """The name of a data set or backbone in public: its own if it is bundled or on the Hub, else a path's last part."""
    if revision or source in (*BUNDLED, *BUNDLED_DATA, *VARIANTS):
        return source
    return Path(source.partition("?")[0]).name


def partial_note(results: Results) -> str | None:
    """That only a part of the split was measured, in words; None where all of it was."""
    return f"measured on {results.measured_on} images of the split" if results.partial else None


def model_card(run: RunFolder, repo_id: str | None = None, *, backbone: Backbone | None = None) -> str:
    """The card of a run's model as Markdown, with the metadata that the Hub reads.

    Args:
        run: A finished run.
        repo_id: Where the model will be, if that is known.
        backbone: As in the run's model folder, where it is loaded already.

    Raises:
        UserError: The run did not finish.
    """
    config, results = run.read_config(), Results.read(run)
    check_unchanged(run.config_file, run.predictions_file)
    backbone = backbone or load_backbone(run.model)
    data_name = public_name(results.data["source"], results.data["revision"])
    title = repo_id.split("/")[-1] if repo_id else f"{backbone.architecture} on {data_name}"
    parts = [
        f"---\n{_metadata(results, backbone, title, data_name)}\n---",
        f"# {markdown(title)}",
        _purpose(results, backbone, data_name),
        "## Use\n\n" + _usage(backbone, repo_id or "user/name"),
    ]
    if results.metrics:
        predictions = KINDS[results.task].answers.read(run.predictions_file, results.classes)
        classes, limits = _OF_TASK[results.task](results, predictions)
        parts += [
            "## Results\n\n" + _results(results, classes),
            *trust_part(results, markdown),
            "## Limitations\n\n" + _limitations(results, limits),
        ]
    with as_written(run.config_file):
        parts.append("## Training\n\n" + _training(config, results, data_name))
    parts.append("## Citation\n\n" + _CITATION)
    return "\n\n".join(parts) + "\n"


def _metadata(results: Results, backbone: Backbone, title: str, data_name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    start, data, portable = results.backbone, results.data, not beyond_timm(backbone)
    measured = f"{data_name} ({results.measured_on} images)" if results.partial else data_name
    metrics = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=data_name,
            dataset_name=measured,
            dataset_revision=data["revision"],
            dataset_split=results.split,
            metric_type=METRIC_TYPES.get(name, "accuracy"),
            metric_name=METRIC_NAMES[name],
            metric_value=round(value, 5),
        )
        for name, value in results.metrics.items()
        if name in METRIC_NAMES
    ]
    card = ModelCardData(
        library_name="timm" if portable else "mixer_finetune",
        pipeline_tag="image-classification",
        tags=["image-classification", "mlp-mixer", "mixer_finetune", *(["timm", "transformers"] if portable else [])],
        license=start.get("license"),
        datasets=[data["source"]] if data["revision"] else None,
        base_model=start["source"].partition(":")[0] if start.get("revision") else None,
        model_name=title,
        eval_results=metrics or None,
    )
    return str(card.to_yaml())


def _purpose(results: Results, backbone: Backbone, data_name: str) -> str:
    names = results.classes
    listed = ", ".join(markdown(name) for name in names[:MOST_LISTED_CLASSES])
    if names[MOST_LISTED_CLASSES:]:
        listed += f" and {len(names) - MOST_LISTED_CLASSES} more (see `config.json`)"
    (height, width), start = backbone.image_size, results.backbone
    if start["weights"] == "fresh":
        weights = "trained from scratch"
    else:
        source = public_name(start["source"], start.get("revision"))
        weights = f"fine-tuned from {_linked(source, start.get('revision'), '')}"
        if resized := start.get("resized"):
            weights += f" (resized from {resized['from'][0]} x {resized['from'][1]} px by `{resized['method']}`)"
    data = _linked(data_name, results.data["revision"], "datasets/")
    several = results.task == "multi_label"
    asked = "Says which of" if several else "Classifies images into"
    return (
        f"{asked} {len(names)} classes{' an image shows, each on its own' if several else ''}: {listed}.\n\n"
        f"It is a `{backbone.architecture}` for {height} x {width} px with {results.parameters:,} parameters, "
        f"{weights}, trained on {data} by mixer_finetune."
    )


def _linked(name: str, revision: str | None, prefix: str) -> str:
    if not revision:
        return markdown_code(name)
    place = f"https://huggingface.co/{prefix}{name.partition(':')[0]}"
    return f"[{markdown(name)}]({place}) at commit `{revision[:12]}`"


def _usage(backbone: Backbone, repo_id: str) -> str:
    own = (
        "```python\n"
        "from mixer_finetune import load_backbone\n\n"
        "# Images (B, 3, H, W), normalised as model.preprocessing says, to logits.\n"
        f'model = load_backbone("{repo_id}").eval()\n'
        "print(model.preprocessing, model.label_names)\n"
        "```\n\n"
        f"or, from the command line: `mixer-finetune predict {repo_id} FOLDER`."
    )
    if reasons := beyond_timm(backbone):
        return f"{own}\n\nIt does not load in timm or transformers, which have no terms for {'; '.join(reasons)}."
    several = backbone.task == "multi_label"
    sigmoids = "\n# Of each class on its own, for images (B, 3, H, W):\n# model(images).sigmoid()" if several else ""
    return (
        f"{own}\n\nIn timm:\n\n```python\nimport timm\n\n"
        f'model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()\n'
        f"transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model)){sigmoids}\n```\n\n"
        f"In transformers:\n\n```python\nfrom transformers import pipeline\n\n"
        f'classify = pipeline("image-classification", "{repo_id}")\nprint(classify("image.jpg"))\n```\n\n'
        f"As a demo in the browser:\n\n```python\nimport gradio\n\n"
        f'gradio.Interface.from_pipeline(classify).launch()\n```'
    )  # fmt: skip


def _results(results: Results, classes: list[str]) -> str:
    """The metrics, the pictures, and a table of the classes, in lines."""
    the = "" if results.partial else "the "
    lines = [
        f"On {the}{results.measured_on} images of split {markdown_code(str(results.split))}:",
        "",
        "| | | 95% interval |",
        "|-|-|-|",
    ]
    for name, value in results.metrics.items():
        low, high = results.intervals.get(name, (None, None))
        interval = "" if low is None else f"{low:.2%} to {high:.2%}"
        lines.append(f"| {markdown(metric_name(name))} | {metric_text(name, value)} | {interval} |")
    if results.calibration_error is not None:
        lines.append(f"| expected calibration error | {results.calibration_error:.2%} | |")
    if results.sizes:
        lines += ["", "One set of weights answers at several sizes (`load_backbone(..., image_size=...)`):", ""]
        lines += [f"| {' | '.join(row)} |" for row in (size_header(results), "----", *size_rows(results))]
    return "\n".join([*lines, "", *classes])


def _of_one_label(results: Results, predictions: Predictions) -> tuple[list[str], list[str]]:
    """Pictures and classes, and where the model fails, each in lines."""
    matrix = ConfusionMatrix.of(predictions)
    lines = ["![Confusion matrix](confusion_matrix.png)", "", "![Learning curves](learning_curves.png)", ""]
    shown = [(c, c.recall) for c in class_figures(matrix, results.classes) if c.recall is not None]
    if missing := matrix.without_images:
        lines += [f"{missing:,} of {matrix.classes:,} classes have no image in the split and are left out.", ""]
    if len(shown) > MOST_LISTED_CLASSES:
        shown = sorted(shown, key=lambda pair: pair[0].f1)[:MOST_LISTED_CLASSES]
        lines += [f"The {len(shown)} classes with the lowest F1:", ""]
    lines += ["| class | images | recall | precision | F1 |", "|-|-|-|-|-|"]
    for c, recall in shown:
        lines.append(f"| {markdown(c.name)} | {c.images} | {recall:.1%} | {c.precision:.1%} | {c.f1:.1%} |")
    return lines, _failures(results.classes, predictions, matrix)


def _failures(names: list[str], predictions: Predictions, matrix: ConfusionMatrix) -> list[str]:
    recalls = [(c.recall, c) for c in class_figures(matrix, names) if c.recall is not None and c.recall < 1]
    worst = sorted(recalls, key=lambda pair: pair[0])[:WORST_CLASSES]
    told = ", ".join(f"{markdown(c.name)} ({recall:.0%} of {c.images})" for recall, c in worst)
    lines = [f"- Lowest recall: {told}." if worst else "- Every image of the split was classified rightly."]
    if pairs := most_confused(matrix, WORST_PAIRS):
        told = ", ".join(f"{markdown(names[p.true])} called {markdown(names[p.predicted])} ({p.images})" for p in pairs)
        lines.append(f"- Most frequent confusions: {told}.")
    confidence, accuracy = predictions.confidence.mean(), predictions.right.mean()
    tendency = "over" if confidence > accuracy else "under"
    lines.append(
        f"- Calibration: mean confidence {confidence:.1%} at an accuracy of {accuracy:.1%} ({tendency}confident by "
        f"{abs(confidence - accuracy):.1%})."
    )
    return lines


def _of_several_labels(results: Results, found: LabelSets) -> tuple[list[str], list[str]]:
    """Picture and classes, and where the model fails, each in lines."""
    figures = [f for f in label_figures(found) if f.average_precision is not None and f.recall is not None]
    figures.sort(key=lambda f: f.average_precision or 0.0)
    lines = ["![Learning curves](learning_curves.png)", "", "A class is an answer from a probability of 0.5 on.", ""]
    if missing := len(found.names) - len(figures):
        lines += [f"{missing:,} of {len(found.names):,} classes have no image in the split and are left out.", ""]
    lines += ["| class | images | average precision | recall | precision | F1 |", "|-|-|-|-|-|-|"]
    for f in figures[:MOST_LISTED_CLASSES]:
        shares = (f.average_precision, f.recall, f.precision, f.f1)
        lines.append(f"| {markdown(f.name)} | {f.images} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    told = ", ".join(f"{markdown(f.name)} ({f.average_precision:.0%})" for f in figures[:WORST_CLASSES])
    return lines, [f"- Lowest average precision: {told}."]


_OF_TASK: dict[str, Callable[[Results, Any], tuple[list[str], list[str]]]] = {
    "single_label": _of_one_label,
    "multi_label": _of_several_labels,
}


def _limitations(results: Results, failures: list[str]) -> str:
    lines = [f"- {note.capitalize()}."] if (note := partial_note(results)) else []
    lines += failures
    if results.role != "test":
        lines.append(
            "- There was no test split: the results are of the dev split, which choices may have been made on."
        )
    told = "- Measured on images of the same source as the training images; on others expect less."
    if results.task == "single_label":
        told += f" It names one of its {len(results.classes)} classes whatever it is shown."
    lines.append(told)
    if results.bad_images:
        lines.append(f"- {len(results.bad_images)} images could not be decoded and were left out.")
    return "\n".join(lines)


def _training(config: dict[str, Any], results: Results, data_name: str) -> str:
    model, data = options_of(config, "model"), options_of(config, "data")
    revision = results.data["revision"]
    ended = "" if results.ended_by in (None, "schedule") else f", ended by {results.ended_by}"
    rows = {
        "data": f"{data_name}, {results.train_samples:,} training images{f', commit {revision}' if revision else ''}, "
        f"licence: {results.data['license'] or 'not stated'}",
        "trained": _trained(model),
        "method": _method(model, data),
        "weights": None if results.weights == "last" else results.weights,
        "optimizer": _optimizer(model, results.steps),
        "batch": f"{data['batch_size']}, over all devices" if "batch_size" in data else None,
        "steps": f"{results.steps:,}{ended}",
        "augmentation": _augmentation(data),
        "regularisation": ", ".join(
            f"{name.replace('_', ' ')} {model.get(name, 0.0)}" for name in ("label_smoothing", "drop_path")
        ),
        "hardware": f"{results.devices} x {results.device}, precision {results.precision}",
        "time": f"{results.seconds:,.0f} s; energy was not measured",
        "software": f"mixer_finetune {results.versions['mixer_finetune']}, torch {results.versions['torch']}",
    }
    table = "\n".join(f"| {name} | {markdown(text)} |" for name, text in rows.items() if text)
    return (
        f"| | |\n|-|-|\n{table}\n\n"
        "`config.yaml` holds every option: `mixer-finetune fit --config config.yaml` repeats the run."
    )


def _trained(model: dict[str, Any]) -> str:
    train = "head" if model.get("freeze_backbone") else model.get("train", "all")
    if (adapter := model.get("adapter", "none")) != "none":
        where = "all blocks" if train == "all" else train
        size = f"rank {model.get('adapter_rank', 8)} and alpha {model.get('adapter_alpha', 16.0):g}"
        return f"{NAMES.get(adapter, adapter)} of {size} on the linear maps of {where}, and the head; merged"
    return {"all": "all parameters", "head": "the head alone"}.get(train, f"{train}, and the head")


def _method(model: dict[str, Any], data: dict[str, Any]) -> str | None:
    """What was done beside plain fine-tuning."""
    plain = {
        "head": "auto", "unfreeze_every": 0, "layer_decay": 1.0, "head_lr_factor": 1.0, "sam_rho": 0.0,
        "sam_adaptive": False, "ema_decay": 0.0, "loss": "cross_entropy", "class_weights": "none",
        "train_sizes": None, "size_order": "drawn", "final_epochs": 0,
    }  # fmt: skip
    done = [f"{name.replace('_', ' ')} {model[name]}" for name, off in plain.items() if model.get(name, off) != off]
    if model.get("teacher"):
        done.append(f"distilled from {public_name(str(model['teacher']), None)} ({_teaching(model)})")
    if data.get("sampling", "shuffled") != "shuffled":
        done.append(f"sampling {data['sampling']}")
    return ", ".join(done) or None


def _teaching(model: dict[str, Any]) -> str:
    targets = model.get("teacher_targets", "soft")
    at = f" at temperature {model.get('teacher_temperature', 1.0):g}" if targets == "soft" else ""
    return f"{targets} targets{at}, {model.get('teacher_weight', 0.5):.0%} of the loss"


def _optimizer(model: dict[str, Any], steps: int) -> str | None:
    """Optimizer and schedule in words; None where a class of the user's own has no such options."""
    optimizer, scheduler = model.get("optimizer"), model.get("lr_scheduler")
    if optimizer is None:
        return None
    if isinstance(optimizer, str):
        labels = {"lr": "learning rate", "weight_decay": "weight decay"}
        text = ", ".join([optimizer, *(f"{label} {model[name]}" for name, label in labels.items() if name in model)])
    else:
        text = _class_in_words(optimizer)
    if scheduler:
        return f"{text}; {_class_in_words(scheduler)}"
    warmup = model.get("warmup_steps", 0)
    at_most = " (at most a tenth of the run)" if warmup > LONGEST_WARMUP * steps else ""
    return f"{text}, {warmup} warm-up steps{at_most}, then cosine"


def _class_in_words(given: dict[str, Any]) -> str:
    """A class and its options, as config.yaml holds them: "Adam (lr 0.001)"."""
    name = given["class_path"].rpartition(".")[2]
    options = ", ".join(f"{key} {value}" for key, value in (given.get("init_args") or {}).items())
    return f"{name} ({options})" if options else name


def _augmentation(data: dict[str, Any]) -> str | None:
    if "crop_area" not in data:
        return None
    low, high = data["crop_area"]
    given = {field.name: data[field.name] for field in fields(Augmentation) if field.name in data}
    amounts = Augmentation(**given).described(data.get("repeats", 1))
    return ", ".join(
        [f"crops of {low:g} to {high:g} of the area", *amounts, *(["mirrored"] if data.get("flip") else [])]
    )
