"""Several labels an image: read, trained, measured, kept and shown."""

import csv
import json

import datasets
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelExactMatch, MultilabelF1Score

from mixer_finetune import ImageDataModule, MixerClassifier, UserError, load_backbone
from mixer_finetune.backbones.folder import save_model_folder
from mixer_finetune.data.labels import rarest
from mixer_finetune.data.sources import open_source
from mixer_finetune.evaluation.label_measures import label_calibration_error, label_figures, label_intervals
from mixer_finetune.evaluation.label_sets import LabelSets
from mixer_finetune.training.losses import Loss
from mixer_finetune.training.losses.settings import Settings
from mixer_finetune.training.metrics import ExactMatch, LabelF1, MeanAveragePrecision, average_precision
from mixer_finetune.training.task import MULTI_LABEL

ROWS = [("0.png", ["cat"]), ("1.png", ["cat", "dog"]), ("2.png", []), ("3.png", ["bird", "dog"]), ("4.png", ["dog"])]
NAMES = ["bird", "cat", "dog"]
EXPECTED = [[0, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 0, 1]]


@pytest.fixture
def folder(tmp_path):
    for name, _ in ROWS:
        Image.new("RGB", (8, 8), (ord(name[0]), 0, 0)).save(tmp_path / name)
    return tmp_path


def table(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def sources(folder):
    yield table(folder / "a.csv", ("file", "label"), [(f, "; ".join(c)) for f, c in ROWS]), {"label_separator": ";"}
    columns = [(f, *(str(int(name in c)) for name in NAMES)) for f, c in ROWS]
    yield table(folder / "b.csv", ("file", *NAMES), columns), {"label_columns": NAMES}
    (folder / "c.jsonl").write_text("\n".join(json.dumps({"file": f, "labels": c}) for f, c in ROWS))
    yield folder / "c.jsonl", {}
    paths, labels = [str(folder / f) for f, _ in ROWS], [c for _, c in ROWS]
    yield (paths, labels), {}
    images = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    numbers = [[NAMES.index(label) for label in row] for row in labels]
    for kind, column in ((datasets.Value("string"), labels), (datasets.ClassLabel(names=NAMES), numbers)):
        yield images.add_column("objects", column, feature=datasets.List(kind)), {"label_column": "objects"}
    text = images.add_column("tags", [",".join(c) for c in labels])
    yield text, {"label_column": "tags", "label_separator": ","}


def test_labels_are_read_from_lists_texts_and_columns(folder):
    for source, options in sources(folder):
        data = ImageDataModule(source, val_fraction=0.0, **options)
        assert data.label_names == NAMES and data.task == "multi_label", options
        assert data.splits["train"].labels.tolist() == EXPECTED, options


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([("0.png", "1"), ("1.png", "2")], {"label_columns": ["x"]}, "column 'x' of .* holds '2' in row 2; expected 0"),
        ([("0.png", "1"), ("1.png", "0")], {"label_columns": ["y"]}, "no column 'y'.*use .*label_columns.* x"),
        ([("0.png", "a")], {"label_columns": ["x"], "label_separator": ","}, "columns of 0 and 1, or in one column"),
        ([("0.png", "a"), ("1.png", "b")], {"label_separator": ",", "sampling": "balanced"}, "balanced sampling needs"),
    ],
)
def test_what_can_not_be_read_as_labels_is_refused(folder, rows, options, said):
    with pytest.raises(UserError, match=said):
        ImageDataModule(table(folder / "t.csv", ("file", "x"), rows), **options)


def test_classes_that_look_like_lists_are_said(folder):
    from mixer_finetune.data.checks import findings

    rows = [("0.png", "cat"), ("1.png", "cat,dog"), ("2.png", "dog")]
    source = open_source(table(folder / "t.csv", ("file", "label"), rows))
    said = " ".join(findings(source.splits, source.label_names))
    assert "1 classes join the names of others, such as 'cat,dog'" in said and "--data.label_separator ','" in said


def test_images_are_held_out_by_their_rarest_label():
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], np.uint8)
    assert rarest(labels).tolist() == [1, 0, 3, 2]


def test_a_model_of_the_classes_in_another_order_gets_the_labels_by_name(folder):
    (folder / "c.jsonl").write_text("\n".join(json.dumps({"file": f, "labels": c}) for f, c in ROWS))
    data = ImageDataModule(folder / "c.jsonl", val_fraction=0.0)
    data.match_classes(["dog", "fish", "bird", "cat"])
    expected = [[row[2], 0, row[0], row[1]] for row in EXPECTED]
    assert data.splits["train"].labels.tolist() == expected


def scores_and_labels(n=200, classes=4):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(n, classes, generator=generator).mul(3).round() / 3  # with ties
    return logits, (torch.rand(n, classes, generator=generator) < 0.3).float()


