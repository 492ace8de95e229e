"""The model card: what a run's model is for, how to use it, how good it is and where it fails, written from the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixer_finetune import __version__
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import VARIANTS
from mixer_finetune.backbones.folder import beyond_timm
from mixer_finetune.backbones.load import BUNDLED, load_backbone
from mixer_finetune.data.sources import BUNDLED as BUNDLED_DATA
from mixer_finetune.evaluation.predictions import Evaluation
from mixer_finetune.evaluation.results import METRIC_NAMES, read_results
from mixer_finetune.runs import read_run_config

MOST_LISTED_CLASSES = 50
WORST_CLASSES, WORST_PAIRS = 5, 5
_CITATION = """```bibtex
@article{tolstikhin2021mixer,
  title={MLP-Mixer: An all-MLP Architecture for Vision},
  author={Tolstikhin, Ilya and Houlsby, Neil and Kolesnikov, Alexander and Beyer, Lucas and Zhai, Xiaohua and Unterthiner,
    Thomas and Yung, Jessica and Steiner, Andreas and Keysers, Daniel and Uszkoreit, Jakob and Lucic, Mario and
    Dosovitskiy, Alexey},
  journal={arXiv preprint arXiv:2105.01601},
  year={2021}
}
```"""


def public_name(source: str, revision: str | None) -> str:
    """What to call a data set or backbone in public: its name if it is bundled or the Hub's, else the last part of a path."""
    if revision or source in (*BUNDLED, *BUNDLED_DATA, *VARIANTS):
        return source
    return Path(source.partition("?")[0]).name


def model_card(run: Path, repo_id: str | None = None) -> str:
    """The card of a run's model as Markdown, with the metadata that the Hub reads.

    Args:
        run: Run folder of a finished fit.
        repo_id: Where the model will be, if that is known.

    Raises:
        UserError: Not a run folder, or the run did not finish.
    """
    config, results = read_run_config(run), read_results(run)
    backbone = load_backbone(run / "model")
    evaluation = Evaluation.read(run / "predictions.csv", results["classes"]) if results["metrics"] else None
    data_name = public_name(results["data"]["source"], results["data"]["revision"])
    title = repo_id.split("/")[-1] if repo_id else f"{backbone.architecture} on {data_name}"
    parts = [
        f"---\n{_metadata(results, backbone, title, data_name)}\n---",
        f"# {title}",
        _purpose(results, backbone, data_name),
        "## Use\n\n" + _usage(backbone, repo_id or "user/name"),
    ]
    if evaluation:
        parts += ["## Results\n\n" + _results(results, evaluation), "## Limitations\n\n" + _limitations(results, evaluation)]
    parts += ["## Training\n\n" + _training(config, results, data_name), "## Citation\n\n" + _CITATION]
    return "\n\n".join(parts) + "\n"


def _metadata(results: dict[str, Any], backbone: Backbone, title: str, data_name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    start, data, portable = results["backbone"], results["data"], not beyond_timm(backbone)
    metrics = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=data_name,
            dataset_name=data_name,
            dataset_revision=data["revision"],
            dataset_split=results["split"],
            metric_type="f1" if name == "macro_f1" else "accuracy",
            metric_name=METRIC_NAMES[name],
            metric_value=round(value, 5),
        )
        for name, value in results["metrics"].items()
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
    return card.to_yaml()


def _purpose(results: dict[str, Any], backbone: Backbone, data_name: str) -> str:
    names = results["classes"]
    listed = ", ".join(_cell(name) for name in names[:MOST_LISTED_CLASSES])
    if names[MOST_LISTED_CLASSES:]:
        listed += f" and {len(names) - MOST_LISTED_CLASSES} more (see `config.json`)"
    (height, width), start = backbone.image_size, results["backbone"]
    if start["weights"] == "fresh":
        weights = "trained from scratch"
    else:
        source = public_name(start["source"], start.get("revision"))
        weights = f"fine-tuned from {_linked(source, start.get('revision'), '')}"
        if resized := start.get("resized"):
            weights += f" (resized from {resized['from'][0]} x {resized['from'][1]} px by `{resized['method']}`)"
    return (
        f"Classifies images into {len(names)} classes: {listed}.\n\n"
        f"It is a `{backbone.architecture}` for {height} x {width} px with {results['parameters']:,} parameters, {weights}, "
        f"trained on {_linked(data_name, results['data']['revision'], 'datasets/')} by mixer_finetune."
    )


def _linked(name: str, revision: str | None, prefix: str) -> str:
    if not revision:
        return f"`{name}`"
    return f"[{name}](https://huggingface.co/{prefix}{name.partition(':')[0]}) at commit `{revision[:12]}`"


