"""Each recipe of a Hub data set, on a small data set of that very layout behind the loopback Hub."""

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from hub.conftest import ASSETS, files_of
from mixer_finetune.cli.main import main

SMALL = (
    "--model.backbone", "mixer_nano_32", "--trainer.accelerator", "cpu", "--trainer.devices", "1",
    "--trainer.max_steps", "2", "--data.batch_size", "8", "--data.num_workers", "0", "--name", "run",
    "--model.compile", "false",
)  # fmt: skip
# Split names, the image column, the label column, other columns, and what the results must be of.
LAYOUTS = {
    "cifar10": ("uoft-cs/cifar10", ("train", "test"), "img", "label", {}, "test"),
    "cifar100": ("uoft-cs/cifar100", ("train", "test"), "img", "fine_label", {"coarse_label": 2}, "test"),
    "pets": (
        "timm/oxford-iiit-pet", ("train", "test"), "image", "label", {"image_id": None, "label_cat_dog": 2}, "test"
    ),
    "flowers102": ("dpdl-benchmark/oxford_flowers102", ("train", "validation", "test"), "image", "label", {}, "test"),
    "food101": ("ethz/food101", ("train", "validation"), "image", "label", {}, "validation"),
    "eurosat": ("timm/eurosat-rgb", ("train", "validation", "test"), "image", "label", {"image_id": None}, "test"),
    "imagenette": ("frgfm/imagenette", ("train", "validation"), "image", "label", {}, "validation"),
    "pretrain_micro": ("zh-plus/tiny-imagenet", ("train", "valid"), "image", "label", {}, "valid"),
    "imagenet1k": ("ILSVRC/imagenet-1k", ("train", "validation", "test"), "image", "label", {}, "validation"),
}  # fmt: skip
CLASSES, EACH = 5, 4


def parquet(image, label, others, unlabelled):
    """A split: some noise for each class, with all of the columns."""
    rng = np.random.default_rng(0)
    labels = [i % CLASSES for i in range(CLASSES * EACH)]
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=[f"class {i}" for i in range(CLASSES)])}
    columns = {image: [], label: [-1] * len(labels) if unlabelled else labels}
    for _ in labels:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
        columns[image].append({"bytes": buffer.getvalue(), "path": None})
    for name, classes in others.items():
        if classes is None:
            columns[name], features[name] = [f"id_{i}" for i in range(len(labels))], datasets.Value("string")
        else:
            columns[name] = [i % classes for i in labels]
            features[name] = datasets.ClassLabel(names=[f"coarse {i}" for i in range(classes)])
    found = io.BytesIO()
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(found)
    return found.getvalue()


def publish(hub, recipe):
    """A data set of the recipe's layout, on the Hub."""
    repository, splits, image, label, others, _ = LAYOUTS[recipe]
    files = {"README.md": b"---\nlicense: other\n---\n"}
    for split in splits:
        unlabelled = recipe == "imagenet1k" and split == "test"  # as its public test split is
        files[f"data/{split}-00000-of-00001.parquet"] = parquet(image, label, others, unlabelled)
    if recipe == "imagenette":  # which is read by a script, but for what the Hub made of it
        parts = {split: files[f"data/{split}-00000-of-00001.parquet"] for split in splits}
        found = hub.add_repository("dataset", repository, {"imagenette.py": b"1/0"})
        converted = {f"320px/{split}/0000.parquet": content for split, content in parts.items()}
        found.commit({**converted, "160px/train/0000.parquet": b"other"}, revision="refs/convert/parquet")
        return found
    return hub.add_repository("dataset", repository, files)


@pytest.mark.parametrize("recipe", [name for name in LAYOUTS if name != "cifar100"])
def test_a_recipe_runs_on_data_of_its_layout(recipe, command, hub, tmp_path):
    publish(hub, recipe)
    repository, _, _, label, _, tested = LAYOUTS[recipe]
    knows_it = ("--model.backbone", "mixer_nano") if recipe == "cifar10" else ()
    printed = command("fit", "--recipe", recipe, *SMALL, *knows_it, check=0).stdout
    assert ("the backbone was trained on this data set" in printed) == bool(knows_it)
    (run,) = (tmp_path / "runs" / "run").iterdir()
    results = json.loads((run / "results.json").read_text())
    assert results["split"] == tested and results["samples"] == CLASSES * EACH
    assert results["classes"] == [f"class {i}" for i in range(CLASSES)] and results["data"]["source"] == repository
    assert f"labels in '{label}'" in printed


def test_the_first_recipe_goes_from_two_downloads_to_a_verified_push(command, hub, tmp_path):
    """`fit --recipe cifar100 --push user/name`, but for the size of the backbone that stands under the recipe's id."""
    data, user = publish(hub, "cifar100"), hub.add_user("someone", role="write")
    backbone = hub.add_repository("model", "timm/mixer_b16_224.goog_in21k", files_of(ASSETS / "mixer_nano"))
    short = [option for option in SMALL if option not in ("--model.backbone", "mixer_nano_32")]
    options = ("fit", "--recipe", "cifar100", "--push", "someone/cifar100", *short)
    printed = command(*options, check=0, HF_TOKEN=user.token).stdout
    (run,) = (tmp_path / "runs" / "run").iterdir()
    results = json.loads((run / "results.json").read_text())
    assert results["backbone"]["revision"] == backbone.head.id and results["data"]["revision"] == data.head.id
    pushed = hub.repositories["model", "someone/cifar100"]
    assert pushed.head.files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert pushed.head.id[:12] in printed and len(pushed.commits) == 2
    assert "uoft-cs/cifar100" in pushed.head.files["README.md"].decode()


def test_every_recipe_says_what_to_type_and_what_to_expect(capsys):
    from mixer_finetune.engine.recipes import all_recipes

    for name, path in all_recipes().items():
        header = path.read_text().partition("\nmodel:")[0]
        assert f"--recipe {name}" in header, name
        assert main(["recipes", "validate", name]) == 0, capsys.readouterr().out
        if path.parent.name != "overlays" and name not in ("imagefolder", "imagefolder_nano"):
            assert "Expected" in header or "Result" in header, name