def test_metrics_are_those_of_torchmetrics():
    logits, labels = scores_and_labels()
    pairs = [
        (MeanAveragePrecision(4), MultilabelAveragePrecision(4)),
        (LabelF1(4, "macro"), MultilabelF1Score(4, average="macro")),
        (LabelF1(4, "micro"), MultilabelF1Score(4, average="micro")),
        (ExactMatch(), MultilabelExactMatch(4)),
    ]
    logits += 1e-4  # torchmetrics takes a probability of exactly one half as no answer
    for ours, theirs in pairs:
        for start in range(0, 200, 64):
            ours.update(logits[start : start + 64], labels[start : start + 64])
        assert float(ours.compute()) == pytest.approx(float(theirs(logits, labels.int())), abs=1e-6), ours


def test_a_class_without_images_does_not_count():
    logits, labels = scores_and_labels()
    labels[:, 2] = 0
    of_each = average_precision(logits, labels > 0)
    assert of_each.isnan().tolist() == [False, False, True, False]
    metric = MeanAveragePrecision(4)
    metric.update(logits, labels)
    assert float(metric.compute()) == pytest.approx(float(of_each.nanmean()))


@pytest.mark.parametrize("name", ["cross_entropy", "binary"])
def test_the_loss_is_a_sigmoid_for_each_class_summed_over_classes(name):
    logits, labels = scores_and_labels(9)
    target = labels * 0.8 + 0.1
    p = logits.sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).sum()
    if name == "binary":
        expected = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    assert torch.allclose(Loss(MULTI_LABEL, name, Settings(0.2))(logits, labels), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "focal"}, "the focal loss needs one label an image"),
        ({"loss": "logit_adjusted"}, "the logit-adjusted loss needs one label"),
        ({"class_weights": "balanced"}, "class weights need one label an image"),
        ({"head": "probe"}, "a probe needs one label an image"),
        ({"task": "single_label"}, "the model is single_label, but the data is multi_label"),
    ],
)
def test_what_needs_one_label_an_image_is_refused(folder, options, said):
    (folder / "c.jsonl").write_text("\n".join(json.dumps({"file": f, "labels": c}) for f, c in ROWS))
    data = ImageDataModule(folder / "c.jsonl", val_fraction=0.0, batch_size=5)
    with pytest.raises(UserError, match=said):
        trainer().fit(MixerClassifier("mixer_nano_32", **options), data)


def trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(accelerator="cpu", devices=1, logger=False, max_epochs=1, **quiet, **options)


def test_three_steps_are_those_of_a_plain_loop(folder, tmp_path):
    """Whole batches, no augmentation, SGD without momentum: weights after three steps."""
    (folder / "c.jsonl").write_text("\n".join(json.dumps({"file": f, "labels": c}) for f, c in ROWS))
    data = ImageDataModule(
        folder / "c.jsonl", val_fraction=0.0, batch_size=5, crop_area=(1.0, 1.0), flip=False, num_workers=0
    )
    torch.manual_seed(0)
    model = MixerClassifier("mixer_nano_32", lr=0.5, momentum=0.0, optimizer="sgd", label_smoothing=0.1)
    plain = load_backbone("mixer_nano_32")
    run = trainer(gradient_clip_val=0.0)
    run.fit_loop.max_epochs = 3
    run.fit(model, data)
    plain.replace_head(3)
    images, labels = torch.stack([plain.preprocessing(folder / f) for f, _ in ROWS]), torch.tensor(EXPECTED).float()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _ in range(3):
        p = plain(images).sigmoid()
        target = labels * 0.9 + 0.05
        loss = -(target * p.log() + (1 - target) * (1 - p).log()).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert model.task is MULTI_LABEL
    ours = model.assembled().state_dict()
    for key, value in plain.state_dict().items():
        assert torch.allclose(ours[key], value, atol=2e-5), key


def test_it_trains_from_any_loader_of_targets_of_each_class(tmp_path):
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), (torch.rand(8, 3) > 0.5).float()), batch_size=4)
    model = MixerClassifier("mixer_nano_32", label_names=NAMES, task="multi_label", lr=0.01)
    run = trainer()
    run.fit(model, loader)
    (found,) = run.validate(model, loader, verbose=False)
    assert set(found) == {"val/map", "val/macro_f1", "val/micro_f1", "val/exact_match", "val/loss"}
    probabilities = torch.cat(run.predict(model, DataLoader(torch.randn(4, 3, 32, 32), batch_size=4)))
    assert probabilities.shape == (4, 3) and not torch.allclose(probabilities.sum(1), torch.ones(4), atol=1e-3)


def test_the_model_folder_says_that_each_class_is_asked_for_on_its_own(tmp_path):
    model = MixerClassifier("mixer_nano_32", label_names=NAMES, task="multi_label").assembled()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    save_model_folder(tmp_path / "model", model, NAMES)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["problem_type"] == "multi_label_classification"
    loaded = load_backbone(tmp_path / "model").eval()
    assert loaded.task == "multi_label"
    image = Image.new("RGB", (40, 40), (200, 30, 60))
    expected = loaded(loaded.preprocessing(image)[None]).sigmoid()[0].detach()
    assert loaded.predict(image, top_k=3) == pytest.approx(
        {name: float(p) for name, p in zip(NAMES, expected, strict=True)}, abs=1e-6
    )
    loaded.replace_head(5)
    assert loaded.task == "single_label"