def _usage(backbone: Backbone, repo_id: str) -> str:
    own = (
        "```python\n"
        "from mixer_finetune import load_backbone\n\n"
        f'model = load_backbone("{repo_id}").eval()  # images (B, 3, H, W) normalised as model.preprocessing says, to logits\n'
        "print(model.preprocessing, model.label_names)\n"
        "```\n\n"
        f"or, from the command line: `mixer-finetune predict {repo_id} FOLDER`."
    )
    if reasons := beyond_timm(backbone):
        return f"{own}\n\nIt does not load in timm or transformers, which have no terms for {'; '.join(reasons)}."
    return (
        f"{own}\n\nIn timm:\n\n```python\nimport timm\n\n"
        f'model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n```\n\n"
        f"In transformers:\n\n```python\nfrom transformers import pipeline\n\n"
        f'classify = pipeline("image-classification", "{repo_id}")\nprint(classify("image.jpg"))\n```\n\n'
        f"As a demo in the browser:\n\n```python\nimport gradio\n\n"
        f'gradio.Interface.from_pipeline(classify).launch()\n```'
    )  # fmt: skip


def _results(results: dict[str, Any], evaluation: Evaluation) -> str:
    lines = [f"On the {results['samples']:,} images of split `{results['split']}`:", "", "| | | 95% interval |", "|-|-|-|"]
    for name, value in results["metrics"].items():
        low, high = results["intervals"][name]
        lines.append(f"| {METRIC_NAMES[name]} | {value:.2%} | {low:.2%} to {high:.2%} |")
    lines.append(f"| expected calibration error | {results['calibration_error']:.2%} | |")
    lines += ["", "![Confusion matrix](confusion_matrix.png)", "", "![Learning curves](learning_curves.png)", ""]
    classes = evaluation.classes()
    shown = classes
    if len(classes) > MOST_LISTED_CLASSES:
        shown = sorted(classes, key=lambda figure: figure.f1)[:MOST_LISTED_CLASSES]
        lines += [f"The {len(shown)} classes with the lowest F1:", ""]
    lines += ["| class | images | recall | precision | F1 |", "|-|-|-|-|-|"]
    lines += [f"| {_cell(c.name)} | {c.images} | {c.recall:.1%} | {c.precision:.1%} | {c.f1:.1%} |" for c in shown]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _limitations(results: dict[str, Any], evaluation: Evaluation) -> str:
    missed = (c for c in evaluation.classes() if c.images and c.recall < 1)
    worst = sorted(missed, key=lambda c: c.recall)[:WORST_CLASSES]
    told = ", ".join(f"{_cell(c.name)} ({c.recall:.0%} of {c.images})" for c in worst)
    lines = [f"- Lowest recall: {told}." if worst else "- Every image of the split was classified rightly."]
    if results["role"] != "test":
        lines.append("- There was no test split: the results are of the dev split, which choices may have been made on.")
    names = evaluation.names
    if pairs := evaluation.confusions(WORST_PAIRS):
        told = ", ".join(f"{_cell(names[p.true])} called {_cell(names[p.predicted])} ({p.images})" for p in pairs)
        lines.append(f"- Most frequent confusions: {told}.")
    confidence, accuracy = evaluation.probabilities[:, 0].mean(), evaluation.right.mean()
    tendency = "over" if confidence > accuracy else "under"
    lines.append(
        f"- Calibration: mean confidence {confidence:.1%} at an accuracy of {accuracy:.1%} ({tendency}confident by "
        f"{abs(confidence - accuracy):.1%}); confidences are not corrected."
    )
    lines.append(
        f"- Measured on images of the same source as the training images; on others expect less. It names one of its "
        f"{len(names)} classes whatever it is shown."
    )
    if results["bad_images"]:
        lines.append(f"- {len(results['bad_images'])} images could not be decoded and were left out.")
    return "\n".join(lines)


def _training(config: dict[str, Any], results: dict[str, Any], data_name: str) -> str:
    model, data = config["model"], config["data"]
    rows = {
        "data": f"{data_name}, {results['train_samples']:,} training images"
        + (f", commit `{results['data']['revision']}`" if results["data"]["revision"] else "")
        + f", licence: {results['data']['license'] or 'not stated'}",
        "trained": "the head alone" if model["freeze_backbone"] else "all parameters",
        "optimizer": f"{model['optimizer']}, learning rate {model['lr']}, weight decay {model['weight_decay']}, "
        f"{model['warmup_steps']} warm-up steps, then cosine",
        "batch": f"{data['batch_size']}, over all devices",
        "steps": f"{results['steps']:,}",
        "augmentation": f"crops of {data['crop_area'][0]:g} to {data['crop_area'][1]:g} of the area"
        + "".join(f", {name} {data[name]}" for name in ("rotation", "color_jitter", "random_erasing") if data[name])
        + (", mirrored" if data["flip"] else ""),
        "regularisation": f"label smoothing {model['label_smoothing']}, drop path {model['drop_path']}",
        "hardware": f"{results['devices']} x {results['device']}, precision {results['precision']}",
        "time": f"{results['seconds']:,.0f} s; energy was not measured",
        "software": f"mixer_finetune {__version__}, torch {results['versions']['torch']}",
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return (
        f"| | |\n|-|-|\n{table}\n\n`config.yaml` holds every option: `mixer-finetune fit --config config.yaml` repeats the run."
    )