@pytest.mark.slow
def test_the_pipeline_of_transformers_takes_sigmoids_too(tmp_path):
    pipeline = pytest.importorskip("transformers").pipeline
    backbone = load_backbone("gmlp_ti16_224", image_size=32)
    model = MixerClassifier(backbone, label_names=NAMES, task="multi_label").assembled()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    save_model_folder(tmp_path / "model", model, NAMES)
    image = Image.new("RGB", (32, 32), (200, 30, 60))
    answers = pipeline("image-classification", str(tmp_path / "model"), device="cpu", top_k=3)(image)
    expected = load_backbone(tmp_path / "model").predict(image, top_k=3)
    assert {a["label"]: a["score"] for a in answers} == pytest.approx(expected, abs=1e-2)
    assert sum(expected.values()) != pytest.approx(1, abs=0.05)


def test_a_model_of_one_label_is_not_tested_on_data_of_several(folder):
    (folder / "c.jsonl").write_text("\n".join(json.dumps({"file": f, "labels": c}) for f, c in ROWS))
    data = ImageDataModule(folder / "c.jsonl", val_fraction=0.0)
    data.evaluation_role = "train"
    with pytest.raises(UserError, match="the model is single_label, but the data is multi_label"):
        trainer().test(MixerClassifier("mixer_nano_32", label_names=NAMES), data, verbose=False)


def label_sets(n=120):
    logits, labels = scores_and_labels(n)
    names = ['a "quoted" one', "b, with a comma", "=1+1", "naïve\r"]
    files = [f"{i}.png" for i in range(n)]
    probabilities = (logits + labels).sigmoid().double().numpy().round(6)
    return LabelSets(names, files, np.arange(n), labels.numpy() > 0, probabilities)


def test_predictions_are_read_as_they_were_written(tmp_path):
    made = label_sets()
    made.write(tmp_path / "predictions.csv")
    read = LabelSets.read(tmp_path / "predictions.csv", made.names)
    assert read.files == made.files and (read.labels == made.labels).all()
    assert (read.probabilities == made.probabilities).all() and (read.indices == made.indices).all()
    with pytest.raises(UserError, match="its columns are not those of the run's classes"):
        LabelSets.read(tmp_path / "predictions.csv", made.names[:3])
    (tmp_path / "odd.csv").write_text((tmp_path / "predictions.csv").read_text().replace('"[""=1+1""]"', "[1]"))
    with pytest.raises(UserError, match="is not the predictions.csv of this run"):
        LabelSets.read(tmp_path / "odd.csv", made.names)


def test_figures_and_intervals_are_of_the_classes():
    found = label_sets()
    for i, figures in enumerate(label_figures(found)):
        labels, answers = found.labels[:, i], found.probabilities[:, i] >= 0.5
        both = (labels & answers).sum()
        assert figures.images == labels.sum() and figures.recall == pytest.approx(both / labels.sum())
        assert figures.precision == pytest.approx(both / answers.sum())
        assert figures.f1 == pytest.approx(2 * both / (labels.sum() + answers.sum()))
    logits = torch.from_numpy(found.probabilities).logit()
    exact = {
        "map": MultilabelAveragePrecision(4)(logits, torch.from_numpy(found.labels).int()),
        "macro_f1": MultilabelF1Score(4)(logits + 1e-6, torch.from_numpy(found.labels).int()),
        "exact_match": torch.tensor(found.right.mean()),
    }
    intervals = label_intervals(found)
    assert set(intervals) == {"map", "macro_f1", "micro_f1", "exact_match"}
    for name, value in exact.items():
        low, high = intervals[name]
        assert low < float(value) < high and 0.03 < high - low < 0.3, name
    assert label_intervals(found) == intervals
    gaps = [(found.probabilities - found.labels)[(found.probabilities * 10).astype(int) == b] for b in range(10)]
    expected = sum(abs(gap.sum()) for gap in gaps) / found.labels.size
    assert label_calibration_error(found) == pytest.approx(expected)


def test_an_average_precision_of_images_drawn_twice_is_that_of_a_list_that_holds_them_twice():
    from mixer_finetune.evaluation.label_measures import _weighted_areas

    found = label_sets()
    counts = np.random.default_rng(0).integers(0, 3, (1, 120)).astype(float)
    rows = np.repeat(np.arange(120), counts[0].astype(int))
    for c in range(4):
        expected = average_precision(torch.from_numpy(found.probabilities[rows]), torch.from_numpy(found.labels[rows]))[
            c
        ]
        area = _weighted_areas(found.probabilities[:, c], found.labels[:, c], counts)
        assert float(area[0]) == pytest.approx(float(expected), abs=1e-6)
